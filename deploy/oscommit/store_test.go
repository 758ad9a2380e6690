package oscommit_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/oscommit"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/objecttest"
)

// sysrootRepo makes a repository in an empty directory. The hook sees its operations on the disk.
func sysrootRepo(t *testing.T, path string, hook atfs.Hook) *objectstore.Repo {
	t.Helper()
	testenv.Must(t, os.MkdirAll(path, 0o755))
	dir, err := objecttest.OpenDir(t, path).WithHook(hook)
	testenv.Must(t, err)
	t.Cleanup(func() { testenv.Must(t, dir.Close()) })
	return objecttest.NewRepoAt(t, dir)
}

func storeInto(t *testing.T, tree *oscommit.Tree, to, from *objectstore.Repo) (objectstore.Checksum, error) {
	t.Helper()
	txn, err := to.Begin(t.Context())
	testenv.Must(t, err)
	stored, err := tree.Store(t.Context(), txn, from, oscommit.Image{})
	if err != nil {
		testenv.Must(t, txn.Abort())
		return stored.Commit, err
	}
	txn.SetRef("os", stored.Commit)
	return stored.Commit, txn.Commit(t.Context(), objectstore.CommitOptions{})
}

// contentObjects returns path and inode of every content object.
func contentObjects(t *testing.T, repo *objectstore.Repo) map[string]unix.Stat_t {
	t.Helper()
	names, err := filepath.Glob(repo.ObjectsDir().Path() + "/*/*.file")
	testenv.Must(t, err)
	objects := make(map[string]unix.Stat_t)
	for _, name := range names {
		var st unix.Stat_t
		testenv.Must(t, unix.Lstat(name, &st))
		rel, err := filepath.Rel(repo.ObjectsDir().Path(), name)
		testenv.Must(t, err)
		objects[rel] = st
	}
	return objects
}

// TestStoreLinks stores into another repository on the same mount. Both share the inodes of files, except that of a
// set-uid program, and only that, directories, symbolic links and the commit are written.
func TestStoreLinks(t *testing.T) {
	b := newBed(t)
	root := b.flatten(t, osLayers(t)...)
	tree, err := oscommit.NewTree(root)
	testenv.Must(t, err)
	writes := 0
	to := sysrootRepo(t, filepath.Dir(b.repo.Dir().Path())+"/sysroot/ostree/repo", func(op atfs.Op, _ string) error {
		if op == atfs.OpWrite {
			writes++
		}
		return nil
	})
	need, err := tree.Need(to, b.repo)
	testenv.Must(t, err)
	if need.Transfers.Exclusive != objectstore.TransferLink || need.Objects != 1 || need.Bytes != to.Allocated(1) || need.Shared == 0 || need.Metadata == 0 {
		t.Errorf("need: got %+v, want links, metadata and a copy of a block", need)
	}
	var last oscommit.Progress
	tree.Progress = func(p oscommit.Progress) { last = p }
	writes = 0
	sum, err := storeInto(t, tree, to, b.repo)
	testenv.Must(t, err)
	metadata, err := filepath.Glob(to.ObjectsDir().Path() + "/*/*.dir*")
	testenv.Must(t, err)
	if want := len(metadata) + need.Objects + 2; writes != want { // commit and ref
		t.Errorf("%d writes, want %d", writes, want)
	}
	if last.Objects != last.TotalObjects || last.Objects != len(contentObjects(t, to)) || last.Bytes != need.Bytes {
		t.Errorf("progress ends with %+v, want %d objects and %d bytes", last, len(contentObjects(t, to)), need.Bytes)
	}
	shared := 0
	ours := contentObjects(t, b.repo)
	for name, st := range contentObjects(t, to) {
		if from, ok := ours[name]; ok {
			if from.Ino == st.Ino {
				shared++
			} else if st.Mode&unix.S_ISUID == 0 {
				t.Errorf("object %s is another inode", name)
			}
		}
	}
	if shared != need.Shared {
		t.Errorf("%d objects are shared, want %d", shared, need.Shared)
	}
	if want := b.store(t, tree, oscommit.Image{}); sum != want {
		t.Errorf("commit %s, in the store it is %s", sum, want)
	}
	if need, err = tree.Need(to, b.repo); err != nil || need.Objects+need.Shared != 0 || need.Metadata != 0 {
		t.Errorf("need of a complete commit: got %+v, %v, want nothing", need, err)
	}
}

// TestStoreCopies stores on another file system. The size is what Need predicts.
func TestStoreCopies(t *testing.T) {
	b := newBed(t)
	large := strings.Repeat("0123456789abcdef", 100<<10/16) + "x"
	tree, err := oscommit.NewTree(b.flatten(t, append(osLayers(t), makeTar(t, entry{"usr/bin/large", large, nil}))...))
	testenv.Must(t, err)
	to := sysrootRepo(t, testenv.NewDisk(t, "ext4", 32<<20).Dir+"/repo", nil)
	need, err := tree.Need(to, b.repo)
	testenv.Must(t, err)
	var last oscommit.Progress
	tree.Progress = func(p oscommit.Progress) { last = p }
	_, err = storeInto(t, tree, to, b.repo)
	testenv.Must(t, err)
	var bytes int64
	for _, st := range contentObjects(t, to) {
		bytes += atfs.Allocated(&st)
	}
	if need.Transfers.Exclusive != objectstore.TransferCopy || need.Shared != 0 || need.Bytes != bytes || bytes < int64(len(large)) {
		t.Errorf("need: got %+v, want copies of %d bytes", need, bytes)
	}
	if last.Bytes != need.Bytes || last.TotalBytes != need.Bytes {
		t.Errorf("progress ends with %+v, want all of %d bytes", last, need.Bytes)
	}
	var metadata int64
	names, err := filepath.Glob(to.ObjectsDir().Path() + "/*/*.dir*")
	testenv.Must(t, err)
	for _, name := range names {
		var st unix.Stat_t
		testenv.Must(t, unix.Lstat(name, &st))
		metadata += atfs.Allocated(&st)
	}
	if need.Metadata != metadata {
		t.Errorf("need: %d bytes of metadata, want %d", need.Metadata, metadata)
	}
}

