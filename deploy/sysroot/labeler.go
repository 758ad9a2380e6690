package sysroot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/selinux"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/keyfile"
)

// A labeler labels directory trees by a policy.
type labeler struct {
	ctx    context.Context
	policy *selinux.Policy
	left   *unlabelled // files that cannot be labelled; nil: the first is an error
}

const (
	// maxOpenDirs is the number of nested directories that a labeler has open. Of those further below, only the last is.
	maxOpenDirs = 64
	// maxLabelPath is the length of the longest path that is looked up in a policy.
	maxLabelPath = 16 << 10
)

// unlabelled are files that could not be labelled.
type unlabelled struct {
	count int
	first []string // with the reasons
	last  string
}

// maxUnlabelled is the number of files that a note names.
const maxUnlabelled = 3

// add adds a file, once if its faults follow each other.
func (u *unlabelled) add(at string, err error) {
	if u.count > 0 && at == u.last {
		return
	}
	u.last = at
	if u.count++; len(u.first) < maxUnlabelled {
		var errno unix.Errno
		if errors.As(err, &errno) {
			err = errno
		}
		u.first = append(u.first, fmt.Sprintf("%.200q (%v)", at, err))
	}
}

// String returns a note, or "" if there are none.
func (u *unlabelled) String() string {
	switch {
	case u.count == 0:
		return ""
	case u.count == 1:
		return fmt.Sprintf("A file or directory of /var could not be labelled: %s.", u.first[0])
	case u.count > len(u.first):
		return fmt.Sprintf("%d files or directories of /var could not be labelled, such as %s.", u.count, strings.Join(u.first, ", "))
	}
	return fmt.Sprintf("%d files or directories of /var could not be labelled: %s.", u.count, strings.Join(u.first, ", "))
}

// tree labels name in dir, and everything below it, as if it were the path at of the running system. It follows no
// symbolic links and enters no mounts, but all subvolumes of Btrfs. It leaves alone the objects of repositories, whose
// checksums cover labels, and files with several names: one of them may be an object, or belong to another tree. A name
// that does not exist has no files.
func (l *labeler) tree(dir *atfs.Dir, name, at string) error {
	below, err := l.file(dir, name, at)
	if err == nil && below {
		err = l.enter(dir, name, at, 0)
	}
	if err != nil {
		return fmt.Errorf("label %s: %w", at, err)
	}
	return nil
}

// failed returns nil if the work can go on after an error in a file of dir.
func (l *labeler) failed(dir *atfs.Dir, at string, err error) error {
	switch {
	case err == nil, errors.Is(err, fs.ErrNotExist):
		return nil
	case l.left != nil && isOwnFault(dir, err):
		l.left.add(at, err)
		return nil
	}
	return err
}

// ownFaults are errors that say something about a single file, which may be the fault of the user who owns it.
var ownFaults = []error{
	unix.EPERM, unix.EACCES, // immutable, for instance
	unix.EROFS, // on a subvolume that is read-only
	unix.ENAMETOOLONG, unix.ESTALE,
	unix.E2BIG, unix.EDQUOT, // too many or too large attributes
	unix.ENOTDIR, unix.ELOOP, // another file took a directory's place
	unix.EIO, unix.EUCLEAN, unix.EBADMSG, // damaged
}

// fullPercent is how much of a file system users have used if it is full.
const fullPercent = 99

// isOwnFault reports whether an error says something about a single file of dir. Its attributes may fill the space that a
// file has for them: ENOSPC, although the file system has room.
func isOwnFault(dir *atfs.Dir, err error) bool {
	if errors.Is(err, unix.ENOSPC) {
		full, err := dir.Fuller(fullPercent)
		return err == nil && !full
	}
	return slices.ContainsFunc(ownFaults, func(fault error) bool { return errors.Is(err, fault) })
}

// file labels a single file, and reports whether it is a directory whose entries come next.
func (l *labeler) file(dir *atfs.Dir, name, at string) (below bool, err error) {
	if l.ctx.Err() != nil {
		return false, context.Cause(l.ctx)
	}
	st, err := dir.Lstat(name)
	if err != nil {
		return false, l.failed(dir, at, err)
	}
	if len(at) > maxLabelPath {
		return false, l.failed(dir, at, unix.ENAMETOOLONG)
	}
	isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	if isDir || st.Nlink == 1 {
		if label, ok := l.policy.Label(at, selinux.TypeOf(st.Mode)); ok {
			err = setLabel(dir, name, label)
		}
	}
	below = isDir && (name != "objects" || !isRepo(dir)) && !errors.Is(err, unix.EROFS)
	return below, l.failed(dir, at, err)
}

// enter labels the entries of a directory, with depth directories above it that are open.
func (l *labeler) enter(dir *atfs.Dir, name, at string, depth int) error {
	sub, err := dir.OpenDir(name)
	if err != nil {
		return l.failed(dir, at, err)
	}
	sub, err = l.entries(sub, at, depth+1)
	return errors.Join(err, closeDir(sub))
}

// descend is enter, and closes the directory above meanwhile. It returns that directory, open again, or nil if it cannot be
// found.
func (l *labeler) descend(dir *atfs.Dir, name, at string, depth int) (*atfs.Dir, error) {
	st, err := dir.Lstat(".")
	if err != nil {
		return dir, err
	}
	sub, err := dir.OpenDir(name)
	if err != nil {
		return dir, l.failed(dir, at, err)
	}
	if err := dir.Close(); err != nil {
		return nil, errors.Join(err, sub.Close())
	}
	sub, err = l.entries(sub, at, depth+1)
	if sub == nil || err != nil {
		return nil, errors.Join(err, closeDir(sub))
	}
	up, err := sub.OpenParent(atfs.InodeOf(&st))
	return up, errors.Join(l.failed(sub, path.Dir(at), err), sub.Close())
}

// entries labels the entries of an open directory, the last of depth open ones. It returns the directory, perhaps with
// another descriptor, or nil if it had to close it and cannot find it again.
func (l *labeler) entries(dir *atfs.Dir, at string, depth int) (*atfs.Dir, error) {
	names, err := dir.ReadNames()
	if err != nil {
		return dir, l.failed(dir, at, err)
	}
	slices.Sort(names)
	for _, name := range names {
		below := path.Join(at, name)
		mounted, err := dir.IsMount(name)
		if err = l.failed(dir, below, err); err != nil {
			return dir, err
		}
		if mounted {
			continue
		}
		switch enter, err := l.file(dir, name, below); {
		case err != nil:
			return dir, err
		case enter && depth < maxOpenDirs:
			if err := l.enter(dir, name, below, depth); err != nil {
				return dir, err
			}
		case enter:
			if dir, err = l.descend(dir, name, below, depth); dir == nil || err != nil {
				return dir, err
			}
		}
	}
	return dir, nil
}

// closeDir closes a directory unless it is nil.
func closeDir(d *atfs.Dir) error {
	if d == nil {
		return nil
	}
	return d.Close()
}

// isRepo reports whether a directory is an ostree repository.
func isRepo(dir *atfs.Dir) bool {
	text, err := dir.ReadFile("config", maxConfigLen)
	if err != nil {
		return false
	}
	f, err := keyfile.Parse(text)
	if err != nil {
		return false
	}
	_, ok := f.Get("core", "repo_version")
	return ok
}
