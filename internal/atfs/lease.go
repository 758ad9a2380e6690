package atfs

import (
	"errors"

	"golang.org/x/sys/unix"
)

// HasWriters reports whether any process has the file open for writing, or mapped from when it did. f must be open for
// reading, and the file be the process's own, unless the process has CAP_LEASE. File systems without leases return an
// error.
func (f *File) HasWriters() (bool, error) {
	// The kernel grants a lease for reading to nobody while there are writers.
	_, err := unix.FcntlInt(uintptr(f.fd), unix.F_SETLEASE, unix.F_RDLCK)
	if errors.Is(err, unix.EAGAIN) {
		return true, nil
	}
	if err == nil {
		_, err = unix.FcntlInt(uintptr(f.fd), unix.F_SETLEASE, unix.F_UNLCK)
	}
	if err != nil {
		return false, f.err("lease", err)
	}
	return false, nil
}
