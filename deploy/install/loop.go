package install

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// A loop is a loop device over a part of a disk. It disappears with the last open descriptor.
type loop struct{ f *os.File }

// attach makes a loop device.
func attach(disk *os.File, off, size, sector int64) (*loop, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("get a loop device: %w", err)
	}
	defer control.Close()
	for {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("get a loop device: %w", err)
		}
		f, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDWR, 0)
		if err != nil {
			return nil, fmt.Errorf("get a loop device: %w", err)
		}
		c := unix.LoopConfig{Fd: uint32(disk.Fd()), Size: uint32(sector)}
		c.Info.Offset, c.Info.Sizelimit, c.Info.Flags = uint64(off), uint64(size), unix.LO_FLAGS_AUTOCLEAR
		err = unix.IoctlLoopConfigure(int(f.Fd()), &c)
		if err == nil {
			return &loop{f}, nil
		}
		err = errors.Join(fmt.Errorf("set up %s: %w", f.Name(), err), f.Close())
		if !errors.Is(err, unix.EBUSY) { // another process was faster
			return nil, err
		}
	}
}

func (l *loop) path() string { return l.f.Name() }

// close makes the writes durable and frees the device. It waits until no file system is on it.
func (l *loop) close() error {
	err := l.f.Sync()
	if err == nil {
		err = l.released()
	}
	return errors.Join(err, l.f.Close())
}

// released waits until no file system is on the device. A file system is gone when its last file is closed, and a child
// of this process may have one open for a moment before its exec.
func (l *loop) released() error {
	err := retryFor(patience, unix.EBUSY, func() error {
		fd, err := unix.Open(l.path(), unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		return unix.Close(fd)
	})
	if err != nil {
		return fmt.Errorf("wait for %s: %w", l.path(), err)
	}
	return nil
}

// supports returns an error unless the kernel supports a file system.
func supports(fstype string) error {
	fd, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("the running kernel does not have %s", fstype)
	}
	if err != nil {
		return fmt.Errorf("open file system %s: %w", fstype, err)
	}
	return unix.Close(fd)
}
