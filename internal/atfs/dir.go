package atfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Dir is an open directory. Its methods are safe for concurrent use, except Close.
type Dir struct {
	fd   int
	name string // path below the first Dir, which is "."
	root string // path given to Open, for error texts
	hook Hook
}

// Open opens the directory at an absolute or relative path of the process. It follows symbolic links: the path comes
// from the operator, not from an image.
func Open(name string) (*Dir, error) {
	fd, err := retry(func() (int, error) {
		return unix.Open(name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return &Dir{fd: fd, name: ".", root: name}, nil
}

// OpenMount opens the root directory of a file system that fsmount(2) created and that is not attached anywhere. The
// caller keeps the descriptor; name stands for the directory in error texts.
func OpenMount(fd int, name string) (*Dir, error) {
	dir, err := retry(func() (int, error) {
		return unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return &Dir{fd: dir, name: ".", root: name}, nil
}

// Adopt returns a Dir for the descriptor of a directory, and takes it over. path is for messages.
func Adopt(fd int, path string) *Dir { return &Dir{fd: fd, name: ".", root: path} }

// WithPath returns the directory with another path, for messages and for mount options. It takes over the descriptor of
// d, which must not be used any more.
func (d *Dir) WithPath(path string) *Dir { return &Dir{fd: d.fd, name: ".", root: path, hook: d.hook} }

// Close closes the directory.
func (d *Dir) Close() error {
	if d.fd < 0 {
		return nil
	}
	err := unix.Close(d.fd)
	d.fd = -1
	return err
}

// FD returns the descriptor. d still owns it.
func (d *Dir) FD() int { return d.fd }

// Path returns the path the directory had when it was opened. It is for messages, and for the few interfaces that take
// nothing else (mount options). Never use it to reach names that come from an image.
func (d *Dir) Path() string { return path.Join(d.root, d.name) }

func (d *Dir) err(op, name string, err error) error {
	return &fs.PathError{Op: op, Path: path.Join(d.Path(), name), Err: err}
}

func retry[T any](f func() (T, error)) (T, error) {
	for {
		v, err := f()
		if err != unix.EINTR { //nolint:errorlint // system calls return bare numbers
			return v, err
		}
	}
}

func retry0(f func() error) error {
	_, err := retry(func() (struct{}, error) { return struct{}{}, f() })
	return err
}

// openat opens name below d and follows no symbolic link.
func (d *Dir) openat(name string, flags int, mode uint32) (int, error) {
	if !strings.Contains(name, "/") && name != ".." {
		return retry(func() (int, error) {
			return unix.Openat(d.fd, name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode)
		})
	}
	how := unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC),
		Mode:    uint64(mode),
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	if flags&(unix.O_CREAT|unix.O_TMPFILE) == 0 {
		how.Mode = 0
	}
	return retry(func() (int, error) { return unix.Openat2(d.fd, name, &how) })
}

// at calls f with a directory descriptor and a single component that together name the same file as name below d.
func (d *Dir) at(name string, f func(dirfd int, base string) error) error {
	dir, base := path.Split(name)
	if base == "" || base == "." || base == ".." {
		return unix.EINVAL
	}
	if dir == "" {
		return f(d.fd, base)
	}
	fd, err := d.openat(path.Clean(dir), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return f(fd, base)
}

// OpenDir opens a directory below d. "." returns a second handle to d itself.
func (d *Dir) OpenDir(name string) (*Dir, error) {
	fd, err := d.openat(name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, d.err("open", name, err)
	}
	return &Dir{fd: fd, name: path.Join(d.name, name), root: d.root, hook: d.hook}, nil
}

// OpenParent opens the directory that d is in, if that is still want; else the error is ESTALE.
func (d *Dir) OpenParent(want Inode) (*Dir, error) {
	fd, err := retry(func() (int, error) { return unix.Openat(d.fd, "..", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0) })
	if err != nil {
		return nil, d.err("open", "..", err)
	}
	up := &Dir{fd: fd, name: path.Dir(d.name), root: d.root, hook: d.hook}
	st, err := up.Lstat(".")
	if err == nil && InodeOf(&st) != want {
		err = d.err("open", "..", unix.ESTALE)
	}
	if err != nil {
		return nil, errors.Join(err, up.Close())
	}
	return up, nil
}

// IsMount reports whether something is mounted on name: another file system, or a part of the same. A subvolume of
// Btrfs alone is no mount.
func (d *Dir) IsMount(name string) (bool, error) {
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	}
	fd, err := retry(func() (int, error) { return unix.Openat2(d.fd, name, &how) })
	if errors.Is(err, unix.EXDEV) {
		return true, nil
	}
	if err != nil {
		return false, d.err("open", name, err)
	}
	return false, unix.Close(fd)
}

// Mkdir makes a directory whose mode is exactly mode, whatever the umask.
func (d *Dir) Mkdir(name string, mode uint32) error {
	if err := d.before(OpMkdir, name); err != nil {
		return err
	}
	err := d.at(name, func(fd int, base string) error {
		if err := retry0(func() error { return unix.Mkdirat(fd, base, mode&0o777) }); err != nil {
			return err
		}
		return unix.Fchmodat(fd, base, mode, 0)
	})
	if err != nil {
		return d.err("mkdir", name, err)
	}
	return nil
}

// MkdirAll makes a directory and its missing parents, each with mode. Existing directories stay as they are.
func (d *Dir) MkdirAll(name string, mode uint32) error {
	name = path.Clean(name)
	if name == "." {
		return nil
	}
	err := d.Mkdir(name, mode)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrExist):
		st, serr := d.Lstat(name)
		if serr != nil {
			return serr
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return d.err("mkdir", name, unix.ENOTDIR)
		}
		return nil
	case errors.Is(err, fs.ErrNotExist) && path.Dir(name) != ".":
		if err := d.MkdirAll(path.Dir(name), mode); err != nil {
			return err
		}
		return d.MkdirAll(name, mode)
	}
	return err
}

// OpenFile opens a file below d. Flags are those of open(2). O_CREAT sets exactly mode only under umask 0.
func (d *Dir) OpenFile(name string, flags int, mode uint32) (*File, error) {
	if flags&(unix.O_CREAT|unix.O_TRUNC) != 0 {
		if err := d.before(OpCreate, name); err != nil {
			return nil, err
		}
	}
	fd, err := d.openat(name, flags, mode)
	if err != nil {
		return nil, d.err("open", name, err)
	}
	return &File{fd: fd, dir: d, name: name}, nil
}

// Open opens a file below d for reading. It does not block, even on a fifo.
func (d *Dir) Open(name string) (*File, error) {
	return d.OpenFile(name, unix.O_RDONLY|unix.O_NONBLOCK, 0)
}

// TmpFile makes a file without a name in d, open for reading and writing. [File.LinkTo] gives it a name; closing it
// without one drops it.
func (d *Dir) TmpFile(mode uint32) (*File, error) {
	if err := d.before(OpTmpFile, "."); err != nil {
		return nil, err
	}
	fd, err := retry(func() (int, error) {
		return unix.Openat(d.fd, ".", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, mode)
	})
	if err != nil {
		return nil, d.err("open temporary file", ".", err)
	}
	return &File{fd: fd, dir: d, name: "(unnamed)"}, nil
}

// Lstat returns the status of name, without following it.
func (d *Dir) Lstat(name string) (unix.Stat_t, error) {
	var st unix.Stat_t
	var err error
	if name == "." {
		err = unix.Fstat(d.fd, &st)
	} else {
		err = d.at(name, func(fd int, base string) error {
			return retry0(func() error { return unix.Fstatat(fd, base, &st, unix.AT_SYMLINK_NOFOLLOW) })
		})
	}
	if err != nil {
		return st, d.err("stat", name, err)
	}
	return st, nil
}

// Look is Lstat for a name that may be absent, which is no error: a caller that looks for many need not pay for one.
func (d *Dir) Look(name string) (st unix.Stat_t, ok bool, err error) {
	err = d.at(name, func(fd int, base string) error {
		return retry0(func() error { return unix.Fstatat(fd, base, &st, unix.AT_SYMLINK_NOFOLLOW) })
	})
	if err == unix.ENOENT { //nolint:errorlint // system calls return bare numbers
		return st, false, nil
	}
	if err != nil {
		return st, false, d.err("stat", name, err)
	}
	return st, true, nil
}

// Exists reports whether name exists.
func (d *Dir) Exists(name string) (bool, error) {
	_, err := d.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// Readlink returns the target of a symbolic link.
func (d *Dir) Readlink(name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	var n int
	err := d.at(name, func(fd int, base string) error {
		var err error
		n, err = retry(func() (int, error) { return unix.Readlinkat(fd, base, buf) })
		return err
	})
	if err != nil {
		return "", d.err("readlink", name, err)
	}
	return string(buf[:n]), nil
}

// Link makes newname below to another name of oldname below d. It does not follow oldname.
func (d *Dir) Link(oldname string, to *Dir, newname string) error {
	if err := to.before(OpLink, newname); err != nil {
		return err
	}
	err := d.at(oldname, func(ofd int, obase string) error {
		return to.at(newname, func(nfd int, nbase string) error {
			return retry0(func() error { return unix.Linkat(ofd, obase, nfd, nbase, 0) })
		})
	})
	if err != nil {
		return &os.LinkError{Op: "link", Old: path.Join(d.Path(), oldname), New: path.Join(to.Path(), newname), Err: err}
	}
	return nil
}

// Symlink makes a symbolic link called name.
func (d *Dir) Symlink(target, name string) error {
	if err := d.before(OpSymlink, name); err != nil {
		return err
	}
	err := d.at(name, func(fd int, base string) error {
		return retry0(func() error { return unix.Symlinkat(target, fd, base) })
	})
	if err != nil {
		return d.err("symlink", name, err)
	}
	return nil
}

// Mknod makes a device, fifo or socket; mode holds the type. The permission bits are exact, whatever the umask.
func (d *Dir) Mknod(name string, mode uint32, dev uint64) error {
	if err := d.before(OpMknod, name); err != nil {
		return err
	}
	err := d.at(name, func(fd int, base string) error {
		if err := retry0(func() error { return unix.Mknodat(fd, base, mode, int(dev)) }); err != nil {
			return err
		}
		return unix.Fchmodat(fd, base, mode&0o7777, 0)
	})
	if err != nil {
		return d.err("mknod", name, err)
	}
	return nil
}

// Rename moves oldname below d to newname below to. Flags are those of renameat2(2), 0 for a plain rename.
func (d *Dir) Rename(oldname string, to *Dir, newname string, flags uint) error {
	if err := to.before(OpRename, newname); err != nil {
		return err
	}
	err := d.at(oldname, func(ofd int, obase string) error {
		return to.at(newname, func(nfd int, nbase string) error {
			return retry0(func() error { return unix.Renameat2(ofd, obase, nfd, nbase, flags) })
		})
	})
	if err != nil {
		return &os.LinkError{Op: "rename", Old: path.Join(d.Path(), oldname), New: path.Join(to.Path(), newname), Err: err}
	}
	return nil
}

// Unlink removes a name that is not a directory.
func (d *Dir) Unlink(name string) error { return d.unlink(name, 0) }

// Rmdir removes an empty directory.
func (d *Dir) Rmdir(name string) error { return d.unlink(name, unix.AT_REMOVEDIR) }

func (d *Dir) unlink(name string, flags int) error {
	if err := d.before(OpUnlink, name); err != nil {
		return err
	}
	err := d.at(name, func(fd int, base string) error {
		return retry0(func() error { return unix.Unlinkat(fd, base, flags) })
	})
	if err != nil {
		return d.err("unlink", name, err)
	}
	return nil
}

// Walk calls f with the inode of name and, if that is a directory, of everything below it, each directory before its
// entries. An inode with several names is passed once for each. Names removed meanwhile are left out.
func (d *Dir) Walk(name string, f func(st *unix.Stat_t) error) error {
	st, err := d.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = f(&st)
	}
	if err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return err
	}
	sub, err := d.OpenDir(name)
	if err != nil {
		return IgnoreNotExist(err)
	}
	names, err := sub.ReadNames()
	for _, n := range names {
		if err == nil {
			err = sub.Walk(n, f)
		}
	}
	return errors.Join(IgnoreNotExist(err), sub.Close())
}

// Chown sets owner and group of name itself, never of its target.
func (d *Dir) Chown(name string, uid, gid uint32) error {
	if err := d.before(OpChown, name); err != nil {
		return err
	}
	err := d.at(name, func(fd int, base string) error {
		return retry0(func() error {
			return unix.Fchownat(fd, base, int(uid), int(gid), unix.AT_SYMLINK_NOFOLLOW)
		})
	})
	if err != nil {
		return d.err("chown", name, err)
	}
	return nil
}

// Chmod sets the permission bits of name. A symbolic link returns ELOOP or EOPNOTSUPP.
func (d *Dir) Chmod(name string, mode uint32) error {
	if err := d.before(OpChmod, name); err != nil {
		return err
	}
	err := d.at(name, func(fd int, base string) error {
		return retry0(func() error { return unix.Fchmodat(fd, base, mode&0o7777, unix.AT_SYMLINK_NOFOLLOW) })
	})
	if err != nil {
		return d.err("chmod", name, err)
	}
	return nil
}

// Utimes sets access and modification time of name itself to t.
func (d *Dir) Utimes(name string, t unix.Timespec) error {
	if err := d.before(OpUtimes, name); err != nil {
		return err
	}
	ts := []unix.Timespec{t, t}
	err := d.at(name, func(fd int, base string) error {
		return retry0(func() error { return unix.UtimesNanoAt(fd, base, ts, unix.AT_SYMLINK_NOFOLLOW) })
	})
	if err != nil {
		return d.err("utimes", name, err)
	}
	return nil
}

// ReadNames returns the names in d, unordered.
func (d *Dir) ReadNames() ([]string, error) {
	return readDir(d, func(f *os.File) ([]string, error) { return f.Readdirnames(-1) })
}

// ReadDir returns the entries of d, unordered. It may be called again.
func (d *Dir) ReadDir() ([]fs.DirEntry, error) {
	return readDir(d, func(f *os.File) ([]fs.DirEntry, error) { return f.ReadDir(-1) })
}

// readDir calls read with its own open file, so that readers do not share a position.
func readDir[T any](d *Dir, read func(*os.File) ([]T, error)) ([]T, error) {
	fd, err := d.openat(".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, d.err("open", ".", err)
	}
	f := os.NewFile(uintptr(fd), d.Path())
	ents, err := read(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("read directory: %w", err)
	}
	return ents, nil
}

// ReadFile returns the content of a file of at most limit bytes. A larger file is an error that unwraps to EFBIG.
func (d *Dir) ReadFile(name string, limit int64) ([]byte, error) {
	f, err := d.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, d.err("read", name, fmt.Errorf("more than %d bytes: %w", limit, unix.EFBIG))
	}
	return b, nil
}

