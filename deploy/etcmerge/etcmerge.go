// Package etcmerge carries changes of /etc from one deployment to the next.
//
// A deployment has its defaults in usr/etc and a copy of them, which may be changed, in etc. The merge compares three
// trees:
//
//	pristine   usr/etc of the deployment that is left behind
//	current    its etc: on a running system, /etc
//	fresh      usr/etc of the new deployment, of which the new etc is a copy
//
// Differences between pristine and current are local changes, and are repeated in the new etc; everything else is as in
// fresh. So a changed file gets no new defaults, even if these have changed. Files are merged as a whole, not line by
// line.
//
// A change is one of the type, content or target, mode, owner, extended attributes, or device number. Times do not
// count, and neither does the label security.selinux, which the policy determines. ostree does the same, but ignores
// extended attributes. docs/design/etc-merge.md lists the other differences.
//
// All access is relative to the three directories and follows no symbolic link.
package etcmerge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
)

// maxDepth is the largest depth of nested directories. Each level costs two descriptors.
const maxDepth = 200

// Kind is the kind of a change.
type Kind int

// The kinds of changes.
const (
	Added Kind = iota + 1
	Modified
	Removed
)

// String returns the letter that "ostree admin config-diff" prints: A, M or D.
func (k Kind) String() string {
	switch k {
	case Added:
		return "A"
	case Modified:
		return "M"
	case Removed:
		return "D"
	}
	return fmt.Sprintf("Kind(%d)", int(k))
}

// Change is a difference between the defaults and the current state.
type Change struct {
	Path   string // below etc; "." is etc itself
	Kind   Kind
	Dir    bool // a directory now, or when it was removed
	Xattrs bool // only extended attributes are modified
}

// Diff returns the changes in current since it was a copy of pristine, sorted by path. For an added directory every
// name in it is listed. For one that was removed, or replaced by something else, only its own name is.
//
// It reads the content of files that have the same size and are not the same inode. A name that is removed meanwhile
// counts as removed.
func Diff(ctx context.Context, pristine, current *atfs.Dir) ([]Change, error) {
	var c comparison
	if err := c.root(ctx, pristine, current); err != nil {
		return nil, fmt.Errorf("compare /etc: %w", err)
	}
	slices.SortFunc(c.changes, func(a, b Change) int { return strings.Compare(a.Path, b.Path) })
	return c.changes, nil
}

type comparison struct {
	changes []Change
	buf     [2][64 << 10]byte
}

func (c *comparison) root(ctx context.Context, a, b *atfs.Dir) error {
	stA, err := a.Lstat(".")
	if err != nil {
		return err
	}
	stB, err := b.Lstat(".")
	if err != nil {
		return err
	}
	if err := c.both(".", ".", a, b, &stA, &stB); err != nil {
		return err
	}
	return c.dir(ctx, "", a, b, 0)
}

// dir compares a directory of current with that of pristine, which is nil if it does not exist.
func (c *comparison) dir(ctx context.Context, name string, a, b *atfs.Dir, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("%q: more than %d nested directories", name, maxDepth)
	}
	names, err := b.ReadNames()
	if err != nil {
		return err
	}
	if a != nil {
		more, err := a.ReadNames()
		if err != nil {
			return err
		}
		names = append(names, more...)
	}
	slices.Sort(names)
	for _, base := range slices.Compact(names) {
		if err := c.entry(ctx, path.Join(name, base), base, a, b, depth); err != nil {
			return err
		}
	}
	return nil
}

func (c *comparison) entry(ctx context.Context, name, base string, a, b *atfs.Dir, depth int) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	stA, err := lstat(a, base)
	if err != nil {
		return err
	}
	stB, err := lstat(b, base)
	if err != nil {
		return err
	}
	if stB != nil {
		n := len(c.changes)
		err := c.present(ctx, name, base, a, b, stA, stB, depth)
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if again, lerr := lstat(b, base); again != nil || lerr != nil {
			return err // something else does not exist
		}
		c.changes = c.changes[:n]
	}
	if stA != nil {
		c.changes = append(c.changes, Change{Path: name, Kind: Removed, Dir: isDir(stA.Mode)})
	}
	return nil
}

