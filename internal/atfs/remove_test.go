package atfs_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

func openDir(t *testing.T, name string) *atfs.Dir {
	t.Helper()
	d, err := atfs.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { testenv.Must(t, d.Close()) })
	return d
}

// TestRemoveAllProtected removes trees with files protected by chattr(1).
func TestRemoveAllProtected(t *testing.T) {
	testenv.NeedsRoot(t)
	const immutable, appendOnly = testenv.Immutable, testenv.AppendOnly
	for _, c := range []struct {
		name      string
		protected []string
		flags     int
	}{
		{"immutable file", []string{"tree/dir/file"}, immutable},
		{"append-only file", []string{"tree/dir/file"}, appendOnly},
		{"immutable directory", []string{"tree/dir"}, immutable},
		{"append-only directory", []string{"tree/dir"}, appendOnly},
		{"empty immutable directory", []string{"tree/empty"}, immutable},
		{"the top itself", []string{"tree"}, immutable},
		{"everything", []string{"tree/dir/file", "tree/dir", "tree/empty", "tree"}, immutable | appendOnly},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			for _, name := range []string{"tree/dir", "tree/empty"} {
				if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			for _, name := range []string{"tree/dir/file", "tree/dir/other", "tree/zz", "kept"} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if err := unix.Mkfifo(filepath.Join(dir, "tree/dir/fifo"), 0o600); err != nil {
				t.Fatal(err)
			}
			for _, name := range c.protected {
				testenv.SetFlags(t, filepath.Join(dir, name), c.flags)
			}
			if err := openDir(t, dir).RemoveAll("tree"); err != nil {
				t.Fatal(err)
			}
			entries, err := os.ReadDir(dir)
			if err != nil || len(entries) != 1 || entries[0].Name() != "kept" {
				t.Errorf("directory has %v (%v), want kept alone", entries, err)
			}
		})
	}
}

// TestRemoveAllParentProtected does not touch the flags of the directory that the removed name is in.
func TestRemoveAllParentProtected(t *testing.T) {
	testenv.NeedsRoot(t)
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "parent/tree/dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	testenv.SetFlags(t, filepath.Join(dir, "parent"), testenv.Immutable)
	err := openDir(t, filepath.Join(dir, "parent")).RemoveAll("tree")
	if !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "parent/tree") {
		t.Errorf("got %v, want operation not permitted, for parent/tree", err)
	}
}

// TestRemoveAllMountPoint removes everything but a mount point and the directories above it, and nothing on the mounted
// file system.
func TestRemoveAllMountPoint(t *testing.T) {
	testenv.NeedsRoot(t)
	dir := t.TempDir()
	for _, name := range []string{"tree/a", "tree/m/mnt", "tree/z"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	mnt := filepath.Join(dir, "tree/m/mnt")
	if err := unix.Mount("tmpfs", mnt, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(mnt, unix.MNT_DETACH) })
	precious := filepath.Join(mnt, "precious")
	if err := os.WriteFile(precious, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	d := openDir(t, dir)
	err := d.RemoveAll("tree")
	if !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), "tree/m/mnt") {
		t.Errorf("got %v, want device or resource busy, for tree/m/mnt", err)
	}
	if text, err := os.ReadFile(precious); err != nil || string(text) != "text" {
		t.Errorf("the mounted file has %q (%v), want text", text, err)
	}
	for _, name := range []string{"tree/a", "tree/z"} {
		if have, err := d.Exists(name); err != nil || have {
			t.Errorf("%s still exists (%v)", name, err)
		}
	}
	if err := unix.Unmount(mnt, 0); err != nil {
		t.Fatal(err)
	}
	if err := d.RemoveAll("tree"); err != nil {
		t.Errorf("without the mount: %v", err)
	}
}

// TestRemoveAllGoesOn makes every removal of some files fail: the others are removed, and the error is bounded.
func TestRemoveAllGoesOn(t *testing.T) {
	top := openDir(t, t.TempDir())
	d, err := top.WithHook(func(op atfs.Op, name string) error {
		if op == atfs.OpUnlink && strings.HasPrefix(filepath.Base(name), "bad") {
			return unix.EIO
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.MkdirAll("tree", 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range 25 {
		for _, name := range []string{"bad", "good"} {
			if err := d.WriteFile(fmt.Sprintf("tree/%s%02d", name, i), nil, 0o600, false); err != nil {
				t.Fatal(err)
			}
		}
	}
	err = d.RemoveAll("tree")
	if !errors.Is(err, unix.EIO) {
		t.Fatalf("got %v, want an input/output error", err)
	}
	if lines := strings.Split(err.Error(), "\n"); len(lines) != 11 || lines[10] != "15 more files could not be removed" {
		t.Errorf("got %d lines, the last %q, want 11 and the count of the others", len(lines), lines[len(lines)-1])
	}
	sub, err := d.OpenDir("tree")
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	names, err := sub.ReadNames()
	if err != nil || len(names) != 25 {
		t.Fatalf("%d names are left (%v), want 25", len(names), err)
	}
	for _, name := range names {
		if !strings.HasPrefix(name, "bad") {
			t.Errorf("%s is left", name)
		}
	}
}

// TestRemoveAllWith stops in the middle of a tree: what was reached before is gone, and the rest is there.
func TestRemoveAllWith(t *testing.T) {
	d := openDir(t, t.TempDir())
	testenv.Must(t, d.MkdirAll("tree/dir", 0o755))
	for _, name := range []string{"tree/a", "tree/b", "tree/dir/c"} {
		testenv.Must(t, os.WriteFile(filepath.Join(d.Path(), name), nil, 0o600))
	}
	enough := errors.New("enough")
	calls := 0
	err := d.RemoveAllWith("tree", func() error {
		if calls++; calls == 3 { // the tree itself, one of its entries
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) || calls != 3 {
		t.Errorf("got %v after %d calls", err, calls)
	}
	left, err := os.ReadDir(filepath.Join(d.Path(), "tree"))
	testenv.Must(t, err)
	if len(left) != 2 && len(left) != 3 { // a directory is not gone before its entries
		t.Errorf("left: %v, want all but one at most", left)
	}
	testenv.Must(t, d.RemoveAllWith("tree", func() error { return nil }))
	if ok, err := d.Exists("tree"); err != nil || ok {
		t.Errorf("the tree is there: %v", err)
	}
}
