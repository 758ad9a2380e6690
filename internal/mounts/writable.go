package mounts

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// EnsureWritable makes sure that this process can write to the mounts at the given places. If one of them is mounted
// read-only, as /sysroot is where prepare-root.conf says so, the program starts again in a mount namespace of its own
// in which they are writable; nothing changes for other processes. It returns only if there was nothing to do, or with
// an error. Places that do not exist are skipped.
func EnsureWritable(places ...string) error {
	var closed []string
	for _, p := range places {
		readOnly, _, err := mountedReadOnly(p)
		if err != nil {
			return err
		}
		if readOnly {
			closed = append(closed, p)
		}
	}
	if len(closed) == 0 {
		return nil
	}
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	// The thread that leaves the namespace executes the program; all others end with it. A thread that shares its
	// working directory may not leave, so CLONE_FS unshares that.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
		return fmt.Errorf("make a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	for _, p := range closed {
		if err := mountWritable(p); err != nil {
			return fmt.Errorf("make %s writable: %w", p, err)
		}
	}
	return fmt.Errorf("start again: %w", unix.Exec(exe, os.Args, os.Environ()))
}

// mountedReadOnly reports whether a place is mounted read-only, and its flags. A place that does not exist is not.
func mountedReadOnly(name string) (bool, uintptr, error) {
	var st unix.Statfs_t
	err := unix.Statfs(name, &st)
	if errors.Is(err, unix.ENOENT) {
		return false, 0, nil
	}
	if err != nil {
		return false, 0, &fs.PathError{Op: "statfs", Path: name, Err: err}
	}
	return st.Flags&unix.ST_RDONLY != 0, uintptr(st.Flags), nil
}

// mountFlags are the flags that a remount clears unless it repeats them. statfs(2) uses the same values.
const mountFlags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOATIME | unix.MS_NODIRATIME

// mountWritable makes a mount writable: the mount alone if that suffices, else its file system too. It does nothing if
// the place is a link to one that became writable before.
func mountWritable(name string) error {
	readOnly, flags, err := mountedReadOnly(name)
	if err != nil || !readOnly {
		return err
	}
	keep := flags & mountFlags
	err = unix.Mount("", name, "", unix.MS_REMOUNT|unix.MS_BIND|keep, "")
	if err == nil {
		var still bool
		if still, _, err = mountedReadOnly(name); err != nil || !still {
			return err
		}
		err = unix.Mount("", name, "", unix.MS_REMOUNT|keep, "")
	}
	if err != nil {
		return err
	}
	still, _, err := mountedReadOnly(name)
	if err == nil && still {
		err = unix.EROFS
	}
	return err
}
