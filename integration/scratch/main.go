// Command scratch runs a command with a file system of its own for temporary files, in TMPDIR: ext4 with a journal, which
// needs no disk for what is synced. So the tests meet the same file system on every machine, and do not wait for each other's
// writes.
//
//	bin/scratch make test-default
//
// It is mounted in a mount namespace of the command, on a file without a name. So nothing is left when the last process has
// ended, in whatever way. The command gets no file system without root and loop devices, with too little space, or with
// TMPDIR set.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "scratch: error: %v\n", err)
		os.Exit(1)
	}
}

// run becomes the command.
func run(args []string) error {
	if len(args) == 0 {
		return errors.New("no command")
	}
	program, err := exec.LookPath(args[0])
	if err != nil {
		return err
	}
	if os.Getenv("TMPDIR") == "" {
		runtime.LockOSThread() // which alone gets the namespace, and goes on as the command
		dir, err := mountBelow(os.TempDir())
		if err == nil {
			err = os.Setenv("TMPDIR", dir)
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "scratch: no file system for temporary files: %v\n", err)
		}
	}
	return &os.PathError{Op: "run", Path: program, Err: unix.Exec(program, args, os.Environ())}
}

// mountBelow mounts a new file system on a directory below tmp, in a new mount namespace of this thread. The directory has
// the same name each time, as Go takes results of tests from its cache only if TMPDIR is the same.
func mountBelow(tmp string) (dir string, err error) {
	if os.Geteuid() != 0 {
		return "", errors.New("it needs root")
	}
	dir = filepath.Join(tmp, "ostree-snapshotter")
	if err := makeOwn(dir); err != nil {
		return "", err
	}
	file, err := newFile(tmp)
	if err != nil {
		return "", err
	}
	defer file.Close() // the mount keeps it
	image := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), file.Fd())
	if out, err := exec.Command("mkfs.ext4", "-q", "-E", "lazy_itable_init=1,lazy_journal_init=1", image).CombinedOutput(); err != nil {
		return "", fmt.Errorf("mkfs.ext4: %w\n%s", err, out)
	}
	loop, err := mount.SetupLoop(image, mount.LoopParams{Autoclear: true})
	if err != nil {
		return "", err
	}
	defer loop.Close()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return "", fmt.Errorf("make mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return "", fmt.Errorf("make mounts private: %w", err)
	}
	// Nothing need survive the machine, so the file system does not wait for the disk. It gives back what is deleted.
	if err := unix.Mount(loop.Name(), dir, "ext4", 0, "nobarrier,noinit_itable,discard"); err != nil {
		return "", fmt.Errorf("mount %s: %w", loop.Name(), err)
	}
	return dir, os.Chmod(dir, 0o777|os.ModeSticky)
}

// makeOwn makes a directory, which must not be another user's: tmp is everybody's.
func makeOwn(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	st, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); !ok || !st.IsDir() || sys.Uid != 0 {
		return fmt.Errorf("%s is no directory of root's", dir)
	}
	return nil
}

// newFile makes the file of a file system: sparse, and without a name.
func newFile(tmp string) (_ *os.File, err error) {
	file, err := os.CreateTemp(tmp, "ostree-snapshotter-")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, file.Close())
		}
	}()
	if err := os.Remove(file.Name()); err != nil {
		return nil, err
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(file.Fd()), &st); err != nil {
		return nil, err
	}
	n, err := size(int64(st.Bavail) * st.Bsize)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", tmp, err)
	}
	return file, file.Truncate(n)
}

// Bounds of the file system's size.
const (
	minSize = 8 << 30
	maxSize = 32 << 30
)

// size returns the size of a file system if so many bytes are free. A quarter of them stays for others: a file system whose
// file cannot grow fails in worse ways than one that is full.
func size(free int64) (int64, error) {
	n := free / 4 * 3
	if n < minSize {
		return 0, fmt.Errorf("%.1f GiB are free, and it needs %.1f", float64(free)/(1<<30), float64(minSize)/3*4/(1<<30))
	}
	return min(n, maxSize), nil
}
