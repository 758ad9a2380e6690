package sysroot

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
)

// syncForBootloader makes everything on the file system of a directory durable, and readable without replaying a
// journal, which boot loaders cannot do: it freezes the file system and thaws it. If that is not supported, or another
// process has frozen the file system, it does what [atfs.Dir.SyncFS] does.
//
// The file system is frozen only for the time that thawing takes. It is thawed even if this process is killed
// meanwhile: a child does both, and only a SIGKILL of its own ends it.
func syncForBootloader(dir *atfs.Dir) error { return dir.Do(atfs.OpFreeze, syncFrozen) }

func syncFrozen(fd int) error {
	// Data written now need not be written while every writer waits.
	if err := retry(func() error { return unix.Syncfs(fd) }); err != nil {
		return fmt.Errorf("syncfs: %w", err)
	}
	err := freezeAndThaw(fd)
	switch {
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOTTY), errors.Is(err, unix.EPERM), errors.Is(err, unix.EINVAL),
		errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EBUSY):
		return retry(func() error { return unix.Syncfs(fd) })
	}
	return err
}

// retry calls f until no signal interrupts it.
func retry(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// Requests of ioctl(2) that x/sys/unix lacks: _IOWR('X', 119, int) and _IOWR('X', 120, int) of linux/fs.h.
const (
	fiFreeze = 0xc0045877
	fiThaw   = 0xc0045878
)

// freezeAndThaw freezes a file system and thaws it, in a child that outlives this process. The child is a copy of one
// thread, in which only bare system calls work, and nothing else of Go.
func freezeAndThaw(fd int) error {
	runtime.LockOSThread() // its signals are blocked for a moment
	pid, errno := forkFreezer(fd)
	runtime.UnlockOSThread()
	if errno != 0 {
		return errno
	}
	var status unix.WaitStatus
	err := retry(func() error {
		_, err := unix.Wait4(pid, &status, 0, nil)
		return err
	})
	if err != nil {
		return err
	}
	if status.Exited() {
		if code := status.ExitStatus(); code != 0 {
			return unix.Errno(code)
		}
		return nil
	}
	// The child was killed. It may have frozen the file system.
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), fiThaw, 0); errno != 0 && errno != unix.EINVAL {
		return errno
	}
	return unix.EINTR
}

// forkFreezer starts the child. Its exit status is the error number if freezing fails.
//
//go:norace
func forkFreezer(fd int) (pid int, errno unix.Errno) {
	// With every signal blocked, the Go runtime cannot interrupt the child either.
	all, old := ^uint64(0), uint64(0)
	_, _, errno = unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&all)),
		uintptr(unsafe.Pointer(&old)), 8, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	child, _, errno := unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if errno == 0 && child == 0 {
		_, _, _ = unix.RawSyscall(unix.SYS_SETSID, 0, 0, 0)
		_, _, errno = unix.RawSyscall(unix.SYS_IOCTL, uintptr(fd), fiFreeze, 0)
		if errno == 0 {
			_, _, _ = unix.RawSyscall(unix.SYS_IOCTL, uintptr(fd), fiThaw, 0)
		}
		for {
			_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, uintptr(errno), 0, 0)
		}
	}
	_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&old)), 0, 8, 0, 0)
	return int(child), errno
}