// present compares a name of current, and everything below it, with pristine. stA is nil if pristine does not have the
// name.
func (c *comparison) present(
	ctx context.Context, name, base string, a, b *atfs.Dir, stA, stB *unix.Stat_t, depth int,
) error {
	if stA == nil {
		c.changes = append(c.changes, Change{Path: name, Kind: Added, Dir: isDir(stB.Mode)})
	} else if err := c.both(name, base, a, b, stA, stB); err != nil {
		return err
	}
	if !isDir(stB.Mode) {
		return nil
	}
	below, err := b.OpenDir(base)
	if err != nil {
		return err
	}
	defer below.Close()
	var before *atfs.Dir
	if stA != nil && isDir(stA.Mode) {
		if before, err = a.OpenDir(base); err != nil {
			return err
		}
		defer before.Close()
	}
	return c.dir(ctx, name, before, below, depth+1)
}

// lstat describes a name, or returns nil if it does not exist.
func lstat(d *atfs.Dir, base string) (*unix.Stat_t, error) {
	if d == nil {
		return nil, nil
	}
	st, err := d.Lstat(base)
	if err != nil {
		return nil, atfs.IgnoreNotExist(err)
	}
	return &st, nil
}

// both compares a name that both trees have. It does not descend into directories.
func (c *comparison) both(name, base string, a, b *atfs.Dir, stA, stB *unix.Stat_t) error {
	if stA.Dev == stB.Dev && stA.Ino == stB.Ino {
		return nil
	}
	change := Change{Path: name, Kind: Modified, Dir: isDir(stB.Mode)}
	same := stA.Mode == stB.Mode && stA.Uid == stB.Uid && stA.Gid == stB.Gid
	if same {
		var err error
		if same, err = c.sameContent(base, a, b, stA, stB); err != nil {
			return err
		}
	}
	if same {
		xattrsA, err := a.Xattrs(base)
		if err != nil {
			return err
		}
		xattrsB, err := b.Xattrs(base)
		if err != nil {
			return err
		}
		delete(xattrsA, atfs.XattrSELinux)
		delete(xattrsB, atfs.XattrSELinux)
		change.Xattrs = !maps.EqualFunc(xattrsA, xattrsB, bytes.Equal)
	}
	if !same || change.Xattrs {
		c.changes = append(c.changes, change)
	}
	return nil
}

// sameContent compares the contents of two inodes of one type.
func (c *comparison) sameContent(base string, a, b *atfs.Dir, stA, stB *unix.Stat_t) (bool, error) {
	switch stA.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		if stA.Size != stB.Size {
			return false, nil
		}
		return c.sameFile(base, a, b)
	case unix.S_IFLNK:
		targetA, err := a.Readlink(base)
		if err != nil {
			return false, err
		}
		targetB, err := b.Readlink(base)
		return targetA == targetB, err
	case unix.S_IFCHR, unix.S_IFBLK:
		return stA.Rdev == stB.Rdev, nil
	}
	return true, nil
}

func (c *comparison) sameFile(base string, a, b *atfs.Dir) (same bool, err error) {
	fileA, err := a.Open(base)
	if err != nil {
		return false, err
	}
	defer fileA.Close()
	fileB, err := b.Open(base)
	if err != nil {
		return false, err
	}
	defer fileB.Close()
	for off := int64(0); ; {
		nA, errA := fileA.ReadAt(c.buf[0][:], off)
		nB, errB := fileB.ReadAt(c.buf[1][:], off)
		for _, err := range []error{errA, errB} {
			if err != nil && !errors.Is(err, io.EOF) {
				return false, err
			}
		}
		if !bytes.Equal(c.buf[0][:nA], c.buf[1][:nB]) {
			return false, nil
		}
		if errA != nil {
			return true, nil // both have ended, after the same number of bytes
		}
		off += int64(nA)
	}
}

func isDir(mode uint32) bool { return mode&unix.S_IFMT == unix.S_IFDIR }
