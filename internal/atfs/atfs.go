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

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Op names an operation that changes the disk, as a [Hook] sees it.
type Op string

// The operations, named after their system calls.
const (
	OpMkdir    Op = "mkdir"
	OpCreate   Op = "create"   // open that may create or truncate
	OpTmpFile  Op = "tmpfile"  // open O_TMPFILE
	OpWrite    Op = "write"    // write to a File
	OpTruncate Op = "truncate" //
	OpLink     Op = "link"     // also the link that gives a temporary file its name
	OpSymlink  Op = "symlink"  //
	OpMknod    Op = "mknod"    //
	OpRename   Op = "rename"   //
	OpUnlink   Op = "unlink"   // also rmdir
	OpChown    Op = "chown"    //
	OpChmod    Op = "chmod"    //
	OpUtimes   Op = "utimes"   //
	OpSetxattr Op = "setxattr" // also removexattr
	OpClone    Op = "clone"    // reflink of a whole file
	OpSync     Op = "sync"     // fsync of a file or a directory
	OpSyncFS   Op = "syncfs"   //
	OpSetFlags Op = "setflags" // the immutable flag
	OpVerity   Op = "verity"   // fs-verity for a file
	OpFreeze   Op = "freeze"   // and thaw, of a whole file system
)

// A Hook is called before each operation that changes the disk, with the path below the directory the hook was set
// on. An error it returns is returned by the operation, which is then not executed. It may be called by several
// goroutines at once.
type Hook func(op Op, name string) error

// Dir is an open directory. Its methods may be called by several goroutines at once, except Close.
type Dir struct {
	fd   int
	name string // path below the first Dir, "." for that one
	root string // path that was given to Open, for error texts
	hook Hook
}

