package objectstore_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/faulttest"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/objecttest"
)

// files returns the content objects of a repository, and fails the test if it has none.
func files(tb testing.TB, repo *objectstore.Repo) (sums []objectstore.Checksum) {
	tb.Helper()
	for _, name := range objectNames(tb, repo.Dir().Path()) {
		obj, err := objectstore.ParseLoosePath(strings.TrimPrefix(name, "/objects/"))
		if err != nil {
			tb.Fatal(err)
		}
		if obj.Type == objectstore.TypeFile {
			sums = append(sums, obj.Checksum)
		}
	}
	if len(sums) == 0 {
		tb.Fatal("the repository has no content objects")
	}
	return sums
}

func inodeOf(tb testing.TB, repo *objectstore.Repo, sum objectstore.Checksum) unix.Stat_t {
	tb.Helper()
	st, err := repo.Stat(sum)
	if err != nil {
		tb.Fatal(err)
	}
	return st
}

func objectPath(repo *objectstore.Repo, sum objectstore.Checksum) string {
	return filepath.Join(repo.ObjectsDir().Path(), objectstore.LoosePath(sum, objectstore.TypeFile))
}

// TestImport imports every kind of content object, in each possible way.
func TestImport(t *testing.T) {
	testenv.NeedsRoot(t)
	disk := func(fstype string) string { return testenv.NewDisk(t, fstype, 320<<20).Dir }
	for _, tt := range []struct {
		name string
		want objectstore.Transfers
		dirs func(t *testing.T) (from, to string)
	}{
		{"link", objectstore.Transfers{Exclusive: objectstore.TransferLink, Others: objectstore.TransferCopy}, func(t *testing.T) (string, string) {
			t.Helper()
			dir := disk("ext4")
			return dir + "/from", dir + "/to"
		}},
		{"link or reflink", objectstore.Transfers{Exclusive: objectstore.TransferLink, Others: objectstore.TransferReflink}, func(t *testing.T) (string, string) {
			t.Helper()
			dir := disk("xfs")
			testenv.NeedsReflink(t, dir)
			return dir + "/from", dir + "/to"
		}},
		{"copy", objectstore.Transfers{Exclusive: objectstore.TransferCopy, Others: objectstore.TransferCopy}, func(t *testing.T) (string, string) {
			t.Helper()
			return t.TempDir() + "/from", disk("ext4") + "/to"
		}},
		{"reflink", objectstore.Transfers{Exclusive: objectstore.TransferReflink, Others: objectstore.TransferReflink}, func(t *testing.T) (string, string) {
			t.Helper()
			d := disk("xfs")
			testenv.NeedsReflink(t, d)
			other := t.TempDir() // another mount of the same file system
			bind(t, d, other)
			return d + "/from", other + "/to"
		}},
		{"subvolume", objectstore.Transfers{Exclusive: objectstore.TransferReflink, Others: objectstore.TransferReflink}, func(t *testing.T) (string, string) {
			t.Helper()
			btrfs := testenv.NeedsTool(t, "btrfs")
			d := disk("btrfs")
			run(t, btrfs, "subvolume", "create", d+"/to")
			return d + "/from", d + "/to"
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fromDir, toDir := tt.dirs(t)
			from, to := repoAt(t, fromDir), repoAt(t, toDir)
			if got, err := to.Transfers(from); err != nil || got != tt.want {
				t.Fatalf("transfers: got %v, %v, want %v", got, err, tt.want)
			}
			objecttest.Commit(t, from, "odd", objecttest.OddTree())
			txn := begin(t, to)
			for _, sum := range files(t, from) {
				src := inodeOf(t, from, sum)
				stored, err := txn.Import(from, sum)
				if err != nil {
					t.Fatal(err)
				}
				dst := inodeOf(t, to, sum)
				regular := src.Mode&unix.S_IFMT == unix.S_IFREG
				how := tt.want.Exclusive
				if regular && (src.Uid != 0 || src.Mode&0o6022 != 0) {
					how = tt.want.Others
				}
				switch {
				case !stored.Added || stored.Linked != (how == objectstore.TransferLink):
					t.Errorf("object %s of mode %o and user %d: got %+v, want transfer %d", sum, src.Mode, src.Uid, stored, how)
				case how == objectstore.TransferLink:
					if src.Ino != dst.Ino || stored.Blocks != 0 {
						t.Errorf("object %s: inode %d, %d bytes, want inode %d and none", sum, dst.Ino, stored.Blocks, src.Ino)
					}
				case src.Ino == dst.Ino && src.Dev == dst.Dev:
					t.Errorf("object %s of mode %o and user %d: one inode in both", sum, src.Mode, src.Uid)
				case regular && src.Mtim != dst.Mtim:
					t.Errorf("object %s: time %v, want %v", sum, dst.Mtim, src.Mtim)
				case how == objectstore.TransferCopy && stored.Blocks < src.Size == regular:
					t.Errorf("object %s of %d bytes: %d copied", sum, src.Size, stored.Blocks)
				case how == objectstore.TransferReflink && stored.Blocks != 0:
					t.Errorf("object %s: %d bytes copied", sum, stored.Blocks)
				}
				if err := to.Verify(objectstore.TypeFile, sum); err != nil {
					t.Error(err)
				}
				if again, err := txn.Import(from, sum); err != nil || again.Added {
					t.Errorf("again: got %+v, %v, want that it is there", again, err)
				}
			}
			if names, err := to.Dir().OpenDir("tmp"); err != nil {
				t.Error(err)
			} else if left, err := names.ReadNames(); err != nil || len(left) != 1 || names.Close() != nil {
				t.Errorf("tmp: got %v, %v, want cache alone", left, err)
			}
		})
	}
}

