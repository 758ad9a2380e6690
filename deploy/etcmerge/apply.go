package etcmerge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
)

// tmpName names an incomplete entry, in the new etc itself, until it gets its own name. Only one exists at a time, so
// one name is enough, and the next run after a crash finds it.
const tmpName = ".ostree-snapshotter-etc-merge.tmp"

// Apply makes the changes in to, the new etc, which is a copy of the new defaults. Files are copied from current as
// they are now, with owner, mode, extended attributes and modification time. Several names of one inode become several
// files. Devices, FIFOs and sockets are created anew. Names that have vanished from current since the plan was made are
// removed. A directory that the new defaults lack and a change needs is made as in current.
//
// A plan with conflicts is refused before anything is written. Each name appears, or is replaced, at once and complete,
// but not all names at once: after an error or a crash some changes are made, and applying the plan again makes them
// all. The result is durable after a syncfs, which is up to the caller.
func (p *Plan) Apply(ctx context.Context, current, to *atfs.Dir) (err error) {
	if err := p.Err(); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("merge /etc: %w", err)
		}
	}()
	if err := to.RemoveAll(tmpName); err != nil {
		return err
	}
	m := merge{from: current, to: to}
	for _, c := range p.Changes {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := m.change(c); err != nil {
			return errors.Join(err, to.RemoveAll(tmpName))
		}
	}
	return nil
}

type merge struct {
	from, to *atfs.Dir
}

func (m *merge) change(c Change) error {
	if c.Kind == Removed {
		return m.remove(c.Path)
	}
	st, err := m.from.Lstat(c.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		return m.remove(c.Path)
	case err != nil:
		return err
	case isDir(st.Mode) != c.Dir:
		return fmt.Errorf("%q has changed since it was compared", path.Join("/etc", c.Path))
	}
	if err := m.parents(path.Dir(c.Path)); err != nil {
		return err
	}
	if c.Dir {
		return m.dir(c.Path, &st)
	}
	return m.file(c.Path, &st)
}

// remove removes a name and everything below it. A name that does not exist counts as removed.
func (m *merge) remove(name string) error {
	ok, err := m.to.Exists(name)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || err == nil && !ok {
		return nil
	}
	if err != nil {
		return err
	}
	return m.to.RemoveAll(name)
}

// parents creates a directory and its parents where they are missing.
func (m *merge) parents(name string) error {
	if name == "." {
		return nil
	}
	if ok, err := m.to.Exists(name); ok || err != nil {
		return err
	}
	if err := m.parents(path.Dir(name)); err != nil {
		return err
	}
	st, err := m.from.Lstat(name)
	if err != nil {
		return err
	}
	return m.newDir(name, &st)
}

// dir makes a directory as in current. Its entries stay.
func (m *merge) dir(name string, st *unix.Stat_t) error {
	if name != "." {
		if ok, err := m.to.Exists(name); err != nil {
			return err
		} else if !ok {
			return m.newDir(name, st)
		}
	}
	return m.dirAttributes(name, name, st)
}

// newDir creates a directory that is complete when it gets its name: an existing directory is taken for a default.
func (m *merge) newDir(name string, st *unix.Stat_t) error {
	if err := m.to.Mkdir(tmpName, 0o700); err != nil {
		return err
	}
	if err := m.dirAttributes(name, tmpName, st); err != nil {
		return err
	}
	return m.to.Rename(tmpName, m.to, name, unix.RENAME_NOREPLACE)
}

func (m *merge) dirAttributes(name, as string, st *unix.Stat_t) error {
	f, err := m.to.OpenFile(as, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	return errors.Join(m.attributes(name, f, st), f.Close())
}

// file copies anything but a directory into place.
func (m *merge) file(name string, st *unix.Stat_t) error {
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		err = m.regular(name, st)
	case unix.S_IFLNK:
		err = m.symlink(name, st)
	default:
		if err = m.to.Mknod(tmpName, st.Mode&unix.S_IFMT|0o600, st.Rdev); err == nil {
			err = m.attributes(name, named{m.to, tmpName}, st)
		}
	}
	if err != nil {
		return err
	}
	if err := m.to.Utimes(tmpName, st.Mtim); err != nil {
		return err
	}
	return m.to.Rename(tmpName, m.to, name, 0)
}

func (m *merge) regular(name string, st *unix.Stat_t) error {
	src, err := m.from.Open(name)
	if err != nil {
		return err
	}
	defer src.Close()
	f, err := m.to.OpenFile(tmpName, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err = f.CopyFrom(src); err == nil {
		err = m.attributes(name, f, st)
	}
	return errors.Join(err, f.Close())
}

func (m *merge) symlink(name string, st *unix.Stat_t) error {
	target, err := m.from.Readlink(name)
	if err != nil {
		return err
	}
	if err := m.to.Symlink(target, tmpName); err != nil {
		return err
	}
	return m.attributes(name, named{m.to, tmpName}, st)
}

// An inode can be given attributes: an open file or directory, or an inode that can only be named.
type inode interface {
	Chown(uid, gid uint32) error
	Chmod(mode uint32) error
	Xattrs() (map[string][]byte, error)
	Setxattr(attr string, value []byte) error
	Removexattr(attr string) error
}

// named is a symbolic link or a special file.
type named struct {
	dir  *atfs.Dir
	name string
}

func (n named) Chown(uid, gid uint32) error              { return n.dir.Chown(n.name, uid, gid) }
func (n named) Chmod(mode uint32) error                  { return n.dir.Chmod(n.name, mode) }
func (n named) Xattrs() (map[string][]byte, error)       { return n.dir.Xattrs(n.name) }
func (n named) Setxattr(attr string, value []byte) error { return n.dir.Setxattr(n.name, attr, value) }
func (n named) Removexattr(attr string) error            { return n.dir.Removexattr(n.name, attr) }

// attributes gives an inode the owner, mode and extended attributes that name has in current. The order matters:
// changing the owner clears set-id bits and capabilities, and an access control list is part of the mode.
func (m *merge) attributes(name string, to inode, st *unix.Stat_t) error {
	if err := to.Chown(st.Uid, st.Gid); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		if err := to.Chmod(st.Mode & 0o7777); err != nil {
			return err
		}
	}
	want, err := m.from.Xattrs(name)
	if err != nil {
		return err
	}
	have, err := to.Xattrs()
	if err != nil {
		return err
	}
	for _, attr := range slices.Sorted(maps.Keys(have)) {
		// The kernel labels new inodes, and labels cannot be removed.
		if _, ok := want[attr]; !ok && attr != atfs.XattrSELinux {
			if err := to.Removexattr(attr); err != nil {
				return err
			}
		}
	}
	for _, attr := range slices.Sorted(maps.Keys(want)) {
		if old, ok := have[attr]; ok && bytes.Equal(old, want[attr]) {
			continue
		}
		if err := to.Setxattr(attr, want[attr]); err != nil {
			return err
		}
	}
	return nil
}
