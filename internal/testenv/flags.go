package testenv

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// Inode flags of linux/fs.h, which chattr(1) sets as i and a.
const (
	Immutable  = 0x10
	AppendOnly = 0x20
)

// SetFlags sets inode flags of a file or directory, as chattr(1) does, until the returned function is called or the
// test ends. The test needs root and a file system with these flags: ext4, XFS or Btrfs.
func SetFlags(tb testing.TB, name string, flags int) (undo func()) {
	tb.Helper()
	NeedsRoot(tb)
	f, err := os.Open(name)
	if err != nil {
		tb.Fatal(err)
	}
	was, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil {
		Missing(tb, "needs a temporary directory on a file system with inode flags: %v", err)
	}
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, was|flags); err != nil {
		tb.Fatalf("set flags of %s: %v", name, err)
	}
	undone := false
	undo = func() {
		if undone {
			return
		}
		undone = true
		// The inode may be gone, or the code under test may have cleared its flags.
		_ = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, was)
		_ = f.Close()
	}
	tb.Cleanup(undo)
	return undo
}