// bind mounts a directory a second time until the test ends.
func bind(tb testing.TB, dir, at string) {
	tb.Helper()
	if err := unix.Mount(dir, at, "", unix.MS_BIND, ""); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
			tb.Error(err)
		}
	})
}

// repoAt makes a repository in a directory that may not exist yet.
func repoAt(tb testing.TB, path string) *objectstore.Repo {
	tb.Helper()
	if err := os.MkdirAll(path, 0o755); err != nil {
		tb.Fatal(err)
	}
	return objecttest.NewRepoAt(tb, objecttest.OpenDir(tb, path))
}

// TestImportDamaged imports from and into repositories with a file that does not match its name.
func TestImportDamaged(t *testing.T) {
	const content = "content of the object"
	file := objecttest.File(0o644, content).Own(uint32(os.Geteuid()), uint32(os.Getegid()))
	root := objecttest.Dir(0o755, map[string]*objecttest.Node{"f": file})
	damage := func(t *testing.T, repo *objectstore.Repo, text string) objectstore.Checksum {
		t.Helper()
		sum := files(t, repo)[0]
		if err := os.WriteFile(objectPath(repo, sum), []byte(text), 0); err != nil {
			t.Fatal(err)
		}
		return sum
	}
	// Not NewRepo, which checks the repository at the end.
	repo := func(t *testing.T, dir string) *objectstore.Repo {
		t.Helper()
		r, err := objectstore.Create(objecttest.OpenDir(t, dir), objectstore.ModeBare)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = r.Close() })
		return r
	}
	good := func(t *testing.T, repo *objectstore.Repo, sum objectstore.Checksum) {
		t.Helper()
		if err := repo.Verify(objectstore.TypeFile, sum); err != nil {
			t.Error(err)
		}
	}
	t.Run("a copy does not spread it", func(t *testing.T) {
		testenv.NeedsRoot(t)
		from, to := repo(t, t.TempDir()), repoAt(t, testenv.NewDisk(t, "ext4", 16<<20).Dir+"/to")
		objecttest.Commit(t, from, "r", root)
		sum := damage(t, from, strings.ToUpper(content))
		if _, err := begin(t, to).Import(from, sum); !errors.Is(err, objectstore.ErrCorrupt) || !strings.Contains(err.Error(), from.Dir().Path()) {
			t.Errorf("got error %v, want one that the object in %s is corrupt", err, from.Dir().Path())
		}
		if have, err := to.Has(objectstore.TypeFile, sum); err != nil || have {
			t.Errorf("has it: %t, %v", have, err)
		}
	})
	t.Run("what is cut off here is replaced", func(t *testing.T) {
		from, to := objecttest.NewRepo(t), objecttest.NewRepo(t)
		objecttest.Commit(t, from, "r", root)
		objecttest.Commit(t, to, "r", root)
		sum := damage(t, to, "")
		stored, err := begin(t, to).Import(from, sum)
		if err != nil || !stored.Added {
			t.Errorf("got %+v, %v, want that it was added", stored, err)
		}
		good(t, to, sum)
	})
	t.Run("what is cut off there is not taken", func(t *testing.T) {
		from, to := repo(t, t.TempDir()), objecttest.NewRepo(t)
		objecttest.Commit(t, from, "r", root)
		objecttest.Commit(t, to, "r", root)
		sum := damage(t, from, "")
		if stored, err := begin(t, to).Import(from, sum); err != nil || stored.Added {
			t.Errorf("got %+v, %v, want that it was there", stored, err)
		}
		good(t, to, sum)
	})
	t.Run("what is distrusted is verified", func(t *testing.T) {
		from, to := objecttest.NewRepo(t), objecttest.NewRepo(t)
		objecttest.Commit(t, from, "r", root)
		objecttest.Commit(t, to, "r", root)
		sum := damage(t, to, strings.ToUpper(content))
		txn := begin(t, to)
		txn.Distrust(map[objectstore.ObjectName]struct{}{{Type: objectstore.TypeFile, Checksum: sum}: {}})
		if _, err := txn.Import(from, sum); err != nil {
			t.Error(err)
		}
		good(t, to, sum)
	})
	t.Run("both are damaged", func(t *testing.T) {
		from, to := repo(t, t.TempDir()), repo(t, t.TempDir())
		objecttest.Commit(t, from, "r", root)
		objecttest.Commit(t, to, "r", root)
		sum := damage(t, from, "longer than what it should be")
		damage(t, to, "")
		if _, err := begin(t, to).Import(from, sum); !errors.Is(err, objectstore.ErrCorrupt) {
			t.Errorf("got error %v, want %v", err, objectstore.ErrCorrupt)
		}
	})
	t.Run("of a known size", func(t *testing.T) {
		from, to := repo(t, t.TempDir()), objecttest.NewRepo(t)
		objecttest.Commit(t, from, "r", root)
		sum := damage(t, from, "")
		txn := begin(t, to)
		if _, err := txn.ImportFile(from, sum, file.FileMeta(), int64(len(content))); !errors.Is(err, objectstore.ErrCorrupt) {
			t.Errorf("cut off there: got error %v, want %v", err, objectstore.ErrCorrupt)
		}
		if have, err := to.Has(objectstore.TypeFile, sum); err != nil || have {
			t.Errorf("has it: %t, %v", have, err)
		}
		damage(t, from, content)
		if stored, err := txn.ImportFile(from, sum, file.FileMeta(), int64(len(content))); err != nil || !stored.Linked {
			t.Errorf("got %+v, %v, want a link", stored, err)
		}
		// Another inode, truncated here.
		name := objectPath(to, sum)
		if err := errors.Join(os.Remove(name), os.WriteFile(name, nil, 0o644)); err != nil {
			t.Fatal(err)
		}
		if stored, err := txn.ImportFile(from, sum, file.FileMeta(), int64(len(content))); err != nil || !stored.Added {
			t.Errorf("cut off here: got %+v, %v, want that it is replaced", stored, err)
		}
		good(t, to, sum)
	})
	t.Run("not a file", func(t *testing.T) {
		from, to := repo(t, t.TempDir()), objecttest.NewRepo(t)
		objecttest.Commit(t, from, "r", root)
		sum := files(t, from)[0]
		name := objectPath(from, sum)
		if err := errors.Join(os.Remove(name), os.Mkdir(name, 0o755)); err != nil {
			t.Fatal(err)
		}
		if _, err := begin(t, to).Import(from, sum); !errors.Is(err, objectstore.ErrCorrupt) {
			t.Errorf("got error %v, want %v", err, objectstore.ErrCorrupt)
		}
	})
	t.Run("absent", func(t *testing.T) {
		from, to := objecttest.NewRepo(t), objecttest.NewRepo(t)
		_, err := begin(t, to).Import(from, objectstore.Checksum{1})
		if !errors.Is(err, objectstore.ErrNotExist) || !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("got error %v, want %v", err, objectstore.ErrNotExist)
		}
	})
	t.Run("absent there", func(t *testing.T) {
		from, to := objecttest.NewRepo(t), objecttest.NewRepo(t)
		objecttest.Commit(t, to, "r", root)
		if stored, err := begin(t, to).Import(from, files(t, to)[0]); err != nil || stored.Added {
			t.Errorf("got %+v, %v, want that it is there", stored, err)
		}
	})
}

