package testenv

import (
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// enableVerity switches fs-verity on for an open file with SHA-256 and blocks of 4 KiB.
func enableVerity(fd uintptr) error {
	arg := unix.FsverityEnableArg{
		Version:        1,
		Hash_algorithm: unix.FS_VERITY_HASH_ALG_SHA256,
		Block_size:     4096,
	}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, unix.FS_IOC_ENABLE_VERITY, uintptr(unsafe.Pointer(&arg)))
	if errno != 0 {
		return errno
	}
	return nil
}

// hasFilesystem tells whether a listing as in /proc/filesystems has the named type.
func hasFilesystem(listing, name string) bool {
	for line := range strings.Lines(listing) {
		fields := strings.Fields(line)
		if len(fields) > 0 && fields[len(fields)-1] == name {
			return true
		}
	}
	return false
}
