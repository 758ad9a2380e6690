package objectstore_test

import (
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/objecttest"
)

const label = "system_u:object_r:bin_t:s0\x00"

// labelled returns a file with a label, and otherwise like n.
func labelled(n *objecttest.Node) *objecttest.Node {
	other := *n
	other.Xattrs = append([]objectstore.Xattr(nil), n.Xattrs...)
	return other.Xattr("security.selinux", label)
}

// contents are regular files, small and large, empty, and with attributes that make an inode harder to copy.
func contents() map[string]*objecttest.Node {
	return map[string]*objecttest.Node{
		"small": objecttest.File(0o644, "small"),
		"large": objecttest.File(0o600, strings.Repeat("large file ", 100_000)),
		"empty": objecttest.File(0o644, ""),
		"setid": objecttest.File(0o6755, "set-id").Own(3, 4).Xattr("user.a", "b"),
	}
}

// TestImportContent stores the content of objects of another repository, and of the same one, with labels.
func TestImportContent(t *testing.T) {
	testenv.NeedsRoot(t)
	for _, fstype := range []string{"ext4", "xfs"} { // without reflinks and with
		t.Run(fstype, func(t *testing.T) {
			disk := testenv.NewDisk(t, fstype, 320<<20).Dir
			from := repoAt(t, disk+"/from")
			objecttest.Commit(t, from, "r", objecttest.Dir(0o755, contents()))
			for where, to := range map[string]*objectstore.Repo{"other": repoAt(t, disk+"/to"), "same": from} {
				txn := begin(t, to)
				for name, n := range contents() {
					n.Mtime = inodeOf(t, from, objectSum(t, n)).Mtim
					checkImportContent(t, txn, from, where+": "+name, n, fstype == "xfs")
				}
			}
		})
	}
}

func checkImportContent(t *testing.T, txn *objectstore.Txn, from *objectstore.Repo, name string, n *objecttest.Node, reflink bool) {
	t.Helper()
	want, size := labelled(n), int64(len(n.Content))
	got, err := txn.ImportContent(from, objectSum(t, n), n.FileMeta(), want.FileMeta(), size)
	if err != nil || !got.Added || got.Linked || got.Checksum != objectSum(t, want) {
		t.Fatalf("%s: got %+v, %v, want the new object %s", name, got, err, objectSum(t, want))
	}
	if blocks := txn.Repo().Allocated(size); got.Blocks != blocks && !reflink || got.Blocks != 0 && reflink {
		t.Errorf("%s: got %d bytes, want %d, none of a reflink", name, got.Blocks, blocks)
	}
	if st := inodeOf(t, txn.Repo(), got.Checksum); st.Mtim != n.Mtime || st.Mode != n.Mode || st.Uid != n.UID || st.Size != size {
		t.Errorf("%s: the inode is %+v", name, st)
	}
	for _, sum := range []objectstore.Checksum{got.Checksum, objectSum(t, n)} {
		if have, err := txn.Repo().Has(objectstore.TypeFile, sum); err != nil || !have {
			continue // the old object is in the other repository
		}
		if err := txn.Repo().Verify(objectstore.TypeFile, sum); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	again, err := txn.ImportContent(from, objectSum(t, n), n.FileMeta(), want.FileMeta(), size)
	if err != nil || again != (objectstore.Stored{Checksum: got.Checksum}) {
		t.Errorf("%s again: got %+v, %v, want that it is there", name, again, err)
	}
}

// TestImportContentDamaged takes nothing over from an object that is not what it should be.
func TestImportContentDamaged(t *testing.T) {
	testenv.NeedsRoot(t)
	n := objecttest.File(0o644, "content of the object")
	for name, tt := range map[string]struct {
		damage func(path string) error
		want   error
	}{
		"other content": {func(path string) error { return os.WriteFile(path, []byte(strings.ToUpper(string(n.Content))), 0) }, objectstore.ErrCorrupt},
		"other size":    {func(path string) error { return os.Truncate(path, 0) }, objectstore.ErrCorrupt},
		"a fifo":        {func(path string) error { return errors.Join(os.Remove(path), unix.Mkfifo(path, 0o600)) }, objectstore.ErrCorrupt},
		"a link":        {func(path string) error { return errors.Join(os.Remove(path), os.Symlink("/etc/passwd", path)) }, objectstore.ErrCorrupt},
		"gone":          {os.Remove, objectstore.ErrNotExist},
	} {
		t.Run(name, func(t *testing.T) {
			from, err := objectstore.Create(objecttest.OpenDir(t, t.TempDir()), objectstore.ModeBare) // not checked at the end
			testenv.Must(t, err)
			defer from.Close()
			to := repoAt(t, t.TempDir())
			objecttest.Commit(t, from, "r", objecttest.Dir(0o755, map[string]*objecttest.Node{"f": n}))
			sum := objectSum(t, n)
			testenv.Must(t, tt.damage(objectPath(from, sum)))
			_, err = begin(t, to).ImportContent(from, sum, n.FileMeta(), labelled(n).FileMeta(), int64(len(n.Content)))
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), sum.String()) || !strings.Contains(err.Error(), from.Dir().Path()) {
				t.Errorf("got error %v, want %v with the object and its repository", err, tt.want)
			}
			if names := objectNames(t, to.Dir().Path()); len(names) != 0 {
				t.Errorf("stored: %q", names)
			}
		})
	}
}

