package probe

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// mincore is mincore(2). It reports for each page of a mapping whether the page is in the page cache.
func mincore(mapping, resident []byte) error {
	_, _, errno := unix.Syscall(unix.SYS_MINCORE,
		uintptr(unsafe.Pointer(&mapping[0])), uintptr(len(mapping)), uintptr(unsafe.Pointer(&resident[0])))
	if errno != 0 {
		return errno
	}
	return nil
}
