package objectstore

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
)

// CheckoutOptions are options of [Repo.Checkout].
type CheckoutOptions struct {
	// ForceCopy gives every file its own inode (a reflink where the file system can), as files need that will be
	// modified, such as /etc of a deployment.
	ForceCopy bool
	// CopyTop chooses by their names files and directories directly in the tree for which ForceCopy holds. Symbolic links
	// among them are links all the same. It may be nil.
	CopyTop func(name string) bool
	// PassthroughWhiteouts turns a file named .ostree-wh.NAME into an overlay whiteout: a character device 0:0 named
	// NAME with the file's owner, mode and extended attributes. ostree does so for deployments.
	PassthroughWhiteouts bool
}

const (
	whiteoutPrefix = ".ostree-wh."

	maxTreeDepth = 1024 // nested directories; each level costs a descriptor
)

// Checkout writes the tree of a commit to a new directory. Files are hard links to the objects, so nobody may write to
// them; empty files, and files at the maximum of links, are copies with the object's mtime. Directories get mtime 0, as
// with ostree. After an error, or when ctx is done, it removes everything it has made.
func (r *Repo) Checkout(ctx context.Context, commit Checksum, parent *atfs.Dir, name string, opts CheckoutOptions) error {
	c, err := r.Commit(commit)
	if err != nil {
		return fmt.Errorf("check out commit: %w", err)
	}
	return r.CheckoutTree(ctx, c.Tree, c.Meta, parent, name, opts)
}

// CheckoutTree is [Repo.Checkout] for a directory inside a commit.
func (r *Repo) CheckoutTree(ctx context.Context, tree, meta Checksum, parent *atfs.Dir, name string, opts CheckoutOptions) error {
	c := checkout{repo: r, opts: opts, metas: make(map[Checksum]*DirMeta)}
	made, err := c.dir(ctx, tree, meta, parent, name, 0)
	if err == nil {
		return nil
	}
	if made {
		err = errors.Join(err, parent.RemoveAll(name))
	}
	return fmt.Errorf("check out %s: %w", name, err)
}

type checkout struct {
	repo  *Repo
	opts  CheckoutOptions
	metas map[Checksum]*DirMeta // few dirmetas serve all directories
}

// at returns the checkout for an entry of a directory.
func (c *checkout) at(depth int, name string) *checkout {
	if depth > 0 || c.opts.ForceCopy || c.opts.CopyTop == nil || !c.opts.CopyTop(name) {
		return c
	}
	forced := *c
	forced.opts.ForceCopy = true
	return &forced
}

func (c *checkout) meta(sum Checksum) (*DirMeta, error) {
	if m, ok := c.metas[sum]; ok {
		return m, nil
	}
	m, err := c.repo.DirMeta(sum)
	if err == nil {
		c.metas[sum] = m
	}
	return m, err
}

