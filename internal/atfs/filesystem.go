package atfs

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

const immutableFlag = 0x10 // FS_IMMUTABLE_FL of linux/fs.h

// SetImmutable sets or clears the flag of the directory itself that keeps names in it from being added, changed and removed.
// A file system that has no such flag is success.
func (d *Dir) SetImmutable(on bool) error {
	if err := d.before(OpSetFlags, "."); err != nil {
		return err
	}
	flags, err := retry(func() (uint32, error) { return unix.IoctlGetUint32(d.fd, unix.FS_IOC_GETFLAGS) })
	if err == nil {
		was := flags
		if flags &^= immutableFlag; on {
			flags |= immutableFlag
		}
		if flags == was {
			return nil
		}
		err = retry0(func() error { return unix.IoctlSetPointerInt(d.fd, unix.FS_IOC_SETFLAGS, int(flags)) })
	}
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOTTY) {
		return d.err("set flags", ".", err)
	}
	return nil
}

// A Space says what a file system has free.
type Space struct {
	Free      uint64 // bytes, for root
	BlockSize uint64 // files take whole blocks
}

// Space returns what the file system of the directory has free. Known is false where it does not say how large it is.
func (d *Dir) Space() (s Space, known bool, err error) {
	st, err := d.statfs()
	if err != nil {
		return Space{}, false, err
	}
	bsize := uint64(max(st.Bsize, 1))
	return Space{Free: st.Bfree * bsize, BlockSize: bsize}, st.Blocks > 0, nil
}

// ReadOnly reports whether the directory is on a mount, or a file system, that is read-only.
func (d *Dir) ReadOnly() (bool, error) {
	st, err := d.statfs()
	return st.Flags&unix.ST_RDONLY != 0, err
}

func (d *Dir) statfs() (unix.Statfs_t, error) {
	var st unix.Statfs_t
	if err := retry0(func() error { return unix.Fstatfs(d.fd, &st) }); err != nil {
		return st, d.err("statfs", ".", err)
	}
	return st, nil
}

// SyncForBootloader makes everything on the file system of the directory durable, and has it written to where a reader finds
// it that cannot replay a journal, as boot loaders cannot: the file system is frozen and thawed. Where that is not supported,
// or somebody else has frozen it, it is [Dir.SyncFS].
//
// The file system is frozen for no longer than it takes to thaw it, and thawed even if this process is killed meanwhile: a
// process of its own does both, which no signal but a SIGKILL of its own ends.
func (d *Dir) SyncForBootloader() error {
	if err := d.before(OpFreeze, "."); err != nil {
		return err
	}
	// What is written now need not be written while everybody waits.
	err := retry0(func() error { return unix.Syncfs(d.fd) })
	if err != nil {
		return d.err("syncfs", ".", err)
	}
	err = freezeAndThaw(d.fd)
	switch {
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOTTY), errors.Is(err, unix.EPERM), errors.Is(err, unix.EINVAL),
		errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EBUSY):
		err = retry0(func() error { return unix.Syncfs(d.fd) })
	}
	if err != nil {
		return d.err("freeze", ".", err)
	}
	return nil
}

// Requests of ioctl(2) that x/sys/unix does not have: _IOWR('X', 119, int) and _IOWR('X', 120, int) of linux/fs.h.
const (
	fiFreeze = 0xc0045877
	fiThaw   = 0xc0045878
)

// freezeAndThaw freezes a file system and thaws it, in a child that outlives this process. The child is a copy of one thread
// of it, in which nothing of Go's works but bare system calls.
func freezeAndThaw(fd int) error {
	runtime.LockOSThread() // of which the signals are blocked for a moment
	pid, errno := forkFreezer(fd)
	runtime.UnlockOSThread()
	if errno != 0 {
		return errno
	}
	var status unix.WaitStatus
	_, err := retry(func() (int, error) { return unix.Wait4(pid, &status, 0, nil) })
	if err != nil {
		return err
	}
	if status.Exited() {
		if code := status.ExitStatus(); code != 0 {
			return unix.Errno(code)
		}
		return nil
	}
	// Somebody has killed the child. Whether it had frozen the file system it cannot say.
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), fiThaw, 0); errno != 0 && errno != unix.EINVAL {
		return errno
	}
	return unix.EINTR
}

// forkFreezer starts the child. Its exit status is the number of the error with which freezing failed.
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

// Room returns an error that unwraps to ENOSPC if the file system of the directory has less than size bytes free. A file
// system that does not say how large it is has room.
func (d *Dir) Room(size int64) error {
	space, known, err := d.Space()
	if err == nil && known && size > 0 && uint64(size) > space.Free {
		err = d.err("write", ".", fmt.Errorf("file of %d bytes: %w", size, unix.ENOSPC))
	}
	return err
}
