package atfs

import (
	"errors"
	"io"
	"sync"

	"golang.org/x/sys/unix"
)

// CloneFrom makes the content of f a reflink of the content of src. A file system without reflinks returns EOPNOTSUPP
// or EXDEV.
func (f *File) CloneFrom(src *File) error {
	if err := f.dir.before(OpClone, f.name); err != nil {
		return err
	}
	if err := retry0(func() error { return unix.IoctlFileClone(f.fd, src.fd) }); err != nil {
		return f.err("clone", err)
	}
	return nil
}

// TryCloneFrom is CloneFrom, but returns false and no error if the file system cannot share blocks between the two.
func (f *File) TryCloneFrom(src *File) (bool, error) {
	err := f.CloneFrom(src)
	for _, cannot := range []error{unix.EOPNOTSUPP, unix.EXDEV, unix.EINVAL, unix.ENOTTY} {
		if errors.Is(err, cannot) {
			return false, nil
		}
	}
	return err == nil, err
}

// CopyFrom fills f, which must be empty, with the content of src, which must be at its start: by a reflink if the file
// system supports it, else by a copy.
func (f *File) CopyFrom(src *File) error {
	if cloned, err := f.TryCloneFrom(src); err != nil || cloned {
		return err
	}
	if err := f.dir.before(OpWrite, f.name); err != nil {
		return err
	}
	for {
		// The maximum of one call, far from overflowing its ssize_t.
		n, err := retry(func() (int, error) { return unix.CopyFileRange(src.fd, nil, f.fd, nil, 1<<30, 0) })
		switch {
		case n > 0:
			continue
		case err == nil:
			return nil
		case !errors.Is(err, unix.EXDEV) && !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EOPNOTSUPP) &&
			!errors.Is(err, unix.EINVAL):
			return f.err("copy", err)
		}
		// The kernel cannot copy between these file systems. Continue where it stopped.
		buf := copyBuffers.Get().(*[128 << 10]byte) //nolint:forcetypeassert // there is nothing else in the pool
		defer copyBuffers.Put(buf)
		_, err = io.CopyBuffer(struct{ io.Writer }{f}, struct{ io.Reader }{src}, buf[:])
		return err
	}
}

// Overwrite replaces content, owner, mode, extended attributes and time of the file name with those of src, in place:
// the change shows under every name of the inode, and to every process that has it open. It is not atomic: after an
// error or a crash, the file is a mixture of old and new.
func (d *Dir) Overwrite(name string, src *File) (err error) {
	f, err := d.OpenFile(name, unix.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return f.overwrite(src)
}

func (f *File) overwrite(src *File) error {
	st, err := src.Stat()
	if err != nil {
		return err
	}
	buf := copyBuffers.Get().(*[128 << 10]byte) //nolint:forcetypeassert // there is nothing else in the pool
	defer copyBuffers.Put(buf)
	for off := int64(0); off < st.Size; {
		n, err := src.ReadAt(buf[:min(int64(len(buf)), st.Size-off)], off)
		if err != nil {
			return err
		}
		if _, err := f.WriteAt(buf[:n], off); err != nil {
			return err
		}
		off += int64(n)
	}
	if err := f.Truncate(st.Size); err != nil {
		return err
	}
	// Writing and chown(2) clear set-id bits and capabilities, and everything changes the time.
	if err := f.Chown(st.Uid, st.Gid); err != nil {
		return err
	}
	if err := f.Chmod(st.Mode); err != nil {
		return err
	}
	if err := f.takeXattrs(src); err != nil {
		return err
	}
	return f.Utimes(st.Mtim)
}

// takeXattrs makes the extended attributes of f equal to those of src.
func (f *File) takeXattrs(src *File) error {
	want, err := src.Xattrs()
	if err != nil {
		return err
	}
	have, err := f.Xattrs()
	if err != nil {
		return err
	}
	for attr := range have {
		if _, ok := want[attr]; !ok {
			if err := f.Removexattr(attr); err != nil {
				return err
			}
		}
	}
	for attr, value := range want {
		if old, ok := have[attr]; ok && string(old) == string(value) {
			continue
		}
		if err := f.Setxattr(attr, value); err != nil {
			return err
		}
	}
	return nil
}

var copyBuffers = sync.Pool{New: func() any { return new([128 << 10]byte) }}