// dir writes a directory. It reports whether it made it, so that after an error only its own is removed.
func (c *checkout) dir(ctx context.Context, tree, meta Checksum, parent *atfs.Dir, name string, depth int) (made bool, err error) {
	if err := ctx.Err(); err != nil {
		return false, context.Cause(ctx)
	}
	if depth > maxTreeDepth {
		return false, corruptf("more than %d directories in each other", maxTreeDepth)
	}
	m, err := c.meta(meta)
	if err != nil {
		return false, err
	}
	t, err := c.repo.DirTree(tree)
	if err != nil {
		return false, err
	}
	// Nobody else gets in before owner and mode are set.
	if err := parent.Mkdir(name, 0o700); err != nil {
		return false, err
	}
	d, err := parent.OpenDir(name)
	if err != nil {
		return true, err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	for _, x := range m.Xattrs {
		if err := d.SetxattrSelf(x.Name, x.Value); err != nil {
			return true, err
		}
	}
	for i := range t.Files {
		if err := c.at(depth, t.Files[i].Name).file(&t.Files[i], d, depth == 0); err != nil {
			return true, err
		}
	}
	for i := range t.Dirs {
		e := &t.Dirs[i]
		if _, err := c.at(depth, e.Name).dir(ctx, e.Tree, e.Meta, d, e.Name, depth+1); err != nil {
			return true, err
		}
	}
	return true, d.SetAttr(m.UID, m.GID, m.Mode, unix.Timespec{})
}

func (c *checkout) file(e *TreeFile, d *atfs.Dir, top bool) error {
	if whited, ok := strings.CutPrefix(e.Name, whiteoutPrefix); ok && c.opts.PassthroughWhiteouts {
		return c.whiteout(e.Checksum, d, whited)
	}
	src, err := c.repo.subdir(e.Checksum[0], false)
	if err != nil {
		return objectError(TypeFile, e.Checksum, err)
	}
	name := looseName(&e.Checksum, TypeFile)
	st, err := src.Lstat(name)
	if err != nil {
		return objectError(TypeFile, e.Checksum, err)
	}
	regular := st.Mode&unix.S_IFMT == unix.S_IFREG
	// Nobody can write to symbolic links of the root itself, such as /bin.
	linked := !c.opts.ForceCopy || top && !regular && c.opts.CopyTop != nil
	// Sharing an empty file saves nothing: a link would only bring the object nearer to its maximum, and let a stray
	// write show in every other empty file.
	if linked && (!regular || st.Size > 0) {
		err := src.Link(name, d, e.Name)
		if !errors.Is(err, unix.EMLINK) && !errors.Is(err, unix.EXDEV) && !errors.Is(err, unix.EPERM) {
			return err
		}
	}
	return objectError(TypeFile, e.Checksum, copyInode(src, name, d, e.Name))
}

// copyInode makes a new inode with the content, owner, mode, xattrs and mtime of a regular file or symbolic link.
func copyInode(src *atfs.Dir, name string, dst *atfs.Dir, newName string) error {
	m, st, err := statFile(src, name)
	if err != nil {
		return err
	}
	if m.IsSymlink() {
		if err := dst.Symlink(m.Target, newName); err != nil {
			return err
		}
		if err := dst.Chown(newName, m.UID, m.GID); err != nil {
			return err
		}
		for _, x := range m.Xattrs {
			if err := dst.Setxattr(newName, x.Name, x.Value); err != nil {
				return err
			}
		}
		return dst.Utimes(newName, st.Mtim)
	}
	in, err := src.Open(name)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := dst.OpenFile(newName, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if st.Size > 0 {
		err = out.CopyFrom(in)
	}
	if err == nil {
		err = setAllAttr(out, m, st.Mtim)
	}
	return errors.Join(err, out.Close())
}

// setAllAttr sets the attributes of a file, in the order that keeps them all.
func setAllAttr(f *atfs.File, m *FileMeta, mtime unix.Timespec) error {
	if err := f.Chown(m.UID, m.GID); err != nil {
		return err
	}
	if err := f.Chmod(m.Mode); err != nil {
		return err
	}
	for _, x := range m.Xattrs {
		if err := f.Setxattr(x.Name, x.Value); err != nil {
			return err
		}
	}
	return f.Utimes(mtime)
}

func (c *checkout) whiteout(sum Checksum, d *atfs.Dir, name string) error {
	if err := ValidateName(name); err != nil {
		return err
	}
	m, err := c.repo.FileMeta(sum)
	if err != nil {
		return err
	}
	if m.IsSymlink() {
		return &ObjectError{Type: TypeFile, Checksum: sum, Err: corruptf("whiteout %q is a symbolic link", name)}
	}
	if err := d.Mknod(name, unix.S_IFCHR|m.Mode&modeBits, 0); err != nil {
		return err
	}
	if err := d.Chown(name, m.UID, m.GID); err != nil {
		return err
	}
	for _, x := range m.Xattrs {
		if err := d.Setxattr(name, x.Name, x.Value); err != nil {
			return err
		}
	}
	return d.Utimes(name, unix.Timespec{})
}
