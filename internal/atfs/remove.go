package atfs

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"

	"golang.org/x/sys/unix"
)

// RemoveAll removes name and everything below it, without following links or entering mounts. A name that does not
// exist is success.
//
// Files and directories that it removes lose their immutable and append-only flags if these are in the way: a container
// can set them on its own files. A file that still cannot be removed, such as a mount point, does not stop the rest:
// the error names each such file, up to maxRemoveErrors.
func (d *Dir) RemoveAll(name string) error { return d.RemoveAllWith(name, nil) }

// RemoveAllWith is RemoveAll with a function that is called before each file is removed, to wait or to stop: after an
// error of it nothing more is removed.
func (d *Dir) RemoveAllWith(name string, before func() error) error {
	r := remover{before: before}
	r.remove(d, name, false)
	if r.more > 0 {
		r.errs = append(r.errs, fmt.Errorf("%d more files could not be removed", r.more))
	}
	return errors.Join(r.errs...)
}

// maxRemoveErrors bounds the errors of one RemoveAll: on a broken disk each file would have its own.
const maxRemoveErrors = 10

// A remover is one call of RemoveAllWith.
type remover struct {
	before  func() error // nil does nothing
	stopped bool         // by before

	errs []error
	more int // errors beyond maxRemoveErrors
}

// stop asks before whether to stop.
func (r *remover) stop() bool {
	if r.before == nil || r.stopped {
		return r.stopped
	}
	if err := r.before(); err != nil {
		r.stopped = true
		r.failed(err)
	}
	return r.stopped
}

// failed records an error. It returns the result of remove.
func (r *remover) failed(err error) (gone bool) {
	if len(r.errs) < maxRemoveErrors {
		r.errs = append(r.errs, err)
	} else {
		r.more++
	}
	return false
}

// remove removes name in d, and reports whether it is gone. below is set if d is being removed too, so that its flags
// may be cleared.
func (r *remover) remove(d *Dir, name string, below bool) (gone bool) {
	if r.stop() {
		return false
	}
	err := d.Unlink(name)
	if errors.Is(err, unix.EPERM) {
		// Immutable or append-only, or in such a directory. A directory returns this error rather than EISDIR.
		st, serr := d.Lstat(name)
		switch {
		case serr != nil:
			err = serr
		case st.Mode&unix.S_IFMT == unix.S_IFDIR:
			err = unix.EISDIR
		default:
			if err = d.unprotect(name, below); err == nil {
				err = d.Unlink(name)
			}
		}
	}
	switch {
	case err == nil, errors.Is(err, fs.ErrNotExist):
		return true
	case errors.Is(err, unix.EISDIR):
		return r.removeDir(d, name, below)
	}
	return r.failed(err)
}

func (r *remover) removeDir(d *Dir, name string, below bool) (gone bool) {
	sub, err := d.openSameMount(name)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return true
		}
		return r.failed(err)
	}
	names, err := sub.ReadNames()
	empty := true
	for _, n := range names {
		empty = r.remove(sub, n, true) && empty
	}
	if err = errors.Join(IgnoreNotExist(err), sub.Close()); err != nil { // another process may have removed the directory
		return r.failed(err)
	}
	if !empty {
		return false // the reason is recorded
	}
	err = d.Rmdir(name)
	if errors.Is(err, unix.EPERM) {
		if err = d.unprotect(name, below); err == nil {
			err = d.Rmdir(name)
		}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return r.failed(err)
	}
	return true
}

// openSameMount opens the directory name, unless it is a mount point: then the error is EBUSY, as for rmdir(2).
func (d *Dir) openSameMount(name string) (*Dir, error) {
	how := unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	}
	fd, err := retry(func() (int, error) { return unix.Openat2(d.fd, name, &how) })
	if errors.Is(err, unix.EXDEV) {
		err = unix.EBUSY
	}
	if err != nil {
		return nil, d.err("open", name, err)
	}
	return &Dir{fd: fd, name: path.Join(d.name, name), root: d.root, hook: d.hook}, nil
}

// unprotect clears the immutable and append-only flags of name and, with self, those of d.
func (d *Dir) unprotect(name string, self bool) error {
	if err := d.before(OpSetFlags, name); err != nil {
		return err
	}
	err := d.clearProtection(name)
	if err == nil && self {
		err = changeFlags(d.fd, immutableFlag|appendFlag, 0)
	}
	if err != nil {
		return d.err("set flags", name, err)
	}
	return nil
}

// clearProtection opens only regular files and directories: opening a device could have effects.
func (d *Dir) clearProtection(name string) error {
	pathFD, err := d.openat(name, unix.O_PATH, 0)
	if err != nil {
		return IgnoreNotExist(err)
	}
	defer unix.Close(pathFD)
	var st unix.Stat_t
	if err := retry0(func() error { return unix.Fstat(pathFD, &st) }); err != nil {
		return err
	}
	if t := st.Mode & unix.S_IFMT; t != unix.S_IFREG && t != unix.S_IFDIR {
		return nil
	}
	fd, err := retry(func() (int, error) {
		return unix.Open("/proc/self/fd/"+strconv.Itoa(pathFD), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return changeFlags(fd, immutableFlag|appendFlag, 0)
}
