package layer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/composefs"
)

const (
	overlayPrefix = "trusted.overlay."
	// overlayEscaped is the prefix of attributes set by an overlay mount inside a container, as the kernel stores them.
	overlayEscaped = "trusted.overlay.overlay."
	// userOverlayPrefix is the prefix of those set by a mount of a container's users; some come from the layer image
	// itself.
	userOverlayPrefix = "user.overlay."

	overlayRedirect = "trusted.overlay.redirect"
	overlayMetacopy = "trusted.overlay.metacopy"
)

// ImportDir makes a layer of the upper directory of an overlay mount that is no longer in use, and returns it held. Its
// ref is oci/snapshot/<name>.
//
// A file that nothing has open for writing becomes an object by a link: it is not copied, and must not change from then
// on. Other files are copied. The directory itself stays in place.
//
// merged is the overlay's view, needed for a mount with metacopy=on: it has the content of files of which only metadata
// changed, and the entries of renamed directories. Without it such files and directories are an error.
func (s *Store) ImportDir(ctx context.Context, upper, merged *atfs.Dir, name string) (_ *Held, err error) {
	in, err := s.begin(ctx)
	if err != nil {
		return nil, fmt.Errorf("import directory %s: %w", upper.Path(), err)
	}
	defer in.finish(&err)
	d := dirReader{ingest: in, merged: merged, seen: make(map[atfs.Inode]*inode)}
	st, err := upper.Lstat(".")
	if err != nil {
		return nil, fmt.Errorf("import directory: %w", err)
	}
	x, err := upper.Xattrs(".")
	if err != nil {
		return nil, fmt.Errorf("import directory: %w", err)
	}
	if err := d.attributes(in.tree.root, st, x); err != nil {
		return nil, fmt.Errorf("import directory: %w", err)
	}
	// A container sees owner, mode and attributes of the root as those of /. Its time is only when the directory was
	// made, and would give layers of equal content different IDs.
	root := in.tree.root
	root.Mtime = unix.Timespec{}
	if err := d.dir(upper, "", root); err != nil {
		return nil, fmt.Errorf("import directory: %w", err)
	}
	return in.commit(Layer{}, journalRecord{refs: []string{refSnapshot + name}})
}

type dirReader struct {
	*ingest
	merged *atfs.Dir             // nil if the upper directory is complete on its own
	within bool                  // merged is being read
	seen   map[atfs.Inode]*inode // files with several names
}

// dir reads the directory with the path prefix.
func (d *dirReader) dir(dir *atfs.Dir, prefix string, n *inode) error {
	names, err := dir.ReadNames()
	if err != nil {
		return err
	}
	for _, name := range names {
		if d.pub.ctx.Err() != nil {
			return d.pub.cause()
		}
		if err := d.entry(dir, prefix, name, n); err != nil {
			return err
		}
	}
	return nil
}

func (d *dirReader) entry(dir *atfs.Dir, prefix, name string, parent *inode) error {
	st, err := dir.Lstat(name)
	if err != nil {
		return err
	}
	if err := d.tree.count(name); err != nil {
		return &EntryError{Name: path.Join(dir.Path(), name), Err: err}
	}
	id := atfs.InodeOf(&st)
	if known := d.seen[id]; known != nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		parent.children[name] = known
		return nil
	}
	x, err := dir.Xattrs(name)
	if err != nil {
		return err
	}
	n := new(inode)
	err = d.attributes(n, st, x)
	if st.Mode&unix.S_IFMT == unix.S_IFLNK && err == nil {
		n.Mode = unix.S_IFLNK | 0o777
		if n.Target, err = dir.Readlink(name); err != nil {
			return err
		}
	}
	if err == nil {
		err = d.tree.hold(n)
	}
	if err != nil {
		return &EntryError{Name: path.Join(dir.Path(), name), Err: err}
	}
	parent.children[name] = n
	if st.Nlink > 1 && !n.IsDir() && !n.IsWhiteout() { // overlayfs makes whiteouts of one inode, which means nothing
		d.seen[id] = n
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		if _, ok := x[overlayRedirect]; ok {
			return d.renamed(path.Join(prefix, name), n)
		}
		sub, err := dir.OpenDir(name)
		if err != nil {
			return err
		}
		return errors.Join(d.dir(sub, path.Join(prefix, name), n), sub.Close())
	case unix.S_IFREG:
		n.Size = st.Size
		if n.Size == 0 {
			return nil
		}
		if _, ok := x[overlayMetacopy]; ok {
			return d.copied(d.merged, path.Join(prefix, name), n)
		}
		if d.within {
			return d.copied(dir, name, n)
		}
		return d.file(dir, name, n, x)
	}
	return nil
}

// renamed reads a directory that an overlay with redirect_dir=on has renamed: most of its entries are elsewhere in
// lower layers. In the layer it is a new directory with all of them.
func (d *dirReader) renamed(name string, n *inode) error {
	n.opaque = true
	sub, err := d.merged.OpenDir(name)
	if err != nil {
		return err
	}
	d.within = true
	err = d.dir(sub, name, n)
	d.within = false
	return errors.Join(err, sub.Close())
}

// copied makes an object of a copy of a regular file.
func (d *dirReader) copied(dir *atfs.Dir, name string, n *inode) error {
	f, err := dir.Open(name)
	if err != nil {
		return err
	}
	meta := FileMeta(&n.Inode)
	return d.pub.send(job{n: n, drop: func() { _ = f.Close() }, open: func(txn *objectstore.Txn) (_ objectstore.Stored, err error) {
		defer func() { err = errors.Join(err, f.Close()) }()
		return copyFile(txn, &meta, n, f)
	}})
}

