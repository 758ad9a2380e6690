// Package atfs is file access relative to directory descriptors.
//
// Every operation names its object by an open directory and a path below it. The kernel resolves that path with
// openat2(RESOLVE_BENEATH|RESOLVE_NO_SYMLINKS|RESOLVE_NO_MAGICLINKS) where it has more than one component, and with
// O_NOFOLLOW where it has one, so no name that comes from an image can lead outside the directory, whatever another
// process does to the tree meanwhile.
//
// The package is also the seam for tests: a [Hook] set on a directory sees every operation that changes the disk, in
// order, before it happens, and can make it fail. Directories opened from a directory inherit its hook.
//
// Errors are *fs.PathError or *os.LinkError with the path below the directory that was first opened, and unwrap to
// a syscall.Errno, so errors.Is(err, fs.ErrNotExist) and errors.Is(err, unix.ENOSPC) work.
package atfs
