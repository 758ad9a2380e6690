package layer

import (
	"context"
	"errors"
	"fmt"
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
// Files are copied, by a reflink where the file system can: a process that still has one open for writing, or opens it
// again through /proc, cannot change the object. The directory itself stays in place.
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
		return entryError(path.Join(dir.Path(), name), err)
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
		return entryError(path.Join(dir.Path(), name), err)
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
		return d.copied(dir, name, n)
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
	return errors.Join(d.dir(sub, name, n), sub.Close())
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
		stored, size, err := txn.CopyFile(&meta, n.Mtime, f)
		n.Size = size // as the file was copied: it may still be written to
		return stored, err
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
