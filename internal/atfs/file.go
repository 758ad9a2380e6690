package atfs

import (
	"io"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// File is an open file. Its methods are those of *os.File with the same names, but without the runtime's poller: files
// of a store never block.
type File struct {
	fd   int
	dir  *Dir
	name string
	once sync.Once
}

func (f *File) err(op string, err error) error { return f.dir.err(op, f.name, err) }

// FD returns the descriptor. f still owns it.
func (f *File) FD() int { return f.fd }

// Close closes the file. A second call does nothing.
func (f *File) Close() (err error) {
	f.once.Do(func() {
		if cerr := unix.Close(f.fd); cerr != nil && cerr != unix.EINTR {
			err = f.err("close", cerr)
		}
		f.fd = -1
	})
	return err
}

// Read reads up to len(b) bytes. At the end of the file it returns io.EOF.
func (f *File) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	n, err := retry(func() (int, error) { return unix.Read(f.fd, b) })
	switch {
	case err != nil:
		return 0, f.err("read", err)
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

// ReadAt reads len(b) bytes at off. It returns fewer only at the end of the file, with io.EOF.
func (f *File) ReadAt(b []byte, off int64) (int, error) {
	var done int
	for done < len(b) {
		n, err := retry(func() (int, error) { return unix.Pread(f.fd, b[done:], off+int64(done)) })
		if err != nil {
			return done, f.err("read", err)
		}
		if n == 0 {
			return done, io.EOF
		}
		done += n
	}
	return done, nil
}

// Write writes all of b.
func (f *File) Write(b []byte) (int, error) {
	if err := f.dir.before(OpWrite, f.name); err != nil {
		return 0, err
	}
	var done int
	for done < len(b) {
		n, err := retry(func() (int, error) { return unix.Write(f.fd, b[done:]) })
		if err != nil {
			return done, f.err("write", err)
		}
		done += n
	}
	return done, nil
}

// WriteAt writes all of b at off.
func (f *File) WriteAt(b []byte, off int64) (int, error) {
	if err := f.dir.before(OpWrite, f.name); err != nil {
		return 0, err
	}
	var done int
	for done < len(b) {
		n, err := retry(func() (int, error) { return unix.Pwrite(f.fd, b[done:], off+int64(done)) })
		if err != nil {
			return done, f.err("write", err)
		}
		done += n
	}
	return done, nil
}

// Truncate sets the size of the file.
func (f *File) Truncate(size int64) error {
	if err := f.dir.before(OpTruncate, f.name); err != nil {
		return err
	}
	if err := retry0(func() error { return unix.Ftruncate(f.fd, size) }); err != nil {
		return f.err("truncate", err)
	}
	return nil
}

// Stat returns the status of the file.
func (f *File) Stat() (unix.Stat_t, error) {
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil {
		return st, f.err("stat", err)
	}
	return st, nil
}

// Chown sets owner and group. It clears set-id bits: call it before Chmod.
func (f *File) Chown(uid, gid uint32) error {
	if err := f.dir.before(OpChown, f.name); err != nil {
		return err
	}
	if err := retry0(func() error { return unix.Fchown(f.fd, int(uid), int(gid)) }); err != nil {
		return f.err("chown", err)
	}
	return nil
}

// Chmod sets the permission bits.
func (f *File) Chmod(mode uint32) error {
	if err := f.dir.before(OpChmod, f.name); err != nil {
		return err
	}
	if err := retry0(func() error { return unix.Fchmod(f.fd, mode&0o7777) }); err != nil {
		return f.err("chmod", err)
	}
	return nil
}

// Utimes sets access and modification time to t.
func (f *File) Utimes(t unix.Timespec) error {
	if err := f.dir.before(OpUtimes, f.name); err != nil {
		return err
	}
	ts := [2]unix.Timespec{t, t}
	if err := futimens(f.fd, &ts); err != nil {
		return f.err("utimes", err)
	}
	return nil
}

// LinkTo gives a file made by [Dir.TmpFile] a name below to. An existing name is fs.ErrExist.
func (f *File) LinkTo(to *Dir, name string) error {
	if err := to.before(OpLink, name); err != nil {
		return err
	}
	err := to.at(name, func(fd int, base string) error {
		err := retry0(func() error { return unix.Linkat(f.fd, "", fd, base, unix.AT_EMPTY_PATH) })
		if err != unix.ENOENT { //nolint:errorlint // system calls return bare numbers
			return err
		}
		// Without CAP_DAC_READ_SEARCH the kernel requires the detour through /proc, which is slower.
		return retry0(func() error {
			return unix.Linkat(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(f.fd), fd, base, unix.AT_SYMLINK_FOLLOW)
		})
	})
	if err != nil {
		return to.err("link", name, err)
	}
	return nil
}

// Sync makes content and attributes of the file durable, but not its name: [Dir.Sync] of its directory does that.
func (f *File) Sync() error {
	if err := f.dir.before(OpSync, f.name); err != nil {
		return err
	}
	if err := retry0(func() error { return unix.Fsync(f.fd) }); err != nil {
		return f.err("sync", err)
	}
	return nil
}