// TestStoreWithoutRoom stores on a file system that is too small. The error comes before anything is written.
func TestStoreWithoutRoom(t *testing.T) {
	b := newBed(t)
	tree, err := oscommit.NewTree(b.flatten(t, append(osLayers(t), makeTar(t, entry{"usr/bin/large", strings.Repeat("x", 20<<20), nil}))...))
	testenv.Must(t, err)
	to := sysrootRepo(t, testenv.NewDisk(t, "ext4", 16<<20).Dir+"/repo", nil)
	_, err = storeInto(t, tree, to, b.repo)
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("got error %v, want %v", err, unix.ENOSPC)
	}
	for _, want := range []string{"20 MiB", to.Dir().Path(), "are free"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("got error %v, want %q in it", err, want)
		}
	}
	if n := len(contentObjects(t, to)); n != 0 {
		t.Errorf("%d objects were written", n)
	}
}

// TestStoreDamaged stores an object that a power failure has emptied.
func TestStoreDamaged(t *testing.T) {
	cut := func(t *testing.T, repo *objectstore.Repo) {
		t.Helper()
		for name, st := range contentObjects(t, repo) {
			if st.Size == int64(len("ID=test\n")) && st.Mode&unix.S_IFMT == unix.S_IFREG {
				testenv.Must(t, os.Truncate(filepath.Join(repo.ObjectsDir().Path(), name), 0))
				return
			}
		}
		t.Fatal("there is no object of /usr/lib/os-release")
	}
	setup := func(t *testing.T) (*oscommit.Tree, bed, *objectstore.Repo) {
		t.Helper()
		b := newBed(t)
		tree, err := oscommit.NewTree(b.flatten(t, osLayers(t)...))
		testenv.Must(t, err)
		return tree, b, sysrootRepo(t, filepath.Dir(b.repo.Dir().Path())+"/other", nil)
	}
	t.Run("there", func(t *testing.T) {
		tree, b, to := setup(t)
		cut(t, b.repo)
		for _, from := range []*objectstore.Repo{b.repo, nil} {
			target := to
			if from == nil {
				target = b.repo
			}
			_, err := storeInto(t, tree, target, from)
			if !errors.Is(err, objectstore.ErrCorrupt) || !strings.Contains(err.Error(), "/usr/lib/os-release") {
				t.Errorf("got error %v, want that /usr/lib/os-release is corrupt", err)
			}
		}
		if _, err := to.Ref("os"); !errors.Is(err, objectstore.ErrNotExist) {
			t.Errorf("got error %v, want that there is no commit", err)
		}
		// The bed's repository is checked when the test ends.
		testenv.Must(t, os.RemoveAll(b.repo.ObjectsDir().Path()))
		testenv.Must(t, os.RemoveAll(b.repo.Dir().Path()+"/refs/heads/oci"))
		testenv.Must(t, os.Mkdir(b.repo.ObjectsDir().Path(), 0o755))
	})
	t.Run("here", func(t *testing.T) {
		tree, b, to := setup(t)
		_, err := storeInto(t, tree, to, b.repo)
		testenv.Must(t, err)
		// Replace the inodes that both share.
		for name := range contentObjects(t, to) {
			path := filepath.Join(to.ObjectsDir().Path(), name)
			testenv.Must(t, os.Rename(path, path+"-old"))
			out, err := exec.Command("cp", "-a", path+"-old", path).CombinedOutput()
			if err != nil {
				t.Fatalf("copy %s: %v\n%s", path, err, out)
			}
			testenv.Must(t, os.Remove(path+"-old"))
		}
		cut(t, to)
		_, err = storeInto(t, tree, to, b.repo)
		testenv.Must(t, err) // and the repository is checked when the test ends
	})
}

// TestStoreManyFiles stores enough files for several goroutines.
func TestStoreManyFiles(t *testing.T) {
	b := newBed(t)
	const n = 3000
	entries := make([]entry, n)
	for i := range entries {
		entries[i] = entry{fmt.Sprintf("usr/share/%d/%d", i%50, i), fmt.Sprint(i), nil}
	}
	tree, err := oscommit.NewTree(b.flatten(t, append(osLayers(t), makeTar(t, entries...))...))
	testenv.Must(t, err)
	want := b.store(t, tree, oscommit.Image{})
	to := sysrootRepo(t, filepath.Dir(b.repo.Dir().Path())+"/sysroot", nil)
	var calls int
	var last oscommit.Progress
	tree.Progress = func(p oscommit.Progress) {
		if p.Objects != last.Objects+1 {
			t.Errorf("progress: %d objects after %d", p.Objects, last.Objects)
		}
		calls++
		last = p
	}
	got, err := storeInto(t, tree, to, b.repo)
	testenv.Must(t, err)
	if got != want || calls != last.TotalObjects || calls < n {
		t.Errorf("commit %s after %d of %d objects, want %s", got, calls, last.TotalObjects, want)
	}
	ctx, cancel := context.WithCancel(t.Context())
	tree.Progress = func(oscommit.Progress) { cancel() }
	txn, err := to.Begin(t.Context())
	testenv.Must(t, err)
	if _, err := tree.Store(ctx, txn, b.repo, oscommit.Image{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got error %v, want %v", err, context.Canceled)
	}
	testenv.Must(t, txn.Abort())
}
