// Package atfs accesses files relative to directory descriptors.
//
// Every operation names its object by an open directory and a path below it. The kernel resolves a path of several
// components with openat2(RESOLVE_BENEATH|RESOLVE_NO_SYMLINKS|RESOLVE_NO_MAGICLINKS), and opens a single component with
// O_NOFOLLOW. So no name from an image can lead outside the directory, whatever other processes do to the tree
// meanwhile.
//
// The package is also the seam for tests: a [Hook] set on a directory sees every operation that changes the disk, in
// order, before it happens, and can make it fail. Directories opened from a directory inherit its hook.
//
// Errors are *fs.PathError or *os.LinkError with the path below the first directory opened. They unwrap to a
// syscall.Errno, so errors.Is(err, fs.ErrNotExist) and errors.Is(err, unix.ENOSPC) work.
package atfs
