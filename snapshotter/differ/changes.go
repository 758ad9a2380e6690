package differ

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
)

// changes writes the tar of the changes that an overlay's upper directory makes to the tree below. It is byte for byte
// the tar of containerd's walking differ, which compares the two whole trees (continuity's fs.Changes, and
// archive.ChangeWriter). A file of the tree below is read only if the upper directory has one of the same name.
type changes struct {
	ctx    context.Context
	upper  *atfs.Dir
	latest *time.Time // bound of modification times; later ones are set to it
	tar    *tar.Writer

	links   map[uint64]string   // written name of each inode in the upper directory
	same    map[uint64][]string // unchanged names of each inode, which become links if another name is new
	parents map[string]bool     // written directories
	buf     []byte
}

// writeChanges writes the tar. A file that only a mount can read, because the overlay keeps its content or name
// elsewhere, is an errdefs.ErrNotImplemented.
func writeChanges(ctx context.Context, w io.Writer, lower lowers, upper *atfs.Dir, latest *time.Time) error {
	c := &changes{
		ctx: ctx, upper: upper, latest: latest, tar: tar.NewWriter(w),
		links: make(map[uint64]string), same: make(map[uint64][]string), parents: make(map[string]bool),
		buf: make([]byte, 256<<10),
	}
	if err := c.dir(".", lower, false); err != nil {
		return err
	}
	return c.tar.Close()
}

// A file is a file in either tree.
type file struct {
	unix.Stat_t
	xattrs map[string][]byte
}

func (f *file) is(kind uint32) bool { return f.Mode&unix.S_IFMT == kind }

// linked reports whether the file may have other names.
func (f *file) linked() bool { return !f.is(unix.S_IFDIR) && f.Nlink > 1 }

// stat returns nil if the file does not exist.
func stat(dir *atfs.Dir, name string) (*file, error) {
	st, err := dir.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	x, err := dir.Xattrs(name)
	return &file{st, x}, err
}

// whiteout reports whether the file marks a removed file.
func (f *file) whiteout() bool { return f.is(unix.S_IFCHR) && f.Rdev == 0 }

// opaque reports whether a directory hides the directories of the same name below.
func (f *file) opaque() bool { return string(f.xattrs["trusted.overlay.opaque"]) == "y" }

// readable returns an error if a mount would show more than this file of the upper directory.
func (f *file) readable(name string) error {
	for _, x := range []string{"trusted.overlay.metacopy", "trusted.overlay.redirect", "trusted.overlay.whiteout"} {
		if _, ok := f.xattrs[x]; ok {
			return fmt.Errorf("%s has the attribute %s: %w", name, x, errdefs.ErrNotImplemented)
		}
	}
	if x, ok := f.xattrs["trusted.overlay.opaque"]; ok && string(x) != "y" {
		return fmt.Errorf("%s is opaque in the way %q: %w", name, x, errdefs.ErrNotImplemented)
	}
	return nil
}

// dir writes the changes in a directory of the upper tree. below is the same directory in the lower tree, and hidden
// tells whether the upper tree hides it.
func (c *changes) dir(name string, below lowers, hidden bool) error {
	names, err := readNames(c.upper, name)
	if err != nil {
		return err
	}
	if hidden {
		old, err := below.names()
		if err != nil {
			return err
		}
		names = append(names, old...)
	}
	slices.Sort(names)
	for _, base := range slices.Compact(names) {
		if err := context.Cause(c.ctx); err != nil {
			return err
		}
		if err := c.entry(path.Join(name, base), below, hidden); err != nil {
			return err
		}
	}
	return nil
}

func readNames(root *atfs.Dir, name string) (names []string, err error) {
	dir, err := root.OpenDir(name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	return dir.ReadNames()
}

func (c *changes) entry(name string, below lowers, hidden bool) error {
	f, err := stat(c.upper, name)
	if err != nil {
		return err
	}
	old, layer, err := below.find(path.Base(name))
	if err != nil {
		return err
	}
	if f == nil || f.whiteout() { // nil if the directory hides it
		if old == nil {
			return nil
		}
		return c.remove(name)
	}
	if err := f.readable(name); err != nil {
		return err
	}
	same, err := c.unchanged(name, old, f, layer)
	if err == nil && !same {
		err = c.add(name, f)
	} else if err == nil && f.linked() {
		err = c.keep(name, f)
	}
	if err != nil || !f.is(unix.S_IFDIR) {
		return err
	}
	return c.subdir(name, below, hidden || f.opaque())
}

// subdir calls dir for a subdirectory. below is its parent in the lower tree.
func (c *changes) subdir(name string, below lowers, hidden bool) (err error) {
	sub, err := below.sub(path.Base(name))
	defer func() { err = errors.Join(err, sub.close()) }()
	if err != nil {
		return err
	}
	return c.dir(name, sub, hidden)
}

const capability = "security.capability"

// unchanged compares like continuity's sameFile: it ignores time and content of directories, and compares content only
// if neither time has nanoseconds.
func (c *changes) unchanged(name string, old, f *file, layer *atfs.Dir) (bool, error) {
	switch {
	case old == nil:
		return false, nil
	case old.Mode != f.Mode || old.Uid != f.Uid || old.Gid != f.Gid || old.Rdev != f.Rdev:
		return false, nil
	case !bytes.Equal(old.xattrs[capability], f.xattrs[capability]):
		return false, nil
	case f.is(unix.S_IFDIR):
		return true, nil
	case old.Size != f.Size || old.Mtim != f.Mtim:
		return false, nil
	case f.Mtim.Nsec != 0:
		return true, nil
	case f.is(unix.S_IFLNK):
		return c.sameTarget(name, layer)
	case f.Size == 0:
		return true, nil
	}
	return c.sameContent(name, layer)
}

func (c *changes) sameTarget(name string, layer *atfs.Dir) (bool, error) {
	a, err := layer.Readlink(path.Base(name))
	if err != nil {
		return false, err
	}
	b, err := c.upper.Readlink(name)
	return a == b, err
}

func (c *changes) sameContent(name string, layer *atfs.Dir) (_ bool, err error) {
	a, err := layer.Open(path.Base(name))
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, a.Close()) }()
	b, err := c.upper.Open(name)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	half := len(c.buf) / 2
	for {
		n, aerr := io.ReadFull(a, c.buf[:half])
		m, berr := io.ReadFull(b, c.buf[half:half+max(n, 1)])
		if n != m || !bytes.Equal(c.buf[:n], c.buf[half:half+m]) {
			return false, nil
		}
		end := errors.Is(aerr, io.EOF) || errors.Is(aerr, io.ErrUnexpectedEOF)
		switch {
		case aerr != nil && !end:
			return false, aerr
		case berr != nil && !errors.Is(berr, io.EOF) && !errors.Is(berr, io.ErrUnexpectedEOF):
			return false, berr
		case end:
			return true, nil
		}
	}
}

