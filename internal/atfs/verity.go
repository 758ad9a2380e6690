package atfs

import (
	"encoding/binary"
	"errors"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// fs-verity (Documentation/filesystems/fsverity.rst) with SHA-256 over blocks of 4 KiB and no salt, as in the digests
// of overlayfs and composefs.
const (
	verityBlock  = 4096
	verityDigest = 32
)

// EnableVerity makes the content of a file immutable: from now on the kernel checks each block that is read against a
// digest of the whole, and nobody can open the file for writing. Content and digest are on the disk when it returns.
// Owner, mode, times and names stay, and can still change. A file that has fs-verity already is no error. A file system
// or kernel without it is errors.ErrUnsupported.
//
// The file must be readable, and nobody else may have it open for writing. Afterwards f cannot be written to, even
// after an error.
func (f *File) EnableVerity() error {
	if err := f.dir.before(OpVerity, f.name); err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	// The kernel requires a descriptor that is not open for writing, and no other that is.
	fd, err := retry(func() (int, error) {
		return unix.Open("/proc/self/fd/"+strconv.Itoa(f.fd), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	})
	if err == nil {
		err = unix.Dup3(fd, f.fd, unix.O_CLOEXEC)
		err = errors.Join(err, unix.Close(fd))
	}
	if err != nil {
		return f.err("reopen", err)
	}
	arg := unix.FsverityEnableArg{Version: 1, Hash_algorithm: unix.FS_VERITY_HASH_ALG_SHA256, Block_size: verityBlock}
	// A child process has copies of all descriptors until it executes its program.
	for wait := time.Millisecond; ; wait *= 2 {
		err := retry0(func() error { return verityIoctl(f.fd, unix.FS_IOC_ENABLE_VERITY, unsafe.Pointer(&arg)) })
		switch {
		case err == nil:
			return f.Utimes(st.Mtim) // ext4 writes the digest like content, which changes the time
		case errors.Is(err, unix.EEXIST):
			return nil
		case errors.Is(err, unix.ETXTBSY) && wait < time.Second:
			time.Sleep(wait)
		default:
			return f.err("enable fs-verity", unsupported(err))
		}
	}
}

// MeasureVerity returns the digest that the kernel checks the file's content against. ok is false if fs-verity is not
// enabled for the file or uses another algorithm, or if the file system or the kernel does not have it.
func (f *File) MeasureVerity() (digest [verityDigest]byte, ok bool, err error) {
	var arg [4 + verityDigest]byte // struct fsverity_digest: algorithm, size, digest
	binary.NativeEndian.PutUint16(arg[2:], verityDigest)
	err = retry0(func() error { return verityIoctl(f.fd, unix.FS_IOC_MEASURE_VERITY, unsafe.Pointer(&arg)) })
	switch {
	case errors.Is(err, unix.ENODATA) || errors.Is(err, unix.EOVERFLOW) || errors.Is(unsupported(err), errors.ErrUnsupported):
		return digest, false, nil
	case err != nil:
		return digest, false, f.err("measure fs-verity", err)
	case binary.NativeEndian.Uint16(arg[:]) != unix.FS_VERITY_HASH_ALG_SHA256:
		return digest, false, nil
	}
	return [verityDigest]byte(arg[4:]), true, nil
}

// HasVerity reports whether kernel and file system have fs-verity for the file, enabled or not.
func (f *File) HasVerity() (bool, error) {
	var arg [4 + verityDigest]byte
	binary.NativeEndian.PutUint16(arg[2:], verityDigest)
	err := retry0(func() error { return verityIoctl(f.fd, unix.FS_IOC_MEASURE_VERITY, unsafe.Pointer(&arg)) })
	switch {
	case err == nil, errors.Is(err, unix.ENODATA), errors.Is(err, unix.EOVERFLOW):
		return true, nil
	case errors.Is(unsupported(err), errors.ErrUnsupported):
		return false, nil
	}
	return false, f.err("measure fs-verity", err)
}

func verityIoctl(fd int, request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

// unsupported maps the errors of kernels and file systems without fs-verity to one.
func unsupported(err error) error {
	if errors.Is(err, unix.ENOTTY) {
		return unix.EOPNOTSUPP
	}
	return err
}
