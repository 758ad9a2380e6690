// Package mounts finds a directory again by way of another mount of the file system that it is on.
//
// The kernel makes hard links within one mount only: between two mounts of one file system, link(2) is EXDEV, although
// nothing that stat(2) says tells them apart. On a host that ostree has booted, for one, /var is a mount of its own of a
// directory that is also below /sysroot. What has a path below both can be linked when it is reached by way of the same
// one.
package mounts

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
)

// ErrUnreachable reports that a directory cannot be reached by way of a mount.
var ErrUnreachable = errors.New("not below this mount")

// below returns what is left of a path below a directory, "." for the directory itself.
func below(dir, name string) (rest string, ok bool) {
	if name == dir {
		return ".", true
	}
	return strings.CutPrefix(name, strings.TrimSuffix(dir, "/")+"/")
}

// place is where a directory is.
type place struct {
	mount *mountinfo.Info
	path  string // below the root of the file system
}

// find returns where an open directory is, by the mounts of this process.
func find(d *atfs.Dir, mounts []*mountinfo.Info) (place, error) {
	id, err := mountID(d)
	if err != nil {
		return place{}, err
	}
	name, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(d.FD()))
	if err != nil {
		return place{}, err
	}
	for _, m := range mounts {
		if m.ID != id {
			continue
		}
		if rest, ok := below(m.Mountpoint, name); ok {
			return place{m, path.Join(m.Root, rest)}, nil
		}
	}
	return place{}, fmt.Errorf("mount of %s: %w", d.Path(), ErrUnreachable)
}

// mountID returns the number of the mount by way of which a directory was opened.
func mountID(d *atfs.Dir) (int, error) {
	b, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(d.FD()))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "mnt_id:"); ok {
			return strconv.Atoi(strings.TrimSpace(v))
		}
	}
	return 0, fmt.Errorf("/proc/self/fdinfo says no mount: %w", unix.ENOSYS)
}

// ReopenVia opens a directory a second time, by way of the mount by way of which via was opened. If it is not below that
// mount, or something else is mounted over it there, the error is ErrUnreachable.
func ReopenVia(dir, via *atfs.Dir) (_ *atfs.Dir, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("open %s by way of the mount of %s: %w", dir.Path(), via.Path(), err)
		}
	}()
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, err
	}
	from, err := find(dir, mounts)
	if err != nil {
		return nil, err
	}
	to, err := find(via, mounts)
	if err != nil {
		return nil, err
	}
	rest, ok := below(to.mount.Root, from.path)
	if !ok || !sameDevice(from.mount, to.mount) {
		return nil, ErrUnreachable
	}
	top, err := atfs.Open(to.mount.Mountpoint)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, top.Close()) }()
	d, err := top.OpenDir(rest)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	if err := same(d, dir, to.mount.ID); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// Unify opens directories a second time, all by way of one mount, so that hard links can be made between them. That is
// the mount that they are on, if it is one; else a copy of a mount that reaches them all, which is nobody's but this
// process's. The copy can be written to even where the original cannot, as /sysroot of a host that ostree has booted. It
// goes when the directories and what was opened below them are closed. The directories keep their paths. If no mount of
// their file system reaches them all, the error is ErrUnreachable.
func Unify(dirs ...*atfs.Dir) (_ []*atfs.Dir, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("open directories by way of one mount: %w", err)
		}
	}()
	if one, err := onOne(dirs); err != nil || one {
		return reopen(dirs, err)
	}
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, err
	}
	places := make([]place, len(dirs))
	for i, d := range dirs {
		if places[i], err = find(d, mounts); err != nil {
			return nil, err
		}
	}
	err = ErrUnreachable
	for _, m := range mounts {
		rest, ok := reaches(m, places)
		if !ok {
			continue
		}
		var again []*atfs.Dir
		if again, err = openCopy(m, rest, dirs); err == nil || !errors.Is(err, ErrUnreachable) {
			return again, err
		}
	}
	return nil, err
}

// onOne reports whether directories are on one mount.
func onOne(dirs []*atfs.Dir) (bool, error) {
	ids := make(map[int]struct{})
	for _, d := range dirs {
		id, err := mountID(d)
		if err != nil {
			return false, err
		}
		ids[id] = struct{}{}
	}
	return len(ids) <= 1, nil
}

func reopen(dirs []*atfs.Dir, err error) (again []*atfs.Dir, _ error) {
	for _, d := range dirs {
		var a *atfs.Dir
		if err == nil {
			if a, err = d.OpenDir("."); err == nil {
				again = append(again, a)
			}
		}
	}
	if err != nil {
		return nil, errors.Join(err, atfs.CloseAll(again))
	}
	return again, nil
}

func sameDevice(a, b *mountinfo.Info) bool { return a.Major == b.Major && a.Minor == b.Minor }

// reaches returns the paths that places have below the root of a mount, if all of them are below it.
func reaches(m *mountinfo.Info, places []place) (rest []string, ok bool) {
	for _, p := range places {
		r, ok := below(m.Root, p.path)
		if !ok || !sameDevice(p.mount, m) {
			return nil, false
		}
		rest = append(rest, r)
	}
	return rest, true
}

// openCopy opens paths by way of a copy of a mount. They must be the same as dirs.
func openCopy(m *mountinfo.Info, paths []string, dirs []*atfs.Dir) (again []*atfs.Dir, err error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, m.Mountpoint, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, &os.PathError{Op: "copy mount", Path: m.Mountpoint, Err: err}
	}
	top := atfs.Adopt(fd, m.Mountpoint)
	defer func() {
		err = errors.Join(err, top.Close())
		if err != nil {
			err = errors.Join(err, atfs.CloseAll(again))
			again = nil
		}
	}()
	writable := unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &writable); err != nil {
		return nil, &os.PathError{Op: "make writable mount", Path: m.Mountpoint, Err: err}
	}
	for i, name := range paths {
		d, err := top.OpenDir(name)
		if err != nil {
			return again, fmt.Errorf("%w: %w", ErrUnreachable, err)
		}
		d = d.WithPath(dirs[i].Path())
		again = append(again, d)
		if err := sameDir(d, dirs[i]); err != nil {
			return again, err
		}
	}
	return again, nil
}

// same returns an error unless a directory is another one, on a mount: the table is older than what was opened, and a
// mount can be hidden by another one.
func same(d, other *atfs.Dir, mount int) error {
	id, err := mountID(d)
	if err == nil && id != mount {
		err = ErrUnreachable
	}
	if err != nil {
		return err
	}
	return sameDir(d, other)
}

func sameDir(a, b *atfs.Dir) error {
	x, err := a.Lstat(".")
	if err != nil {
		return err
	}
	y, err := b.Lstat(".")
	if err == nil && (x.Dev != y.Dev || x.Ino != y.Ino) {
		err = ErrUnreachable
	}
	return err
}
