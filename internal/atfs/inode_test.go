package atfs

import (
	"errors"
	"io/fs"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestInodeOf(t *testing.T) {
	root := t.TempDir()
	d := open(t, root)
	err := errors.Join(
		os.WriteFile(root+"/a", make([]byte, 5000), 0o600),
		os.Link(root+"/a", root+"/b"),
		os.WriteFile(root+"/c", nil, 0o600))
	if err != nil {
		t.Fatal(err)
	}
	stat := func(name string) *unix.Stat_t {
		st, err := d.Lstat(name)
		if err != nil {
			t.Fatal(err)
		}
		return &st
	}
	a, b, c := stat("a"), stat("b"), stat("c")
	if InodeOf(a) != InodeOf(b) || InodeOf(a) == InodeOf(c) {
		t.Errorf("inodes %v, %v and %v, want the first two equal", InodeOf(a), InodeOf(b), InodeOf(c))
	}
	if n := Allocated(a); n < 5000 || n%512 != 0 || Allocated(c) != 0 {
		t.Errorf("allocated %d and %d bytes, want at least 5000 and none", n, Allocated(c))
	}
}

func TestIgnoreNotExist(t *testing.T) {
	d := open(t, t.TempDir())
	if err := IgnoreNotExist(d.Unlink("absent")); err != nil {
		t.Error(err)
	}
	if err := IgnoreNotExist(fs.ErrExist); !errors.Is(err, fs.ErrExist) {
		t.Errorf("error is %v, want %v", err, fs.ErrExist)
	}
}

func TestCloseAll(t *testing.T) {
	d := open(t, t.TempDir())
	var dirs []*Dir
	for range 3 {
		again, err := d.OpenDir(".")
		if err != nil {
			t.Fatal(err)
		}
		dirs = append(dirs, again)
	}
	if err := unix.Close(dirs[1].FD()); err != nil {
		t.Fatal(err)
	}
	if err := CloseAll(dirs); !errors.Is(err, unix.EBADF) {
		t.Errorf("error is %v, want %v", err, unix.EBADF)
	}
	if dirs[0].FD() >= 0 || dirs[2].FD() >= 0 {
		t.Error("a directory is still open")
	}
}
