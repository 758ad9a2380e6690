package objectstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/objecttest"
)

// hooked opens a temporary directory whose operations hook sees.
func hooked(tb testing.TB, hook atfs.Hook) *atfs.Dir {
	tb.Helper()
	d, err := objecttest.OpenDir(tb, tb.TempDir()).WithHook(hook)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := d.Close(); err != nil {
			tb.Error(err)
		}
	})
	return d
}

func begin(tb testing.TB, repo *objectstore.Repo) *objectstore.Txn {
	tb.Helper()
	txn, err := repo.Begin(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := txn.Abort(); err != nil {
			tb.Error(err)
		}
	})
	return txn
}

// smallTree has five content objects: from memory, in pieces, with attributes, a plain link and an owned link.
func smallTree(tb testing.TB) *objecttest.Node {
	tb.Helper()
	n := map[string]*objecttest.Node{
		"small": objecttest.File(0o644, "small"),
		"large": objecttest.File(0o600, strings.Repeat("large", 2000)),
		"link":  objecttest.Symlink("small"),
		"empty": objecttest.File(0o644, ""),
		"attrs": objecttest.File(0o755, "attributes"),
	}
	if os.Geteuid() == 0 {
		n["attrs"] = objecttest.File(0o4755, "attributes").Own(1, 2).Xattr("user.a", "b")
		n["owned"] = objecttest.Symlink("small").Own(3, 4)
	}
	return objecttest.Dir(0o755, n)
}

// storeSmall is the transaction for the tests below: five objects, a commit, a ref.
func storeSmall(ctx context.Context, repo *objectstore.Repo, root *objecttest.Node, sync bool) error {
	txn, err := repo.Begin(ctx)
	if err != nil {
		return err
	}
	defer txn.Abort() //nolint:errcheck // Commit's error matters
	if _, err := objecttest.StoreCommit(txn, "dir/ref", root); err != nil {
		return err
	}
	return txn.Commit(ctx, objectstore.CommitOptions{Sync: sync})
}

// TestExistingObjectsAreNotWritten stores the same twice: the second time only the lock may be touched.
func TestExistingObjectsAreNotWritten(t *testing.T) {
	var ops []string
	var mu sync.Mutex
	repo := objecttest.NewRepoAt(t, hooked(t, func(op atfs.Op, name string) error {
		mu.Lock()
		defer mu.Unlock()
		ops = append(ops, string(op)+" "+name)
		return nil
	}))
	root := smallTree(t)
	delete(root.Entries, "large") // comes in pieces, which need a place
	if err := storeSmall(t.Context(), repo, root, false); err != nil {
		t.Fatal(err)
	}
	ops = nil
	if err := storeSmall(t.Context(), repo, root, false); err != nil {
		t.Fatal(err)
	}
	if diff := testenv.Diff([]string{"utimes ."}, ops); diff != "" {
		t.Errorf("operations (-want +got):\n%s", diff)
	}
}

