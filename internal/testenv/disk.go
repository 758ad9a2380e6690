package testenv

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A Disk is a file system in a file, mounted through a loop device until the test ends.
type Disk struct {
	Image string // the file
	Dir   string // where it is mounted
}

// NewDisk makes a file system of the given type and size; options are passed to mkfs. It skips the test if this machine
// cannot mount one.
func NewDisk(tb testing.TB, fstype string, size int64, options ...string) *Disk {
	tb.Helper()
	NeedsLoop(tb)
	mkfs := NeedsTool(tb, "mkfs."+fstype)
	d := newDisk(tb)
	f, err := os.Create(d.Image)
	if err == nil {
		err = errors.Join(f.Truncate(size), f.Close())
	}
	if err != nil {
		tb.Fatal(err)
	}
	command(tb, mkfs, append(options, d.Image)...)
	d.mount(tb, fstype)
	return d
}

// PowerLoss returns the disk as a power failure now would leave it: without data that the file system has not written
// to the device.
func (d *Disk) PowerLoss(tb testing.TB) *Disk {
	tb.Helper()
	after := newDisk(tb)
	command(tb, "cp", "--sparse=always", d.Image, after.Image)
	fstype := strings.TrimSpace(command(tb, "blkid", "-o", "value", "-s", "TYPE", d.Image))
	after.mount(tb, fstype)
	return after
}

func newDisk(tb testing.TB) *Disk {
	tb.Helper()
	tmp := tb.TempDir()
	return &Disk{Image: filepath.Join(tmp, "image"), Dir: filepath.Join(tmp, "mnt")}
}

func (d *Disk) mount(tb testing.TB, fstype string) {
	tb.Helper()
	if err := os.Mkdir(d.Dir, 0o755); err != nil {
		tb.Fatal(err)
	}
	options := "loop"
	if fstype == "xfs" { // a copy has the UUID of the original
		options += ",nouuid"
	}
	out, err := exec.Command("mount", "-t", fstype, "-o", options, d.Image, d.Dir).CombinedOutput()
	if err != nil && strings.Contains(string(out), "unknown filesystem type") {
		Unsupported(tb, "needs %s, which the kernel does not have", fstype)
	}
	if err != nil {
		tb.Fatalf("mount %s: %v\n%s", d.Image, err, out)
	}
	tb.Cleanup(func() {
		if err := unmount(d.Dir); err != nil {
			tb.Errorf("unmount %s: %v", d.Dir, err)
		}
	})
}

// unmount retries for a while on a busy file system: a child process holds every open file of this process until its
// exec.
func unmount(dir string) error {
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		err := unix.Unmount(dir, 0)
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return err
		}
	}
}

// command runs a program that must succeed, and returns its output.
func command(tb testing.TB, name string, args ...string) string {
	tb.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		tb.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}
