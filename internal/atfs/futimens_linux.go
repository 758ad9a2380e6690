package atfs

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// futimens is utimensat(fd, NULL, ts, 0). x/sys/unix does not offer it: UtimesNanoAt always passes a path.
func futimens(fd int, ts *[2]unix.Timespec) error {
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(ts)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
