package testenv

import (
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Remount remounts a directory's file system with other flags and options. It retries for a while: a child process
// holds the files that were open for writing here until its exec.
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
