package objectstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
)

// WriteTree stores a directory and everything below it, and returns its dirtree and dirmeta; tests compare them with
// the real ostree's. Extended attributes with empty values are dropped, as ostree does. Files that a commit cannot hold
// (devices, fifos, sockets, names and targets that are not UTF-8) are ErrInvalid. If the tree changes meanwhile, the
// result is what was read.
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