// Open opens the directory at an absolute or relative path of the process. Symbolic links in it are followed: it is
// a path of the operator's, not of an image's.
func Open(name string) (*Dir, error) {
	fd, err := retry(func() (int, error) {
		return unix.Open(name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return &Dir{fd: fd, name: ".", root: name}, nil
}

// OpenMount opens the root directory of a file system that fsmount(2) has mounted nowhere. The descriptor stays the caller's;
// the name stands for the directory in error texts.
func OpenMount(fd int, name string) (*Dir, error) {
	dir, err := retry(func() (int, error) {
		return unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return &Dir{fd: dir, name: ".", root: name}, nil
}

// WithHook returns a second handle to the directory whose operations, and those of every directory and file opened
// from it, are reported to hook. The original is not changed; both must be closed.
func (d *Dir) WithHook(hook Hook) (*Dir, error) {
	fd, err := unix.FcntlInt(uintptr(d.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, d.err("dup", ".", err)
	}
	return &Dir{fd: fd, name: ".", root: d.Path(), hook: hook}, nil
}

// Adopt returns a Dir of a descriptor of a directory, which it takes over, with a path for messages.
func Adopt(fd int, path string) *Dir { return &Dir{fd: fd, name: ".", root: path} }

// Called returns the directory with another path: the one by which others reach it. It takes over the descriptor of d,
// which must not be used any more.
func (d *Dir) Called(path string) *Dir { return &Dir{fd: d.fd, name: ".", root: path, hook: d.hook} }

// Close closes the directory.
func (d *Dir) Close() error {
	if d.fd < 0 {
		return nil
	}
	err := unix.Close(d.fd)
	d.fd = -1
	return err
}

// FD returns the descriptor. It stays owned by d.
func (d *Dir) FD() int { return d.fd }

// Path returns the path that the directory had when it was opened. It is for messages, and for the few interfaces
// that take nothing else (mount options); never open it to reach what a name of an image leads to.
func (d *Dir) Path() string { return path.Join(d.root, d.name) }

func (d *Dir) err(op, name string, err error) error {
	return &fs.PathError{Op: op, Path: path.Join(d.Path(), name), Err: err}
}

func (d *Dir) before(op Op, name string) error {
	if d.hook == nil {
		return nil
	}
	if err := d.hook(op, path.Join(d.name, name)); err != nil {
		return d.err(string(op), name, err)
	}
	return nil
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

// openat opens name below d without following any symbolic link.
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

// at calls f with a directory descriptor and a single component that together name the same thing as name below d.
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

// OpenDir opens a directory below d. "." gives a second handle to d itself.
func (d *Dir) OpenDir(name string) (*Dir, error) {
	fd, err := d.openat(name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, d.err("open", name, err)
	}
	return &Dir{fd: fd, name: path.Join(d.name, name), root: d.root, hook: d.hook}, nil
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

// MkdirAll makes a directory and its missing parents, each with mode. One that exists already is left as it is.
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

// OpenFile opens a file below d. Flags are those of open(2); O_CREAT gives exactly mode only under umask 0.
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

// Open opens a file below d for reading. It does not block, not even where somebody has put a fifo.
func (d *Dir) Open(name string) (*File, error) {
	return d.OpenFile(name, unix.O_RDONLY|unix.O_NONBLOCK, 0)
}

// TmpFile makes a file without a name in d; [File.LinkTo] gives it one, closing it without that drops it. It is
// writable and readable.
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

// Lstat describes what name is, without following it.
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

// Exists reports whether there is something called name.
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

// Link gives oldname below d the further name newname below to. It does not follow oldname.
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

// RemoveAll removes name and everything below it, without following links or crossing mounts. Nothing there is
// success.
func (d *Dir) RemoveAll(name string) error {
	err := d.Unlink(name)
	switch {
	case err == nil, errors.Is(err, fs.ErrNotExist):
		return nil
	case !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM):
		return err
	}
	sub, err := d.OpenDir(name)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	names, err := sub.ReadNames()
	err = IgnoreNotExist(err) // somebody else has removed the directory
	for _, n := range names {
		if err == nil {
			err = sub.RemoveAll(n)
		}
	}
	if err = errors.Join(err, sub.Close()); err != nil {
		return err
	}
	if err := d.Rmdir(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Walk calls f with the inode of name and, if that is a directory, of everything below it, each directory before what
// is in it. An inode with several names is seen as often. What is removed meanwhile is left out.
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

// Chown sets owner and group of name itself, never of what it links to.
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

// Chmod sets the permission bits of name. A symbolic link is refused with ELOOP or EOPNOTSUPP.
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

// Setxattr sets an extended attribute of name itself. It works on every type of file.
func (d *Dir) Setxattr(name, attr string, value []byte) error {
	if err := d.before(OpSetxattr, name); err != nil {
		return err
	}
	err := d.at(name, func(fd int, base string) error {
		return retry0(func() error { return unix.Lsetxattr(procPath(fd, base), attr, value, 0) })
	})
	if err != nil {
		return d.err("setxattr "+attr, name, err)
	}
	return nil
}

// Removexattr removes an extended attribute of name itself.
func (d *Dir) Removexattr(name, attr string) error {
	if err := d.before(OpSetxattr, name); err != nil {
		return err
	}
	err := d.at(name, func(fd int, base string) error {
		return retry0(func() error { return unix.Lremovexattr(procPath(fd, base), attr) })
	})
	if err != nil {
		return d.err("removexattr "+attr, name, err)
	}
	return nil
}

// Xattrs returns the extended attributes of name itself ("." for d). A file system without any gives none.
func (d *Dir) Xattrs(name string) (map[string][]byte, error) {
	var m map[string][]byte
	f := func(fd int, base string) error {
		p := procPath(fd, base)
		var err error
		m, err = readXattrs(
			func(b []byte) (int, error) { return unix.Llistxattr(p, b) },
			func(attr string, b []byte) (int, error) { return unix.Lgetxattr(p, attr, b) })
		return err
	}
	var err error
	if name == "." {
		m, err = readXattrs(
			func(b []byte) (int, error) { return unix.Flistxattr(d.fd, b) },
			func(attr string, b []byte) (int, error) { return unix.Fgetxattr(d.fd, attr, b) })
	} else {
		err = d.at(name, f)
	}
	if err != nil {
		return nil, d.err("listxattr", name, err)
	}
	return m, nil
}

func readXattrs(list func([]byte) (int, error), get func(string, []byte) (int, error)) (map[string][]byte, error) {
	names, err := readSized(list)
	if err != nil {
		if errors.Is(err, unix.ENOTSUP) {
			return nil, nil
		}
		return nil, err
	}
	var m map[string][]byte
	for attr := range strings.SplitSeq(string(names), "\x00") {
		if attr == "" {
			continue
		}
		v, err := readSized(func(b []byte) (int, error) { return get(attr, b) })
		if err != nil {
			if errors.Is(err, unix.ENODATA) { // removed since it was listed
				continue
			}
			return nil, err
		}
		if m == nil {
			m = make(map[string][]byte)
		}
		m[attr] = v
	}
	return m, nil
}

// readSized calls a system call that fills a buffer or answers ERANGE, first with an empty buffer for the size.
func readSized(f func([]byte) (int, error)) ([]byte, error) {
	for {
		n, err := retry(func() (int, error) { return f(nil) })
		if err != nil || n == 0 {
			return nil, err
		}
		buf := make([]byte, n)
		n, err = retry(func() (int, error) { return f(buf) })
		if err == unix.ERANGE { //nolint:errorlint // system calls return bare numbers
			continue
		}
		if err != nil {
			return nil, err
		}
		return buf[:n], nil
	}
}

// procPath is a path to a name in an open directory, for the system calls that take no directory descriptor.
func procPath(fd int, base string) string { return "/proc/self/fd/" + strconv.Itoa(fd) + "/" + base }

// ReadNames returns the names in d, in no order.
func (d *Dir) ReadNames() ([]string, error) {
	return readDir(d, func(f *os.File) ([]string, error) { return f.Readdirnames(-1) })
}

// ReadDir returns the entries of d, in no order. It may be called again.
func (d *Dir) ReadDir() ([]fs.DirEntry, error) {
	return readDir(d, func(f *os.File) ([]fs.DirEntry, error) { return f.ReadDir(-1) })
}

// readDir calls read with an open file of its own, so that readers do not share a position.
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

// ReadFile returns the content of a file of at most limit bytes; a larger one is an error that unwraps to EFBIG.
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

// WriteFile replaces a file atomically: after a crash of the process it has its old content or the new one, and
// with sync the new one is on the disk, name included, before WriteFile returns. The temporary name is name with
// ".tmp-" and a random suffix behind it.
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

// SetAttr gives the directory itself owner, mode and times, in the order that keeps set-id bits.
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

// TouchSelf sets access and modification time of the directory itself to the present.
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

// SetxattrSelf sets an extended attribute of the directory itself.
func (d *Dir) SetxattrSelf(attr string, value []byte) error {
	f := File{fd: d.fd, dir: d, name: "."}
	return f.Setxattr(attr, value)
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

// Room returns an error that unwraps to ENOSPC if the file system of the directory has less than size bytes free. A file
// system that does not say how large it is has room.
func (d *Dir) Room(size int64) error {
	space, known, err := d.Space()
	if err == nil && known && size > 0 && uint64(size) > space.Free {
		err = d.err("write", ".", fmt.Errorf("file of %d bytes: %w", size, unix.ENOSPC))
	}
	return err
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

// File is an open file. Its methods are those of the same names on *os.File where there are any, without the
// runtime's poller: files of a store never block.
type File struct {
	fd   int
	dir  *Dir
	name string
	once sync.Once
}

func (f *File) err(op string, err error) error { return f.dir.err(op, f.name, err) }

// FD returns the descriptor. It stays owned by f.
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

// Read reads up to len(b) bytes, io.EOF at the end.
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

// ReadAt reads len(b) bytes from off, fewer only at the end of the file, with io.EOF.
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

// Stat describes the file.
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

// Setxattr sets an extended attribute. File capabilities are lost by a later Chown.
func (f *File) Setxattr(attr string, value []byte) error {
	if err := f.dir.before(OpSetxattr, f.name); err != nil {
		return err
	}
	if err := retry0(func() error { return unix.Fsetxattr(f.fd, attr, value, 0) }); err != nil {
		return f.err("setxattr "+attr, err)
	}
	return nil
}

// Removexattr removes an extended attribute.
func (f *File) Removexattr(attr string) error {
	if err := f.dir.before(OpSetxattr, f.name); err != nil {
		return err
	}
	if err := retry0(func() error { return unix.Fremovexattr(f.fd, attr) }); err != nil {
		return f.err("removexattr "+attr, err)
	}
	return nil
}

// Xattrs returns the extended attributes.
func (f *File) Xattrs() (map[string][]byte, error) {
	m, err := readXattrs(
		func(b []byte) (int, error) { return unix.Flistxattr(f.fd, b) },
		func(attr string, b []byte) (int, error) { return unix.Fgetxattr(f.fd, attr, b) })
	if err != nil {
		return nil, f.err("listxattr", err)
	}
	return m, nil
}

// LinkTo gives a file made by [Dir.TmpFile] its name below to. A name that is taken is fs.ErrExist.
func (f *File) LinkTo(to *Dir, name string) error {
	if err := to.before(OpLink, name); err != nil {
		return err
	}
	err := to.at(name, func(fd int, base string) error {
		err := retry0(func() error { return unix.Linkat(f.fd, "", fd, base, unix.AT_EMPTY_PATH) })
		if err != unix.ENOENT { //nolint:errorlint // system calls return bare numbers
			return err
		}
		// Without CAP_DAC_READ_SEARCH the kernel wants the detour through /proc, which takes longer.
		return retry0(func() error {
			return unix.Linkat(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(f.fd), fd, base, unix.AT_SYMLINK_FOLLOW)
		})
	})
	if err != nil {
		return to.err("link", name, err)
	}
	return nil
}

// CloneFrom makes the content of f a reflink of that of src. File systems that cannot answer EOPNOTSUPP or EXDEV.
func (f *File) CloneFrom(src *File) error {
	if err := f.dir.before(OpClone, f.name); err != nil {
		return err
	}
	if err := retry0(func() error { return unix.IoctlFileClone(f.fd, src.fd) }); err != nil {
		return f.err("clone", err)
	}
	return nil
}

// TryCloneFrom is CloneFrom that reports false, and no error, where the file system cannot share blocks between the two.
func (f *File) TryCloneFrom(src *File) (bool, error) {
	err := f.CloneFrom(src)
	for _, cannot := range []error{unix.EOPNOTSUPP, unix.EXDEV, unix.EINVAL, unix.ENOTTY} {
		if errors.Is(err, cannot) {
			return false, nil
		}
	}
	return err == nil, err
}

// CopyFrom makes the content of f, which is empty, that of src, which has not been read from: a reflink where the
// file system can, else a copy.
func (f *File) CopyFrom(src *File) error {
	if cloned, err := f.TryCloneFrom(src); err != nil || cloned {
		return err
	}
	if err := f.dir.before(OpWrite, f.name); err != nil {
		return err
	}
	for {
		// At most what one call can copy, and far from overflowing its ssize_t.
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
		// The kernel cannot copy between these file systems: go on where it stopped.
		buf := copyBuffers.Get().(*[128 << 10]byte) //nolint:forcetypeassert // there is nothing else in the pool
		defer copyBuffers.Put(buf)
		_, err = io.CopyBuffer(struct{ io.Writer }{f}, struct{ io.Reader }{src}, buf[:])
		return err
	}
}

// Overwrite gives the file called name the content, owner, mode, extended attributes and time of src, in place: they show
// under every name of the inode, and to whoever has it open. It is not atomic: after an error, or a crash, the file has some
// of src and some of what it had before.
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
	// Writing and chown(2) take set-id bits and capabilities away, and all of it changes the time.
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

// takeXattrs gives f the extended attributes of src and no others.
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

// Sync makes content and attributes of the file durable; not its name, which [Dir.Sync] of its directory does.
func (f *File) Sync() error {
	if err := f.dir.before(OpSync, f.name); err != nil {
		return err
	}
	if err := retry0(func() error { return unix.Fsync(f.fd) }); err != nil {
		return f.err("sync", err)
	}
	return nil
}
