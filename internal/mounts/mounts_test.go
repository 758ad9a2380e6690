package mounts_test

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/mounts"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

func open(tb testing.TB, name string) *atfs.Dir {
	tb.Helper()
	d, err := atfs.Open(name)
	testenv.Must(tb, err)
	tb.Cleanup(func() { testenv.Must(tb, d.Close()) })
	return d
}

// bind mounts a directory a second time until the test ends.
func bind(tb testing.TB, dir, at string) {
	tb.Helper()
	testenv.Must(tb, os.MkdirAll(at, 0o755))
	testenv.Must(tb, unix.Mount(dir, at, "", unix.MS_BIND, ""))
	tb.Cleanup(func() { testenv.Must(tb, unix.Unmount(at, unix.MNT_DETACH)) })
}

// host lays out a file system as ostree does: all of it below sysroot, and /var of the running system at var.
func host(t *testing.T) string {
	t.Helper()
	testenv.NeedsRoot(t)
	dir := t.TempDir()
	testenv.Must(t, os.MkdirAll(dir+"/fs/ostree/repo", 0o755))
	testenv.Must(t, os.MkdirAll(dir+"/fs/ostree/deploy/os/var/lib/store/repo", 0o755))
	bind(t, dir+"/fs", dir+"/sys root")
	bind(t, dir+"/fs/ostree/deploy/os/var", dir+"/var")
	return dir
}

// TestReopenVia opens a directory through another mount, and makes a hard link that the kernel refused before.
func TestReopenVia(t *testing.T) {
	dir := host(t)
	store, sysroot := open(t, dir+"/var/lib/store/repo"), open(t, dir+"/sys root/ostree/repo")
	testenv.Must(t, store.WriteFile("f", []byte("x"), 0o644, false))
	if err := store.Link("f", sysroot, "f"); !errors.Is(err, unix.EXDEV) {
		t.Fatalf("link between two mounts: got %v, want %v", err, unix.EXDEV)
	}
	again, err := mounts.ReopenVia(store, sysroot)
	testenv.Must(t, err)
	defer again.Close()
	testenv.Must(t, again.Link("f", sysroot, "f"))
	a, err := store.Lstat("f")
	testenv.Must(t, err)
	b, err := sysroot.Lstat("f")
	testenv.Must(t, err)
	if a.Ino != b.Ino || a.Dev != b.Dev {
		t.Errorf("inode %d, want %d", b.Ino, a.Ino)
	}
	if want := dir + "/sys root/ostree/deploy/os/var/lib/store/repo"; again.Path() != want {
		t.Errorf("path %s, want %s", again.Path(), want)
	}
	// A directory through its own mount, and the root of a mount.
	for _, d := range []*atfs.Dir{sysroot, open(t, dir+"/var"), open(t, dir+"/sys root")} {
		again, err := mounts.ReopenVia(d, sysroot)
		testenv.Must(t, err)
		testenv.Must(t, again.Close())
	}
}

func TestReopenViaUnreachable(t *testing.T) {
	dir := host(t)
	sysroot, store := open(t, dir+"/sys root/ostree/repo"), open(t, dir+"/var/lib/store")
	// This mount hides the directories below it, in the table as in the tree.
	bind(t, t.TempDir(), dir+"/sys root/ostree/deploy/os/var/lib")
	disk := open(t, testenv.NewDisk(t, "ext4", 16<<20).Dir)
	for name, of := range map[string][2]*atfs.Dir{
		"above the mount":     {sysroot, store},
		"other file system":   {disk, sysroot},
		"something is in way": {store, sysroot},
	} {
		if d, err := mounts.ReopenVia(of[0], of[1]); !errors.Is(err, mounts.ErrUnreachable) {
			t.Errorf("%s: got %v, %v, want %v", name, d, err, mounts.ErrUnreachable)
		}
	}
	gone := open(t, dir+"/var/lib/store/repo")
	testenv.Must(t, os.Remove(dir+"/var/lib/store/repo"))
	if _, err := mounts.ReopenVia(gone, sysroot); !errors.Is(err, mounts.ErrUnreachable) {
		t.Errorf("removed: got %v, want %v", err, mounts.ErrUnreachable)
	}
	// A mount hidden by another.
	bind(t, t.TempDir(), dir+"/sys root")
	if _, err := mounts.ReopenVia(store, sysroot); !errors.Is(err, mounts.ErrUnreachable) {
		t.Errorf("hidden: got %v, want %v", err, mounts.ErrUnreachable)
	}
}

