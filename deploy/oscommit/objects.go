package oscommit

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"path"
	"runtime"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/panics"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/composefs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
)

// objects are the objects of an OS commit without the commit itself, each once. Compiling them does no I/O.
type objects struct {
	files      []file
	metadata   []metadataObject // from the leaves to the root
	tree, meta objectstore.Checksum

	inodes map[*composefs.Inode]objectstore.Checksum // of files with several names, to hash each once
	seen   map[objectstore.ObjectName]struct{}
}

// A file is a content object.
type file struct {
	sum   objectstore.Checksum
	path  string // one of its paths in the commit
	inode *composefs.Inode
}

type metadataObject struct {
	typ  objectstore.ObjectType
	sum  objectstore.Checksum
	data []byte
}

func compile(root *composefs.Inode) (*objects, error) {
	o := &objects{inodes: make(map[*composefs.Inode]objectstore.Checksum), seen: make(map[objectstore.ObjectName]struct{})}
	var err error
	o.tree, o.meta, err = o.dir(root, "")
	return o, err
}

// first reports whether an object is new.
func (o *objects) first(typ objectstore.ObjectType, sum objectstore.Checksum) bool {
	name := objectstore.ObjectName{Type: typ, Checksum: sum}
	if _, ok := o.seen[name]; ok {
		return false
	}
	o.seen[name] = struct{}{}
	return true
}

func (o *objects) marshal(typ objectstore.ObjectType, v interface{ Marshal() ([]byte, error) }) (objectstore.Checksum, error) {
	data, err := v.Marshal()
	if err != nil {
		return objectstore.Checksum{}, err
	}
	sum := objectstore.Checksum(sha256.Sum256(data))
	if o.first(typ, sum) {
		o.metadata = append(o.metadata, metadataObject{typ, sum, data})
	}
	return sum, nil
}

func (o *objects) dir(n *composefs.Inode, name string) (tree, meta objectstore.Checksum, err error) {
	var t objectstore.DirTree
	for _, e := range n.Entries {
		below := path.Join(name, e.Name)
		if e.Inode.IsDir() {
			d := objectstore.TreeDir{Name: e.Name}
			if d.Tree, d.Meta, err = o.dir(e.Inode, below); err != nil {
				return tree, meta, err
			}
			t.Dirs = append(t.Dirs, d)
			continue
		}
		sum, err := o.file(e.Inode, below)
		if err != nil {
			return tree, meta, fmt.Errorf("/%s: %w", below, err)
		}
		t.Files = append(t.Files, objectstore.TreeFile{Name: e.Name, Checksum: sum})
	}
	attributes := layer.FileMeta(n)
	meta, err = o.marshal(objectstore.TypeDirMeta, &objectstore.DirMeta{
		UID: attributes.UID, GID: attributes.GID, Mode: attributes.Mode, Xattrs: attributes.Xattrs,
	})
	if err == nil {
		tree, err = o.marshal(objectstore.TypeDirTree, &t)
	}
	if err != nil {
		err = fmt.Errorf("/%s: %w", name, err)
	}
	return tree, meta, err
}

func (o *objects) file(n *composefs.Inode, name string) (objectstore.Checksum, error) {
	if sum, ok := o.inodes[n]; ok {
		return sum, nil
	}
	sum, err := checksum(n)
	if err != nil {
		return sum, err
	}
	o.inodes[n] = sum
	if o.first(objectstore.TypeFile, sum) {
		o.files = append(o.files, file{sum, name, n})
	}
	return sum, nil
}

// checksum returns the content object of a regular file or symbolic link: the one that a layer names, or, for a file
// that layers have only in their image, the one to create.
func checksum(n *composefs.Inode) (objectstore.Checksum, error) {
	if n.Payload != "" {
		return layer.PayloadSum(n.Payload)
	}
	meta := contentMeta(n)
	h, err := objectstore.NewContentHash(&meta)
	if err != nil {
		return objectstore.Checksum{}, err
	}
	return objectstore.Checksum(h.Sum(nil)), nil
}

func contentMeta(n *composefs.Inode) objectstore.FileMeta {
	meta := layer.FileMeta(n)
	if isSymlink(n) {
		meta.Target = n.Target
	}
	return meta
}

func isSymlink(n *composefs.Inode) bool { return n.Mode&unix.S_IFMT == unix.S_IFLNK }

// filesPerWorker is the number of files per goroutine that stores them.
const filesPerWorker = 1024