func TestStored(t *testing.T) {
	repo := objecttest.NewRepo(t)
	txn := begin(t, repo)
	m := &objectstore.FileMeta{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()), Mode: unix.S_IFREG | 0o644}
	data := bytes.Repeat([]byte("x"), 5000)
	first, err := txn.StoreFile(m, unix.Timespec{}, data)
	if err != nil || !first.Added || first.Blocks < 5000 || first.Blocks%512 != 0 {
		t.Errorf("first: %+v, %v", first, err)
	}
	for name, store := range map[string]func() (objectstore.Stored, error){
		"in memory": func() (objectstore.Stored, error) { return txn.StoreFile(m, unix.Timespec{}, data) },
		"in pieces": func() (objectstore.Stored, error) {
			w, err := txn.NewFile(m, unix.Timespec{})
			if err != nil {
				return objectstore.Stored{}, err
			}
			for _, b := range data {
				if _, err := w.Write([]byte{b}); err != nil {
					return objectstore.Stored{}, err
				}
			}
			return w.Commit()
		},
		"in memory, with its checksum": func() (objectstore.Stored, error) {
			return txn.StoreFileAs(m, unix.Timespec{}, first.Checksum, data)
		},
		"in pieces, with its checksum": func() (objectstore.Stored, error) {
			w, err := txn.NewFileAs(m, unix.Timespec{})
			if err != nil {
				return objectstore.Stored{}, err
			}
			if _, err := w.Write(data); err != nil {
				return objectstore.Stored{}, err
			}
			return w.CommitAs(first.Checksum)
		},
	} {
		got, err := store()
		if want := (objectstore.Stored{Checksum: first.Checksum}); err != nil || got != want {
			t.Errorf("again %s: got %+v, %v, want %+v", name, got, err, want)
		}
	}
	h, err := objectstore.NewContentHash(m)
	if err != nil {
		t.Fatal(err)
	}
	h.Write([]byte("new"))
	sum := objectstore.Checksum(h.Sum(nil))
	if got, err := txn.StoreFileAs(m, unix.Timespec{}, sum, []byte("n"), []byte("ew")); err != nil || !got.Added || got.Checksum != sum {
		t.Errorf("new, with its checksum: got %+v, %v", got, err)
	}
	for name, create := range map[string]func(*objectstore.FileMeta, unix.Timespec) (*objectstore.FileWriter, error){
		"NewFile": txn.NewFile, "NewFileAs": txn.NewFileAs,
	} {
		w, err := create(m, unix.Timespec{})
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Abort(); err != nil {
			t.Error(err)
		}
		if _, err := w.Write([]byte("x")); err == nil {
			t.Errorf("%s: a write after Abort was taken", name)
		}
		if _, err := w.Commit(); err == nil {
			t.Errorf("%s: a commit after Abort was taken", name)
		}
		if _, err := w.CommitAs(sum); err == nil {
			t.Errorf("%s: a commit with a checksum after Abort was taken", name)
		}
		if _, err := create(m, unix.Timespec{Nsec: -1}); !errors.Is(err, objectstore.ErrInvalid) {
			t.Errorf("%s: time negative: got %v, want ErrInvalid", name, err)
		}
	}
	for name, bad := range map[string]unix.Timespec{"negative": {Nsec: -1}, "omit": {Nsec: unix.UTIME_OMIT}, "large": {Nsec: 1e9}} {
		if _, err := txn.StoreFile(m, bad, data); !errors.Is(err, objectstore.ErrInvalid) {
			t.Errorf("time %s: got %v, want ErrInvalid", name, err)
		}
		if _, err := txn.StoreFileAs(m, bad, first.Checksum, data); !errors.Is(err, objectstore.ErrInvalid) {
			t.Errorf("time %s, with a checksum: got %v, want ErrInvalid", name, err)
		}
	}
	if _, err := txn.StoreMetadata(objectstore.TypeDirTree, []byte("nonsense")); !errors.Is(err, objectstore.ErrInvalid) {
		t.Errorf("nonsense as a dirtree: got %v, want ErrInvalid", err)
	}
	if _, err := txn.StoreMetadata(objectstore.TypeFile, nil); !errors.Is(err, objectstore.ErrInvalid) {
		t.Errorf("a file as metadata: got %v, want ErrInvalid", err)
	}
	c := objectstore.Commit{Tree: objectstore.Checksum{1}, Meta: objectstore.Checksum{2}}
	b, err := c.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := txn.StoreMetadata(objectstore.TypeCommit, b); !errors.Is(err, objectstore.ErrNotExist) {
		t.Errorf("a commit without its tree: got %v, want ErrNotExist", err)
	}
}