// remove writes a whiteout.
func (c *changes) remove(name string) error {
	dir, base := path.Split(name)
	h := &tar.Header{Typeflag: tar.TypeReg, Name: dir + ".wh." + base, ModTime: time.Unix(0, 0).UTC()}
	if err := c.parent(h.Name); err != nil {
		return err
	}
	return c.tar.WriteHeader(h)
}

// keep records an unchanged name of a file with several names: if another name is new, this one is written as a link.
func (c *changes) keep(name string, f *file) error {
	if _, ok := c.links[f.Ino]; ok {
		return c.add(name, f)
	}
	if !f.is(unix.S_IFSOCK) {
		c.same[f.Ino] = append(c.same[f.Ino], name)
	}
	return nil
}

// kinds maps file types of st_mode to types of tar entries. A tar cannot hold a socket.
var kinds = map[uint32]byte{
	unix.S_IFREG: tar.TypeReg, unix.S_IFDIR: tar.TypeDir, unix.S_IFLNK: tar.TypeSymlink,
	unix.S_IFCHR: tar.TypeChar, unix.S_IFBLK: tar.TypeBlock, unix.S_IFIFO: tar.TypeFifo,
}

// add writes an entry.
func (c *changes) add(name string, f *file) error {
	kind, ok := kinds[f.Mode&unix.S_IFMT]
	if !ok {
		return nil
	}
	h, err := c.header(name, kind, f)
	if err != nil {
		return err
	}
	var links []string
	if f.linked() {
		if target, ok := c.links[f.Ino]; ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, target, 0
		} else {
			c.links[f.Ino] = h.Name
			links = c.same[f.Ino]
			delete(c.same, f.Ino)
		}
	}
	if err := c.parent(name); err != nil {
		return err
	}
	if kind == tar.TypeDir {
		c.parents[name] = true
	}
	if err := c.tar.WriteHeader(h); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if h.Typeflag == tar.TypeReg && h.Size > 0 {
		if err := c.content(name, h.Size); err != nil {
			return err
		}
	}
	for _, link := range links {
		h.Typeflag, h.Linkname, h.Size, h.Name = tar.TypeLink, c.links[f.Ino], 0, link
		if err := c.parent(link); err != nil {
			return err
		}
		if err := c.tar.WriteHeader(h); err != nil {
			return fmt.Errorf("%s: %w", link, err)
		}
	}
	return nil
}

func (c *changes) header(name string, kind byte, f *file) (*tar.Header, error) {
	h := &tar.Header{
		Format: tar.FormatPAX, Typeflag: kind, Name: name, Mode: int64(f.Mode & 0o7777),
		Uid: int(f.Uid), Gid: int(f.Gid), ModTime: time.Unix(f.Mtim.Sec, f.Mtim.Nsec),
	}
	if c.latest != nil && h.ModTime.After(*c.latest) {
		h.ModTime = *c.latest
	}
	h.ModTime = h.ModTime.Truncate(time.Second)
	if x := f.xattrs[capability]; len(x) > 0 {
		h.PAXRecords = map[string]string{"SCHILY.xattr." + capability: string(x)}
	}
	switch kind {
	case tar.TypeReg:
		h.Size = f.Size
	case tar.TypeDir:
		h.Name += "/"
	case tar.TypeChar, tar.TypeBlock:
		h.Devmajor, h.Devminor = int64(unix.Major(f.Rdev)), int64(unix.Minor(f.Rdev))
	case tar.TypeSymlink:
		target, err := c.upper.Readlink(name)
		h.Linkname = target
		return h, err
	}
	return h, nil
}

// parent writes the parent directory of an entry, unless it is the root or was written before.
func (c *changes) parent(name string) error {
	dir := path.Dir(name)
	if dir == "." || c.parents[dir] {
		return nil
	}
	f, err := stat(c.upper, dir)
	if err != nil {
		return err
	}
	if f == nil {
		return fmt.Errorf("%s is gone: %w", dir, errdefs.ErrUnavailable)
	}
	return c.add(dir, f)
}

func (c *changes) content(name string, size int64) (err error) {
	f, err := c.upper.Open(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	// The length is that of the header, even if a container changes the file now.
	n, err := io.CopyBuffer(struct{ io.Writer }{c.tar}, io.LimitReader(f, size), c.buf)
	if err == nil && n < size {
		err = errdefs.ErrUnavailable.WithMessage("file became shorter while it was read")
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}