// TestImportContentAs compares the metadata that the caller states with the checksum.
func TestImportContentAs(t *testing.T) {
	testenv.NeedsRoot(t)
	n := objecttest.File(0o644, "content")
	repo := repoAt(t, t.TempDir())
	objecttest.Commit(t, repo, "r", objecttest.Dir(0o755, map[string]*objecttest.Node{"f": n}))
	other := objecttest.File(0o600, "content")
	_, err := begin(t, repo).ImportContent(repo, objectSum(t, n), other.FileMeta(), labelled(n).FileMeta(), int64(len(n.Content)))
	if !errors.Is(err, objectstore.ErrCorrupt) {
		t.Errorf("wrong mode: got error %v, want %v", err, objectstore.ErrCorrupt)
	}
	link := objecttest.Symlink("x")
	_, err = begin(t, repo).ImportContent(repo, objectSum(t, n), n.FileMeta(), link.FileMeta(), int64(len(n.Content)))
	if !errors.Is(err, objectstore.ErrInvalid) {
		t.Errorf("as a symbolic link: got error %v, want %v", err, objectstore.ErrInvalid)
	}
}

// relabelling sweeps the import of content.
func relabelling(t *testing.T) sweepCase {
	t.Helper()
	c := importing(t, func(path string) string { return path + "-from" })
	c.Min = 30
	c.Prepare = func(t *testing.T, path string) {
		t.Helper()
		objecttest.Commit(t, repoAt(t, path+"-from"), "r", objecttest.Dir(0o755, contents()))
	}
	c.Run = func(t *testing.T, repo *objectstore.Repo) error {
		t.Helper()
		from := openSwept(t, repo.Dir().Path()+"-from", nil)
		defer from.Close()
		txn, err := repo.Begin(t.Context())
		if err != nil {
			return err
		}
		defer txn.Abort() //nolint:errcheck // Commit's error matters
		for _, n := range contents() {
			if _, err := txn.ImportContent(from, objectSum(t, n), n.FileMeta(), labelled(n).FileMeta(), int64(len(n.Content))); err != nil {
				return err
			}
		}
		return txn.Commit(t.Context(), objectstore.CommitOptions{Sync: true})
	}
	c.Check = func(t *testing.T, repo *objectstore.Repo, done bool) {
		t.Helper()
		checkWhole(t, repo)
		if n := len(objectNames(t, repo.Dir().Path())); done && n != len(contents()) {
			t.Errorf("got %d objects, want %d", n, len(contents()))
		}
	}
	return c
}