// TestManyWriters stores equal and different objects from many goroutines.
func TestManyWriters(t *testing.T) {
	repo := objecttest.NewRepo(t)
	txn := begin(t, repo)
	m := &objectstore.FileMeta{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()), Mode: unix.S_IFREG | 0o644}
	var wg sync.WaitGroup
	var mu sync.Mutex
	added := make(map[objectstore.Checksum]int)
	for range 8 {
		wg.Go(func() {
			for i := range 200 {
				s, err := txn.StoreFile(m, unix.Timespec{}, fmt.Append(nil, i))
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if s.Added {
					added[s.Checksum]++
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(added) != 200 {
		t.Errorf("%d objects were added, want 200", len(added))
	}
	for sum, n := range added {
		if n != 1 {
			t.Errorf("object %s was added %d times", sum, n)
		}
	}
}

// TestDamagedObjectIsReplaced overwrites inodes as a power failure does: the next writer of the object heals it.
func TestDamagedObjectIsReplaced(t *testing.T) {
	testenv.NeedsRoot(t)
	repo := objecttest.NewRepo(t)
	root := smallTree(t)
	sum := objecttest.Commit(t, repo, "r", root)
	c, err := repo.Commit(sum)
	if err != nil {
		t.Fatal(err)
	}
	tree, err := repo.DirTree(c.Tree)
	if err != nil {
		t.Fatal(err)
	}
	paths := []string{objectstore.LoosePath(c.Tree, objectstore.TypeDirTree)}
	for _, f := range tree.Files {
		if f.Name != "empty" && f.Name != "link" {
			paths = append(paths, objectstore.LoosePath(f.Checksum, objectstore.TypeFile))
		}
	}
	for _, p := range paths {
		p = repo.ObjectsDir().Path() + "/" + p
		if fi, err := os.Lstat(p); err != nil {
			t.Fatal(err)
		} else if fi.Mode()&fs.ModeSymlink != 0 {
			err = os.Lchown(p, 0, 0)
			if err != nil {
				t.Fatal(err)
			}
		} else if err := os.Truncate(p, 0); err != nil {
			t.Fatal(err)
		}
	}
	report, err := repo.Fsck(t.Context(), objectstore.FsckOptions{})
	if err != nil || len(report.Problems) != len(paths) {
		t.Fatalf("fsck: %+v, %v, want %d problems", report, err, len(paths))
	}
	if objecttest.Commit(t, repo, "r", root) != sum {
		t.Error("another commit")
	}
	objecttest.Fsck(t, repo)
}

// TestCopyFile makes objects of files that another process has open: whatever is done to these, the objects stay.
func TestCopyFile(t *testing.T) {
	testenv.NeedsRoot(t)
	large := strings.Repeat("large file ", 100_000)
	for _, fstype := range []string{"ext4", "btrfs"} { // without reflinks and with
		t.Run(fstype, func(t *testing.T) {
			disk := testenv.NewDisk(t, fstype, 256<<20).Dir
			repo := repoAt(t, disk+"/repo")
			d := objecttest.OpenDir(t, disk)
			txn := begin(t, repo)
			for name, content := range map[string]string{"small": "content", "large": large, "empty": ""} {
				path := disk + "/" + name
				if err := os.WriteFile(path, []byte(content), 0o640); err != nil {
					t.Fatal(err)
				}
				writer, err := os.OpenFile(path, os.O_RDWR, 0)
				if err != nil {
					t.Fatal(err)
				}
				defer writer.Close()
				f, err := d.Open(name)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				want := objecttest.File(0o640, content).Own(3, 4)
				mtime := unix.Timespec{Sec: 1700000000, Nsec: 7}
				got, size, err := txn.CopyFile(want.FileMeta(), mtime, f)
				if err != nil || !got.Added || got.Checksum != objectSum(t, want) || size != int64(len(content)) {
					t.Fatalf("%s: got %+v, %d bytes, %v, want object %s with %d", name, got, size, err, objectSum(t, want), len(content))
				}
				if again, _, err := txn.CopyFile(want.FileMeta(), mtime, f); err != nil || again.Added || again.Checksum != got.Checksum {
					t.Errorf("%s again: %+v, %v, want the same, not added", name, again, err)
				}
				reopened, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.FD()), os.O_RDWR, 0)
				if err != nil {
					t.Fatal(err)
				}
				defer reopened.Close()
				for _, w := range []*os.File{writer, reopened} {
					if _, err := w.WriteAt([]byte("changed"), 0); err != nil {
						t.Fatal(err)
					}
					if err := errors.Join(w.Truncate(1), w.Chmod(0o666), w.Chown(9, 9)); err != nil {
						t.Fatal(err)
					}
				}
				st, err := repo.Stat(got.Checksum)
				if err != nil || st.Mtim != mtime || st.Uid != 3 || st.Mode != unix.S_IFREG|0o640 {
					t.Errorf("%s: the object has time %v, owner %d, mode %o (%v)", name, st.Mtim, st.Uid, st.Mode, err)
				}
				if err := repo.Verify(objectstore.TypeFile, got.Checksum); err != nil {
					t.Error(err)
				}
				if err := repo.LinkFile(got.Checksum, d, "linked-"+name); err != nil {
					t.Error(err)
				}
			}
			if err := repo.LinkFile(objectstore.Checksum{1}, d, "nothing"); !errors.Is(err, objectstore.ErrNotExist) {
				t.Errorf("link of nothing: got %v, want ErrNotExist", err)
			}
		})
	}
}

func TestRefs(t *testing.T) {
	repo := objecttest.NewRepo(t)
	a := objecttest.Commit(t, repo, "dir/a", objecttest.Dir(0o755, nil))
	b := objecttest.Commit(t, repo, "dir/sub/b", objecttest.Dir(0o700, nil))
	objecttest.Commit(t, repo, "dirt", objecttest.Dir(0o711, nil))
	if err := repo.Dir().WriteFile("refs/heads/dir/.hidden", []byte("not a ref"), 0o644, false); err != nil {
		t.Fatal(err)
	}
	for prefix, want := range map[string]map[string]objectstore.Checksum{
		"dir":     {"dir/a": a, "dir/sub/b": b},
		"dir/sub": {"dir/sub/b": b},
		"dir/a":   {"dir/a": a},
		"absent":  {},
	} {
		got, err := repo.Refs(prefix)
		if err != nil {
			t.Fatal(err)
		}
		if diff := testenv.Diff(want, got); diff != "" {
			t.Errorf("refs below %q (-want +got):\n%s", prefix, diff)
		}
	}
	if _, err := repo.Ref("absent"); !errors.Is(err, objectstore.ErrNotExist) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("absent ref: got %v, want ErrNotExist", err)
	}
	if _, err := repo.Ref("dir"); !errors.Is(err, objectstore.ErrNotExist) {
		t.Errorf("directory of refs: got %v, want ErrNotExist", err)
	}
	if _, err := repo.Ref("../../config"); !errors.Is(err, objectstore.ErrInvalid) {
		t.Errorf("escaping ref: got %v, want ErrInvalid", err)
	}

	txn := begin(t, repo)
	txn.SetRef("nothing", objectstore.Checksum{1})
	if err := txn.Commit(t.Context(), objectstore.CommitOptions{}); !errors.Is(err, objectstore.ErrNotExist) {
		t.Errorf("ref to an absent commit: got %v, want ErrNotExist", err)
	}
	if err := txn.Commit(t.Context(), objectstore.CommitOptions{}); err == nil {
		t.Error("a transaction was committed twice")
	}
	txn = begin(t, repo)
	txn.SetRef("dir", a)
	if err := txn.Commit(t.Context(), objectstore.CommitOptions{}); err == nil || !strings.Contains(err.Error(), "refs exist below it") {
		t.Errorf("ref where there is a directory of refs: got %v", err)
	}
	before, err := repo.Dir().Lstat(".")
	if err != nil {
		t.Fatal(err)
	}
	if err := repo.DeleteRefs(t.Context(), "dir/a", "dir/sub/b", "absent", "absent/too", "dirt/too"); err != nil {
		t.Fatal(err)
	}
	if after, err := repo.Dir().Lstat("."); err != nil || after.Mtim == before.Mtim {
		t.Errorf("the mtime of the repository did not change: %v, %v", after.Mtim, err)
	}
	if err := repo.Dir().Unlink("refs/heads/dir/.hidden"); err != nil {
		t.Fatal(err)
	}
	txn = begin(t, repo)
	txn.SetRef("gone", a)
	txn.DeleteRef("gone")
	txn.SetRef("dir", a) // only empty directories remain of the refs below it
	if err := txn.Commit(t.Context(), objectstore.CommitOptions{Sync: true}); err != nil {
		t.Fatal(err)
	}
	lock, err := repo.Lock(t.Context(), objectstore.LockExclusive)
	if err != nil {
		t.Fatal(err)
	}
	if err := lock.DeleteRefs("dirt"); err != nil {
		t.Error(err)
	}
	if err := lock.Unlock(); err != nil {
		t.Error(err)
	}
	got, err := repo.Refs("")
	if err != nil {
		t.Fatal(err)
	}
	if diff := testenv.Diff(map[string]objectstore.Checksum{"dir": a}, got); diff != "" {
		t.Errorf("refs in the end (-want +got):\n%s", diff)
	}
}

// TestLocks tries every pair of locks in one process.
func TestLocks(t *testing.T) {
	repo := objecttest.NewRepo(t)
	for _, tc := range []struct {
		held, wanted objectstore.LockKind
		free         bool
	}{
		{objectstore.LockShared, objectstore.LockShared, true},
		{objectstore.LockShared, objectstore.LockExclusive, false},
		{objectstore.LockExclusive, objectstore.LockShared, false},
		{objectstore.LockExclusive, objectstore.LockExclusive, false},
	} {
		t.Run(fmt.Sprintf("%s under %s", tc.wanted, tc.held), func(t *testing.T) {
			held, err := repo.Lock(t.Context(), tc.held)
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := held.Unlock(); err != nil {
					t.Error(err)
				}
			}()
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
			defer cancel()
			l, err := repo.Lock(ctx, tc.wanted)
			if free := err == nil; free != tc.free || !free && !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v, want free: %v", err, tc.free)
			}
			if err != nil {
				return
			}
			for range 2 {
				if err := l.Unlock(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	held, err := repo.Lock(t.Context(), objectstore.LockShared)
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan error)
	go func() {
		l, err := repo.Lock(t.Context(), objectstore.LockExclusive)
		if err == nil {
			err = l.Unlock()
		}
		got <- err
	}()
	if err := held.Unlock(); err != nil {
		t.Error(err)
	}
	if err := <-got; err != nil {
		t.Errorf("after the lock was released: %v", err)
	}
}

func FuzzValidateRef(f *testing.F) {
	for _, s := range []string{"a", "oci/diff/" + sumHello, "..", "a/../b", "übung", "a//b", ".a", "remote:a", "a\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if objectstore.ValidateRef(s) != nil {
			return
		}
		// libostree's pattern, with \w as PCRE understands it for Unicode.
		pattern := regexp.MustCompile(`^(?:[\pL\pN_][-.\pL\pN_]*/)*[\pL\pN_][-.\pL\pN_]*$`)
		if !pattern.MatchString(s) || !fs.ValidPath(s) {
			t.Errorf("ref %q is taken, but not by libostree", s)
		}
	})
}
