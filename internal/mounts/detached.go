package mounts

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
)

// A Detached is a mounted file system that is not attached to the directory tree. No other process finds it, and it
// goes with this process at the latest, however that ends.
type Detached struct {
	Dir *atfs.Dir // its root
	fd  int
}

// MountDetached mounts the file system on a device. name stands for it in error texts.
func MountDetached(device, fstype, name string) (_ *Detached, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("mount %s on %s: %w", fstype, device, err)
		}
	}()
	ctx, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if errors.Is(err, unix.ENODEV) {
		return nil, fmt.Errorf("the running kernel does not have it: %w", err)
	}
	if err != nil {
		return nil, err
	}
	defer unix.Close(ctx)
	if err := unix.FsconfigSetString(ctx, "source", device); err != nil {
		return nil, err
	}
	if err := unix.FsconfigCreate(ctx); err != nil {
		return nil, err
	}
	fd, err := unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	dir, err := atfs.OpenMount(fd, name)
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return &Detached{dir, fd}, nil
}

// Close makes all writes durable and unmounts the file system. If files on it are still open, it is unmounted when the
// last is closed.
func (d *Detached) Close() error {
	err := d.Dir.SyncFS()
	return errors.Join(err, d.Dir.Close(), unix.Close(d.fd))
}