// attributes takes over those attributes of a file in an upper directory that a layer keeps: everything but the
// overlay's bookkeeping.
func (d *dirReader) attributes(n *inode, st unix.Stat_t, xattrs map[string][]byte) error {
	n.Mode, n.UID, n.GID, n.Mtime = st.Mode, st.Uid, st.Gid, st.Mtim
	if n.IsDir() {
		n.children = make(map[string]*inode)
	}
	if t := st.Mode & unix.S_IFMT; t == unix.S_IFCHR || t == unix.S_IFBLK {
		n.Rdev = st.Rdev
	}
	if n.IsWhiteout() {
		n.Mode, n.UID, n.GID, n.Mtime = unix.S_IFCHR, 0, 0, unix.Timespec{}
		return nil
	}
	for name, v := range xattrs {
		switch {
		case name == xattrOpaque:
			n.opaque = string(v) == "y"
		case name == overlayRedirect && n.IsDir() && d.merged == nil:
			return errors.New("directory was renamed by an overlay mounted with redirect_dir=on")
		case name == overlayMetacopy && d.merged == nil:
			return errors.New("content is in a lower layer: the overlay was mounted with metacopy=on")
		case name == atfs.XattrSELinux, !keepUpperXattr(name):
		case len(v) > maxXattrValue:
			return errXattr
		default:
			n.Xattrs = append(n.Xattrs, composefs.Xattr{Name: name, Value: v})
		}
	}
	sortXattrs(n.Xattrs)
	return nil
}

func keepUpperXattr(name string) bool {
	switch {
	case strings.HasPrefix(name, overlayEscaped):
		return true
	case strings.HasPrefix(name, overlayPrefix), strings.HasPrefix(name, userOverlayPrefix), name == xattrImplicit, name == xattrHardlink:
		return false
	}
	return true
}

// file makes an object of a regular file. The worker gets its own descriptor.
func (d *dirReader) file(dir *atfs.Dir, name string, n *inode, found map[string][]byte) error {
	f, err := dir.Open(name)
	if err != nil {
		return err
	}
	own, err := dir.OpenDir(".")
	if err != nil {
		return errors.Join(err, f.Close())
	}
	meta := FileMeta(&n.Inode)
	done := func() error { return errors.Join(f.Close(), own.Close()) }
	return d.pub.send(job{n: n, drop: func() { _ = done() }, open: func(txn *objectstore.Txn) (_ objectstore.Stored, err error) {
		defer func() { err = errors.Join(err, done()) }()
		if linkable(f, n) {
			stored, err := adopt(txn, &meta, f, own, name, found)
			if !notAdoptable(err) {
				return stored, err
			}
		}
		return copyFile(txn, &meta, n, f)
	}})
}

// adopt makes the file's own inode the object, without attributes that the object must not have.
func adopt(
	txn *objectstore.Txn, meta *objectstore.FileMeta, f *atfs.File, dir *atfs.Dir, name string, found map[string][]byte,
) (objectstore.Stored, error) {
	for x := range found {
		if !inMeta(meta, x) {
			if err := f.Removexattr(x); err != nil {
				return objectstore.Stored{}, err
			}
		}
	}
	return txn.AdoptFile(meta, dir, name)
}

// notAdoptable reports whether the error means that the inode cannot be the object where it is: the repository is on
// another file system (EXDEV), the inode has the maximum of names or is immutable, or it has an attribute that the
// kernel does not remove (security.selinux).
func notAdoptable(err error) bool {
	for _, target := range []error{unix.EXDEV, unix.EMLINK, unix.EPERM, unix.EACCES, objectstore.ErrMetadataDiffers} {
		if errors.Is(err, target) {
			return true
		}
	}
	return false
}

// linkable reports whether the file's own inode can be the object. It cannot if something may still write to it, which
// a read lease detects (fcntl(2): it is refused while the file is open for writing), or if it has an empty extended
// attribute, which the file must keep and an object cannot have.
func linkable(f *atfs.File, n *inode) bool {
	if hasEmptyXattr(&n.Inode) {
		return false
	}
	if _, err := unix.FcntlInt(uintptr(f.FD()), unix.F_SETLEASE, unix.F_RDLCK); err != nil {
		return false
	}
	_, err := unix.FcntlInt(uintptr(f.FD()), unix.F_SETLEASE, unix.F_UNLCK)
	return err == nil
}

func inMeta(m *objectstore.FileMeta, name string) bool {
	for _, x := range m.Xattrs {
		if x.Name == name {
			return true
		}
	}
	return false
}

// copyFile copies the file in its present state, and records that size: something may still write to the file.
func copyFile(txn *objectstore.Txn, meta *objectstore.FileMeta, n *inode, f *atfs.File) (_ objectstore.Stored, err error) {
	w, err := txn.NewFile(meta, n.Mtime)
	if err != nil {
		return objectstore.Stored{}, err
	}
	defer func() { err = errors.Join(err, w.Abort()) }()
	buf := make([]byte, 256<<10)
	for off := int64(0); ; {
		c, rerr := f.ReadAt(buf, off)
		if c > 0 {
			if _, err := w.Write(buf[:c]); err != nil {
				return objectstore.Stored{}, err
			}
			off += int64(c)
		}
		if rerr != nil {
			if c < len(buf) && errors.Is(rerr, io.EOF) {
				n.Size = off
				return w.Commit()
			}
			return objectstore.Stored{}, rerr
		}
	}
}
