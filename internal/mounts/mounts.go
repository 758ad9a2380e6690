// Package mounts reopens directories through other mounts of their file system.
//
// The kernel makes hard links only within one mount: between two mounts of one file system link(2) returns EXDEV,
// although stat(2) shows no difference. On a host booted by ostree, for example, /var is a mount of a directory that is
// also below /sysroot. Directories that are both below one mount can be linked if they are reached through it.
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

// ErrUnreachable reports that a directory cannot be reached through a mount.
var ErrUnreachable = errors.New("not below this mount")

// below returns the rest of a path below a directory, "." for the directory itself.
func below(dir, name string) (rest string, ok bool) {
	if name == dir {
		return ".", true
	}
	return strings.CutPrefix(name, strings.TrimSuffix(dir, "/")+"/")
}

// place is the location of a directory.
type place struct {
	mount *mountinfo.Info
	path  string // below the root of the file system
}

// find returns the location of an open directory in the mounts of this process.
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

// findByPath is find for a directory whose mount is not in the table.
func findByPath(d *atfs.Dir, mounts []*mountinfo.Info) (_ place, err error) {
	again, err := atfs.Open(d.Path())
	if err != nil {
		return place{}, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	defer func() { err = errors.Join(err, again.Close()) }()
	if err := sameDir(again, d); err != nil {
		return place{}, err
	}
	return find(again, mounts)
}

// mountID returns the ID of the mount through which a directory was opened.
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
	return 0, fmt.Errorf("no mnt_id in /proc/self/fdinfo: %w", unix.ENOSYS)
}

// ReopenVia opens a directory again, through the mount through which via was opened. If the directory is not below that
// mount, or hidden by another mount there, the error is ErrUnreachable. A directory of [Unify], whose mount no table
// lists, is found by its path.
func ReopenVia(dir, via *atfs.Dir) (_ *atfs.Dir, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("open %s through the mount of %s: %w", dir.Path(), via.Path(), err)
		}
	}()
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, err
	}
	from, err := find(dir, mounts)
	if errors.Is(err, ErrUnreachable) {
		from, err = findByPath(dir, mounts)
	}
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

// Unify opens directories again, all through one mount, so that hard links between them are possible. That is their own
// mount if they share one, else a private copy of a mount that reaches them all. The copy is writable even if the
// original is not, as /sysroot is on a host booted by ostree. It goes when the directories, and everything opened below
// them, are closed. The directories keep their paths. If no mount of their file system reaches them all, the error is
// ErrUnreachable.
func Unify(dirs ...*atfs.Dir) (_ []*atfs.Dir, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("open directories through one mount: %w", err)
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

// onOne reports whether all directories are on one mount.
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

// reaches returns the paths of places below the root of a mount. ok is false unless all are below it.
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

// openCopy opens paths through a copy of a mount. They must be the same directories as dirs.
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

// same returns an error unless d is the same directory as other, on the given mount: the mount table is older than the
// open, and another mount may hide this one.
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