// TestTied has inodes in two repositories, and in one that is opened twice.
func TestTied(t *testing.T) {
	dir := t.TempDir()
	from, to := repoAt(t, dir+"/from"), repoAt(t, dir+"/to")
	again, err := objectstore.Open(from.Dir())
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	uid, gid := uint32(os.Geteuid()), uint32(os.Getegid())
	for mode, want := range map[uint32]bool{
		0o644: false, 0o755: false, 0o1600: false, 0o664: true, 0o646: true, 0o4755: true, 0o2755: true,
	} {
		file := objecttest.File(mode, fmt.Sprint(mode)).Own(uid, gid)
		added, err := begin(t, from).StoreFile(file.FileMeta(), file.Mtime, file.Content)
		if err != nil {
			t.Fatal(err)
		}
		sum := added.Checksum
		if got := !file.FileMeta().Exclusive(); got != want {
			t.Errorf("mode %o: other users can change it: %t, want %t", mode, got, want)
		}
		tied := func(to *objectstore.Repo, want bool, when string) {
			t.Helper()
			if got, err := to.Tied(from, sum); err != nil || got != want {
				t.Errorf("mode %o, %s: got %t, %v, want %t", mode, when, got, err, want)
			}
		}
		tied(again, false, "one repository")
		if err := os.MkdirAll(filepath.Dir(objectPath(to, sum)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Link(objectPath(from, sum), objectPath(to, sum)); err != nil {
			t.Fatal(err)
		}
		tied(to, want, "one inode")
		stored, err := begin(t, to).Import(from, sum)
		if err != nil || stored.Added != want || stored.Linked {
			t.Errorf("mode %o: import: got %+v, %v, want that it is added: %t", mode, stored, err, want)
		}
		tied(to, false, "after the import")
		if err := os.Remove(objectPath(from, sum)); err != nil {
			t.Fatal(err)
		}
		if got, err := to.Tied(from, sum); err != nil || got {
			t.Errorf("mode %o, absent there: got %t, %v, want false", mode, got, err)
		}
	}
}

// TestImportOfManyNames imports an inode at the maximum of names: the object gets a new inode.
func TestImportOfManyNames(t *testing.T) {
	testenv.NeedsRoot(t)
	const maxLinks = 65000 // of ext4
	disk := testenv.NewDisk(t, "ext4", 64<<20)
	from, to := repoAt(t, disk.Dir+"/from"), repoAt(t, disk.Dir+"/to")
	objecttest.Commit(t, from, "r", oneFile("many"))
	sum := files(t, from)[0]
	names := objecttest.OpenDir(t, disk.Dir)
	for i := range maxLinks - 1 {
		if err := from.LinkFile(sum, names, fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	stored, err := begin(t, to).Import(from, sum)
	if err != nil || !stored.Added || stored.Blocks == 0 {
		t.Errorf("got %+v, %v, want that it was copied", stored, err)
	}
}

// TestImportLinkOutlives removes either of two repositories that share an inode.
func TestImportLinkOutlives(t *testing.T) {
	dir := t.TempDir()
	from, to := repoAt(t, dir+"/from"), repoAt(t, dir+"/to")
	objecttest.Commit(t, from, "r", oneFile("shared"))
	sum := files(t, from)[0]
	txn := begin(t, to)
	if _, err := txn.Import(from, sum); err != nil {
		t.Fatal(err)
	}
	if inodeOf(t, from, sum).Ino != inodeOf(t, to, sum).Ino {
		t.Fatal("two inodes, want one")
	}
	// Nothing refers to it in one repository; the other is removed whole.
	if err := txn.Abort(); err != nil {
		t.Fatal(err)
	}
	objecttest.Commit(t, to, "r", oneFile("shared"))
	if err := from.DeleteRefs(t.Context(), "r"); err != nil {
		t.Fatal(err)
	}
	p, err := from.PlanPrune(t.Context(), objectstore.PruneOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Execute(t.Context()); err != nil {
		t.Fatal(err)
	}
	if have, err := from.Has(objectstore.TypeFile, sum); err != nil || have {
		t.Fatalf("has it: %t, %v, want that it was pruned", have, err)
	}
	f, err := to.OpenFile(sum)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got := make([]byte, 100)
	n, _ := f.ReadAt(got, 0)
	if want := []byte("shared"); !bytes.Equal(got[:n], want) {
		t.Errorf("got %q, want %q", got[:n], want)
	}
}

// TestImportFaults sweeps the import of objects by copy.
func TestImportFaults(t *testing.T) {
	testenv.NeedsRoot(t) // for an in-memory file system, which the other repository is not on
	elsewhere := t.TempDir()
	c := importing(t, func(string) string { return elsewhere })
	c.Min = 39
	faulttest.Sweep(t, c)
}

// linking sweeps the import of objects by link.
func linking(t *testing.T) sweepCase {
	t.Helper()
	return importing(t, func(path string) string { return path + "-from" })
}

// An importing case imports the objects of a commit from a repository whose path is a function of the other's.
func importing(t *testing.T, from func(path string) string) sweepCase {
	t.Helper()
	root := smallTree(t)
	c := committing(t)
	c.Min = 10
	c.Prepare = func(t *testing.T, path string) {
		t.Helper()
		if repo, err := os.ReadDir(from(path)); err == nil && len(repo) > 0 {
			return
		}
		objecttest.Commit(t, repoAt(t, from(path)), "r", root)
	}
	c.Run = func(t *testing.T, repo *objectstore.Repo) error {
		t.Helper()
		other := openSwept(t, from(repo.Dir().Path()), nil)
		defer other.Close()
		txn, err := repo.Begin(t.Context())
		if err != nil {
			return err
		}
		defer txn.Abort() //nolint:errcheck // Commit's error matters
		for _, sum := range files(t, other) {
			if _, err := txn.Import(other, sum); err != nil {
				return err
			}
		}
		return txn.Commit(t.Context(), objectstore.CommitOptions{Sync: true})
	}
	c.Check = func(t *testing.T, repo *objectstore.Repo, done bool) {
		t.Helper()
		checkWhole(t, repo)
		if n := len(objectNames(t, repo.Dir().Path())); done && n != len(root.Entries) {
			t.Errorf("got %d objects, want %d", n, len(root.Entries))
		}
	}
	return c
}

// TestBorrow stores files, some of which another repository has.
func TestBorrow(t *testing.T) {
	lender, to := objecttest.NewRepo(t), objecttest.NewRepo(t)
	uid, gid := uint32(os.Geteuid()), uint32(os.Getegid())
	mtime := unix.Timespec{Sec: 1700000000, Nsec: 5}
	file := func(content string) *objecttest.Node {
		n := objecttest.File(0o644, content).Own(uid, gid)
		n.Mtime = mtime
		return n
	}
	large := strings.Repeat("large", 2000)
	objecttest.Commit(t, lender, "r", objecttest.Dir(0o755, map[string]*objecttest.Node{
		"small": file("small"), "large": file(large), "empty": file(""), "cut": file("cut off"), "copy": file("copy"),
	}))
	// Truncated by a power failure that the lender does not know of.
	cut := objectSum(t, file("cut off"))
	if err := os.Truncate(objectPath(lender, cut), 1); err != nil {
		t.Fatal(err)
	}
	defer func() { // for the lender's check when the test ends
		if err := os.WriteFile(objectPath(lender, cut), []byte("cut off"), 0); err != nil {
			t.Error(err)
		}
	}()
	copied := objecttest.OpenDir(t, t.TempDir())
	if err := copied.WriteFile("f", []byte("copy"), 0o644, false); err != nil {
		t.Fatal(err)
	}

	store := map[string]func(*objectstore.Txn, unix.Timespec) (objectstore.Stored, error){
		"small": func(txn *objectstore.Txn, mtime unix.Timespec) (objectstore.Stored, error) {
			return txn.StoreFile(file("small").FileMeta(), mtime, []byte("small"))
		},
		"large": func(txn *objectstore.Txn, mtime unix.Timespec) (objectstore.Stored, error) {
			w, err := txn.NewFile(file("large").FileMeta(), mtime)
			if err != nil {
				return objectstore.Stored{}, err
			}
			if _, err := w.Write([]byte(large)); err != nil {
				return objectstore.Stored{}, err
			}
			return w.Commit()
		},
		"copy": func(txn *objectstore.Txn, mtime unix.Timespec) (objectstore.Stored, error) {
			f, err := copied.Open("f")
			if err != nil {
				return objectstore.Stored{}, err
			}
			stored, _, err := txn.CopyFile(file("copy").FileMeta(), mtime, f)
			return stored, errors.Join(err, f.Close())
		},
		"empty": func(txn *objectstore.Txn, mtime unix.Timespec) (objectstore.Stored, error) {
			return txn.StoreFile(file("").FileMeta(), mtime, nil)
		},
		"cut": func(txn *objectstore.Txn, mtime unix.Timespec) (objectstore.Stored, error) {
			return txn.StoreFile(file("").FileMeta(), mtime, []byte("cut off"))
		},
		"new": func(txn *objectstore.Txn, mtime unix.Timespec) (objectstore.Stored, error) {
			return txn.StoreFile(file("").FileMeta(), mtime, []byte("new"))
		},
	}
	other := unix.Timespec{Sec: 1}
	for name, f := range store {
		for _, same := range []bool{true, false} {
			for _, at := range []unix.Timespec{mtime, other} {
				to := objecttest.NewRepo(t)
				txn := begin(t, to)
				txn.Borrow(objectstore.Lenders{Repos: []*objectstore.Repo{objecttest.NewRepo(t), lender}, SameMtime: same})
				stored, err := f(txn, at)
				if err != nil {
					t.Fatal(err)
				}
				want := (name == "small" || name == "large" || name == "copy") && (at == mtime || !same)
				if stored.Linked != want || !stored.Added || want && stored.Blocks != 0 {
					t.Errorf("%s, only with its time: %t, it has it: %t: got %+v, want linked: %t", name, same, at == mtime, stored, want)
				}
				if want && inodeOf(t, to, stored.Checksum).Ino != inodeOf(t, lender, stored.Checksum).Ino {
					t.Errorf("%s: two inodes, want one", name)
				}
				if again, err := f(txn, at); err != nil || again.Added || again.Linked {
					t.Errorf("%s again: got %+v, %v, want that it is there", name, again, err)
				}
			}
		}
	}
	// Without lenders nothing is searched.
	if stored, err := store["small"](begin(t, to), mtime); err != nil || stored.Linked {
		t.Errorf("without lenders: got %+v, %v, want that it was written", stored, err)
	}
}

func objectSum(tb testing.TB, n *objecttest.Node) objectstore.Checksum {
	tb.Helper()
	h, err := objectstore.NewContentHash(n.FileMeta())
	if err != nil {
		tb.Fatal(err)
	}
	h.Write(n.Content)
	return objectstore.Checksum(h.Sum(nil))
}

// TestBorrowDistrusts has lenders whose inodes do not match their names, or can be changed by other users: the file is
// written, and the repository has the right content.
func TestBorrowDistrusts(t *testing.T) {
	testenv.NeedsRoot(t)
	const content, wrong = "the right content", "the wrong content"
	opened := func(flags int) func(path string) error {
		return func(path string) error {
			f, err := os.OpenFile(path, flags, 0)
			if err == nil {
				t.Cleanup(func() { testenv.Must(t, f.Close()) })
			}
			return err
		}
	}
	for _, c := range []struct {
		name   string
		file   *objecttest.Node
		change func(path string) error
		linked bool
	}{
		{"as it should be", objecttest.File(0o644, content), func(string) error { return nil }, true},
		{"other content of the same size", objecttest.File(0o644, content), func(path string) error {
			return os.WriteFile(path, []byte(wrong), 0)
		}, false},
		{"another attribute", objecttest.File(0o644, content), func(path string) error {
			return unix.Setxattr(path, "user.lender", []byte("x"), 0)
		}, false},
		{"another user's", objecttest.File(0o644, content).Own(1000, 0), func(string) error { return nil }, false},
		{"writable for all", objecttest.File(0o666, content), func(string) error { return nil }, false},
		{"writable for its group", objecttest.File(0o664, content).Own(0, 100), func(string) error { return nil }, false},
		{"set-user-ID", objecttest.File(0o4755, content), func(string) error { return nil }, false},
		{"open for reading", objecttest.File(0o644, content), opened(os.O_RDONLY), true},
		{"open for writing", objecttest.File(0o644, content), opened(os.O_RDWR), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			lender, to := repoAt(t, t.TempDir()+"/lender"), objecttest.NewRepo(t)
			objecttest.Commit(t, lender, "r", objecttest.Dir(0o755, map[string]*objecttest.Node{"f": c.file}))
			sum := objectSum(t, c.file)
			if err := c.change(objectPath(lender, sum)); err != nil {
				t.Fatal(err)
			}
			txn := begin(t, to)
			txn.Borrow(objectstore.Lenders{Repos: []*objectstore.Repo{lender}})
			stored, err := txn.StoreFile(c.file.FileMeta(), unix.Timespec{}, []byte(content))
			if err != nil || stored.Linked != c.linked || !stored.Added {
				t.Errorf("got %+v, %v, want it added, linked: %t", stored, err, c.linked)
			}
			got, err := os.ReadFile(objectPath(to, sum))
			if err != nil || string(got) != content {
				t.Errorf("the object has %q (%v), want %q", got, err, content)
			}
			if err := to.Verify(objectstore.TypeFile, sum); err != nil {
				t.Error(err)
			}
			if left, err := filepath.Glob(to.Dir().Path() + "/tmp/*link*"); err != nil || len(left) > 0 {
				t.Errorf("left in tmp: %v (%v)", left, err)
			}
			// The lender is checked when the test ends.
			if err := os.Remove(objectPath(lender, sum)); err != nil {
				t.Fatal(err)
			}
			again := begin(t, lender)
			if _, err := again.StoreFile(c.file.FileMeta(), unix.Timespec{}, []byte(content)); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestBorrowElsewhere has a lender on another file system: files are written as if there were none.
func TestBorrowElsewhere(t *testing.T) {
	testenv.NeedsRoot(t)
	lender, to := repoAt(t, testenv.NewDisk(t, "ext4", 16<<20).Dir+"/repo"), objecttest.NewRepo(t)
	objecttest.Commit(t, lender, "r", oneFile("f"))
	txn := begin(t, to)
	txn.Borrow(objectstore.Lenders{Repos: []*objectstore.Repo{lender}})
	stored, err := txn.StoreFile(objecttest.File(0o644, "").FileMeta(), unix.Timespec{}, []byte("f"))
	if err != nil || stored.Linked || !stored.Added {
		t.Errorf("got %+v, %v, want that it was written", stored, err)
	}
}