// storeFiles stores every file, and calls done after each.
func (o *objects) storeFiles(ctx context.Context, txn *objectstore.Txn, from *objectstore.Repo, done func(objectstore.Stored)) error {
	group, ctx := panics.WithContext(ctx)
	var next atomic.Int64
	for range min(runtime.GOMAXPROCS(0), 1+len(o.files)/filesPerWorker) {
		group.Go(func() error {
			for i := next.Add(1) - 1; i < int64(len(o.files)); i = next.Add(1) - 1 {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				stored, err := o.files[i].store(txn, from)
				if err != nil {
					return fmt.Errorf("/%s: %w", o.files[i].path, err)
				}
				done(stored)
			}
			return nil
		})
	}
	return group.Wait()
}

// store puts the object into the repository unless it exists.
func (f *file) store(txn *objectstore.Txn, from *objectstore.Repo) (objectstore.Stored, error) {
	meta := contentMeta(f.inode)
	switch {
	case isSymlink(f.inode):
		return txn.StoreSymlink(&meta)
	case f.inode.Payload == "":
		return txn.StoreFile(&meta, f.inode.Mtime, nil)
	case from == nil:
		have, err := f.find(txn.Repo())
		if err == nil && !have {
			err = f.notExist()
		}
		return objectstore.Stored{Checksum: f.sum}, err
	}
	return txn.ImportFile(from, f.sum, &meta, f.inode.Size)
}

func (f *file) notExist() error {
	return &objectstore.ObjectError{Type: objectstore.TypeFile, Checksum: f.sum, Err: objectstore.ErrNotExist}
}

// find reports whether a repository has the object. An inode that cannot be the object is an ErrCorrupt.
func (f *file) find(repo *objectstore.Repo) (bool, error) {
	st, err := repo.Stat(f.sum)
	if errors.Is(err, objectstore.ErrNotExist) {
		return false, nil
	}
	n := f.inode
	if err == nil && (st.Mode != n.Mode || st.Uid != n.UID || st.Gid != n.GID || !isSymlink(n) && st.Size != n.Size) {
		err = &objectstore.ObjectError{Type: objectstore.TypeFile, Checksum: f.sum, Err: fmt.Errorf(
			"in %s it has size %d, owner %d:%d and mode %o, the file has size %d, owner %d:%d and mode %o: %w", repo.Dir().Path(),
			st.Size, st.Uid, st.Gid, st.Mode, n.Size, n.UID, n.GID, n.Mode, objectstore.ErrCorrupt)}
	}
	return err == nil, err
}

// need returns what a repository lacks: objects to create, or to take from another one.
func (o *objects) need(to, from *objectstore.Repo) (n Need, err error) {
	if n.Transfers, err = transfers(to, from); err != nil {
		return n, err
	}
	for i := range o.files {
		f := &o.files[i]
		meta := contentMeta(f.inode)
		lacks, err := f.lackedBy(to, from, &meta)
		switch {
		case err != nil:
			return n, fmt.Errorf("/%s: %w", f.path, err)
		case lacks == nothing, f.inode.Payload == "": // takes an inode
		case lacks == ownObject, n.Transfers.Of(&meta) == objectstore.TransferCopy:
			n.Objects++
			n.Bytes += to.Allocated(f.inode.Size)
		default:
			n.Shared++
		}
	}
	for i := range o.metadata {
		m := &o.metadata[i]
		have, err := to.Has(m.typ, m.sum)
		if err != nil {
			return n, err
		}
		if !have {
			n.Metadata += to.Allocated(int64(len(m.data)))
		}
	}
	return n, nil
}

// metadataSize returns the size of the directories that a repository lacks entirely.
func (o *objects) metadataSize(to *objectstore.Repo) (size int64) {
	for i := range o.metadata {
		size += to.Allocated(int64(len(o.metadata[i].data)))
	}
	return size
}

// A lack is what a repository lacks of an object.
type lack int

const (
	nothing   lack = iota
	object         // it is absent
	ownObject      // its inode cannot be used, and is replaced by a copy
)

// lackedBy returns what a repository lacks of the object, which has metadata meta and can be stored.
func (f *file) lackedBy(to, from *objectstore.Repo, meta *objectstore.FileMeta) (lack, error) {
	have, err := f.find(to)
	lacks := object
	if errors.Is(err, objectstore.ErrCorrupt) && (from != nil || f.inode.Payload == "") {
		lacks, err = ownObject, nil
	}
	if err == nil && have && from != nil && !meta.Exclusive() {
		lacks = ownObject
		var tied bool
		tied, err = to.Tied(from, f.sum)
		have = !tied
	}
	switch {
	case have, err != nil:
		return nothing, err
	case f.inode.Payload == "": // is created, if necessary anew
		return lacks, nil
	case from == nil:
		return nothing, f.notExist()
	}
	if have, err = f.find(from); err == nil && !have {
		err = f.notExist()
	}
	return lacks, err
}
