package objectstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
)

// CheckoutOptions are options of [Repo.Checkout].
type CheckoutOptions struct {
	// ForceCopy gives every file an inode of its own (a reflink where the file system can), as is needed for what will
	// be modified, such as /etc of a deployment.
	ForceCopy bool
	// PassthroughWhiteouts makes a file called .ostree-wh.NAME an overlay whiteout: a character device 0:0 called NAME
	// with the file's owner, mode and extended attributes. ostree does so for deployments.
	PassthroughWhiteouts bool
}

const (
	whiteoutPrefix = ".ostree-wh."

	maxTreeDepth = 1024 // directories in directories; each level costs a descriptor
)

// Checkout writes the tree of a commit to a new directory. Files are hard links of the objects, so nobody may write to
// them; empty files, and files that cannot have one more link, are copies with the object's mtime. Directories get
// mtime 0, as from ostree. When it fails, or ctx is done, it removes what it has made.
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

// dir writes a directory. It reports whether it made it, so that another's is not removed after an error.
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
	// Nobody else gets in before the directory has its owner and mode.
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
		if err := c.file(&t.Files[i], d); err != nil {
			return true, err
		}
	}
	for i := range t.Dirs {
		e := &t.Dirs[i]
		if _, err := c.dir(ctx, e.Tree, e.Meta, d, e.Name, depth+1); err != nil {
			return true, err
		}
	}
	return true, d.SetAttr(m.UID, m.GID, m.Mode, unix.Timespec{})
}

func (c *checkout) file(e *TreeFile, d *atfs.Dir) error {
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
	// An empty file is worth no sharing: a link to it would only bring the object nearer to its maximum, and let a
	// stray write show up in every other empty file.
	if !c.opts.ForceCopy && (!regular || st.Size > 0) {
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

// setAllAttr gives a file its attributes, in the order that keeps them all.
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

// WriteTree stores a directory and everything below it, and returns its dirtree and dirmeta. Extended attributes with
// empty values are dropped, as by ostree. What a commit cannot hold (devices, fifos, sockets, names and targets that
// are not UTF-8) is ErrInvalid, and so is a mount in the tree that changes it meanwhile: the result is what was read.
func (r *Repo) WriteTree(ctx context.Context, t *Txn, dir *atfs.Dir) (tree, meta Checksum, err error) {
	tree, meta, err = t.writeTree(ctx, dir, 0)
	if err != nil {
		return Checksum{}, Checksum{}, fmt.Errorf("store directory: %w", err)
	}
	return tree, meta, nil
}

func (t *Txn) writeTree(ctx context.Context, dir *atfs.Dir, depth int) (tree, meta Checksum, err error) {
	if err := ctx.Err(); err != nil {
		return tree, meta, context.Cause(ctx)
	}
	if depth > maxTreeDepth {
		return tree, meta, invalidf("%s: more than %d directories in each other", dir.Path(), maxTreeDepth)
	}
	ents, err := dir.ReadDir()
	if err != nil {
		return tree, meta, err
	}
	var dt DirTree
	for _, e := range ents {
		if err := t.writeEntry(ctx, dir, e, &dt, depth); err != nil {
			return tree, meta, err
		}
	}
	data, err := dt.Marshal()
	if err != nil {
		return tree, meta, fmt.Errorf("%s: %w", dir.Path(), err)
	}
	stored, err := t.StoreMetadata(TypeDirTree, data)
	if err != nil {
		return tree, meta, err
	}
	m, err := statDir(dir)
	if err != nil {
		return tree, meta, err
	}
	if data, err = m.Marshal(); err != nil {
		return tree, meta, fmt.Errorf("%s: %w", dir.Path(), err)
	}
	storedMeta, err := t.StoreMetadata(TypeDirMeta, data)
	return stored.Checksum, storedMeta.Checksum, err
}

func statDir(d *atfs.Dir) (*DirMeta, error) {
	st, err := d.Lstat(".")
	if err != nil {
		return nil, err
	}
	x, err := d.Xattrs(".")
	if err != nil {
		return nil, err
	}
	return &DirMeta{UID: st.Uid, GID: st.Gid, Mode: st.Mode, Xattrs: sortXattrs(x)}, nil
}

func (t *Txn) writeEntry(ctx context.Context, dir *atfs.Dir, e fs.DirEntry, dt *DirTree, depth int) error {
	if e.IsDir() {
		sub, err := dir.OpenDir(e.Name())
		if err != nil {
			return err
		}
		tree, meta, err := t.writeTree(ctx, sub, depth+1)
		dt.Dirs = append(dt.Dirs, TreeDir{Name: e.Name(), Tree: tree, Meta: meta})
		return errors.Join(err, sub.Close())
	}
	stored, err := t.copyIn(dir, e.Name())
	dt.Files = append(dt.Files, TreeFile{Name: e.Name(), Checksum: stored.Checksum})
	return err
}

// copyIn stores a copy of a regular file or symbolic link.
func (t *Txn) copyIn(dir *atfs.Dir, name string) (Stored, error) {
	m, st, err := statFile(dir, name)
	if err != nil {
		return Stored{}, err
	}
	if m.IsSymlink() {
		return t.StoreSymlink(m)
	}
	f, err := dir.Open(name)
	if err != nil {
		return Stored{}, err
	}
	defer f.Close()
	w, err := t.NewFile(m, st.Mtim)
	if err != nil {
		return Stored{}, err
	}
	buf := getCopyBuffer()
	defer copyBuffers.Put(buf)
	if err := copyAll(w, f, buf[:]); err != nil {
		return Stored{}, errors.Join(err, w.Abort())
	}
	return w.Commit()
}