// TestUnify opens directories of two mounts, one of them read-only, so that links between them are possible.
func TestUnify(t *testing.T) {
	dir := host(t)
	testenv.Must(t, unix.Mount("", dir+"/sys root", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""))
	repo, store := open(t, dir+"/sys root/ostree/repo"), open(t, dir+"/var/lib/store")
	if err := repo.WriteFile("f", nil, 0o644, false); !errors.Is(err, unix.EROFS) {
		t.Fatalf("write to a read-only mount: got %v, want %v", err, unix.EROFS)
	}
	again, err := mounts.Unify(store, repo)
	testenv.Must(t, err)
	for i, d := range []*atfs.Dir{store, repo} {
		defer again[i].Close()
		if again[i].Path() != d.Path() {
			t.Errorf("path %s, want %s", again[i].Path(), d.Path())
		}
	}
	testenv.Must(t, again[1].WriteFile("f", []byte("x"), 0o644, false))
	testenv.Must(t, again[1].Link("f", again[0], "f"))
	a, err := store.Lstat("f")
	testenv.Must(t, err)
	b, err := repo.Lstat("f")
	testenv.Must(t, err)
	if a.Ino != b.Ino || a.Dev != b.Dev {
		t.Errorf("inode %d, want %d", a.Ino, b.Ino)
	}
	one, err := mounts.Unify(again...) // on one mount already, which no table lists
	testenv.Must(t, err)
	for _, d := range one {
		testenv.Must(t, d.Close())
	}
	sub, err := again[0].OpenDir("repo") // directories below are on the mount too, after the first handles are closed
	testenv.Must(t, err)
	defer sub.Close()
	testenv.Must(t, again[0].Close())
	testenv.Must(t, again[1].Link("f", sub, "g"))
}

// TestReopenViaUnified reopens a directory of Unify, whose mount no table lists, so that links become possible: a command
// deploys from a store that it opened together with its lenders.
func TestReopenViaUnified(t *testing.T) {
	dir := host(t)
	sysroot, store := open(t, dir+"/sys root/ostree/repo"), open(t, dir+"/var/lib/store/repo")
	unified, err := mounts.Unify(store, sysroot)
	testenv.Must(t, err)
	for _, d := range unified {
		defer d.Close()
	}
	testenv.Must(t, unified[0].WriteFile("f", []byte("x"), 0o644, false))
	if err := unified[0].Link("f", sysroot, "f"); !errors.Is(err, unix.EXDEV) {
		t.Fatalf("link between two mounts: got %v, want %v", err, unix.EXDEV)
	}
	again, err := mounts.ReopenVia(unified[0], sysroot)
	testenv.Must(t, err)
	defer again.Close()
	testenv.Must(t, again.Link("f", sysroot, "f"))

	// The path leads to another directory by now.
	bind(t, t.TempDir(), dir+"/var/lib/store/repo")
	if d, err := mounts.ReopenVia(unified[0], sysroot); !errors.Is(err, mounts.ErrUnreachable) {
		t.Errorf("got %v, %v, want %v", d, err, mounts.ErrUnreachable)
	}
}

func TestUnifyUnreachable(t *testing.T) {
	dir := host(t)
	disk := open(t, testenv.NewDisk(t, "ext4", 16<<20).Dir)
	if d, err := mounts.Unify(open(t, dir+"/var"), disk); !errors.Is(err, mounts.ErrUnreachable) {
		t.Errorf("two file systems: got %v, %v, want %v", d, err, mounts.ErrUnreachable)
	}
	hidden := open(t, dir+"/var/lib")
	bind(t, t.TempDir(), dir+"/fs")
	bind(t, t.TempDir(), dir+"/sys root")
	// As a rule the root of the host's own file system still reaches it.
	again, err := mounts.Unify(hidden, open(t, dir+"/var"))
	testenv.Must(t, err)
	for _, d := range again {
		testenv.Must(t, d.Close())
	}
}