// WriteFile replaces a file atomically: after a crash of the process it has either the old content or the new. With
// sync, content and name are on the disk when WriteFile returns. The temporary name is name followed by ".tmp-" and a
// suffix derived from the time.
func (d *Dir) WriteFile(name string, data []byte, mode uint32, sync bool) (err error) {
	tmp := name + ".tmp-" + strconv.FormatInt(time.Now().UnixNano(), 36)
	f, err := d.OpenFile(tmp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, IgnoreNotExist(d.Unlink(tmp)))
		}
	}()
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil && sync {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := d.Rename(tmp, d, name, 0); err != nil {
		return err
	}
	if !sync {
		return nil
	}
	if dir := path.Dir(name); dir != "." {
		parent, err := d.OpenDir(dir)
		if err != nil {
			return err
		}
		return errors.Join(parent.Sync(), parent.Close())
	}
	return d.Sync()
}

// SetAttr sets owner, mode and times of the directory itself, in the order that keeps set-id bits.
func (d *Dir) SetAttr(uid, gid, mode uint32, mtime unix.Timespec) error {
	f := File{fd: d.fd, dir: d, name: "."}
	if err := f.Chown(uid, gid); err != nil {
		return err
	}
	if err := f.Chmod(mode); err != nil {
		return err
	}
	return f.Utimes(mtime)
}

// TouchSelf sets access and modification time of the directory itself to now.
func (d *Dir) TouchSelf() error {
	if err := d.before(OpUtimes, "."); err != nil {
		return err
	}
	now := [2]unix.Timespec{{Nsec: unix.UTIME_NOW}, {Nsec: unix.UTIME_NOW}}
	if err := futimens(d.fd, &now); err != nil {
		return d.err("utimes", ".", err)
	}
	return nil
}

// Sync makes the names in the directory durable.
func (d *Dir) Sync() error {
	if err := d.before(OpSync, "."); err != nil {
		return err
	}
	if err := retry0(func() error { return unix.Fsync(d.fd) }); err != nil {
		return d.err("sync", ".", err)
	}
	return nil
}

// SyncFS makes everything on the file system of the directory durable.
func (d *Dir) SyncFS() error {
	if err := d.before(OpSyncFS, "."); err != nil {
		return err
	}
	if err := retry0(func() error { return unix.Syncfs(d.fd) }); err != nil {
		return d.err("syncfs", ".", err)
	}
	return nil
}
