package testenv

import (
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Remount mounts what is mounted in a directory once more, with other flags and options. It tries for a while: a child
// that another test has just forked holds, until it executes its program, the files that were open for writing here.
func Remount(tb testing.TB, dir string, flags uintptr, options string) {
	tb.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		err := unix.Mount("", dir, "", unix.MS_REMOUNT|flags, options)
		if err == nil {
			return
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			tb.Fatalf("remount %s: %v", dir, err)
		}
	}
}
