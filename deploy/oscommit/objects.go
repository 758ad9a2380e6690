package oscommit

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/panics"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/composefs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
)

// objects are the objects of an OS commit without the commit itself, each once. Compiling them reads no content.
type objects struct {
	files      []file
	metadata   []metadataObject // from the leaves to the root
	tree, meta objectstore.Checksum

	inodes map[*composefs.Inode]int // index in files, to hash files with several names once
	seen   map[objectstore.ObjectName]struct{}
	known  known // of the repository
}

// A file is a content object.
type file struct {
	sum     objectstore.Checksum // zero if not known before the content is read
	path    string               // one of its paths in the commit
	inode   *composefs.Inode
	relabel *relabel // nil if the object is in a layer, or has no content
	given   bool     // the repository has the object, see Tree.Give
}

// A relabel is the object with the content of a file that has another label.
type relabel struct {
	from objectstore.Checksum
	is   objectstore.FileMeta
	key  knownKey
}

type metadataObject struct {
	typ  objectstore.ObjectType
	sum  objectstore.Checksum // zero if not known yet
	data []byte
}

// compile lists the objects of a tree. The checksums of files with labels are known if the repository has their objects.
func compile(t *Tree, repo *objectstore.Repo) (*objects, error) {
	o := &objects{inodes: make(map[*composefs.Inode]int), seen: make(map[objectstore.ObjectName]struct{})}
	err := o.listFiles(t, t.root, "", make(map[fileKey]int))
	if err == nil {
		err = o.resolve(repo)
	}
	if err == nil {
		err = o.directories(t.root)
	}
	return o, err
}

// A fileKey identifies a content object.
type fileKey struct {
	sum   objectstore.Checksum
	label string // of a relabel, whose checksum is that of its content under another label
}

func (o *objects) listFiles(t *Tree, dir *composefs.Inode, name string, index map[fileKey]int) error {
	for _, e := range dir.Entries {
		below := path.Join(name, e.Name)
		if e.Inode.IsDir() {
			if err := o.listFiles(t, e.Inode, below, index); err != nil {
				return err
			}
			continue
		}
		if _, ok := o.inodes[e.Inode]; ok {
			continue
		}
		f, key, err := t.file(e.Inode, below)
		if err != nil {
			return fmt.Errorf("/%s: %w", below, err)
		}
		i, ok := index[key]
		if !ok {
			i = len(o.files)
			index[key] = i
			o.files = append(o.files, f)
		}
		o.inodes[e.Inode] = i
	}
	return nil
}

// file returns the content object of a file.
func (t *Tree) file(n *composefs.Inode, name string) (file, fileKey, error) {
	f := file{path: name, inode: n}
	sum, err := checksum(n)
	source, changed := t.sources[n]
	if !changed {
		source = n
	}
	given, isGiven := t.given[source]
	switch {
	case n.Payload == "", !changed && !isGiven:
		f.sum = sum
		return f, fileKey{sum: sum}, err
	case !changed:
		f.sum, f.given = given.Sum, true
		return f, fileKey{sum: given.Sum}, err
	}
	before, is := sum, contentMeta(source)
	if isGiven {
		before, is = given.Sum, given.Layer
	}
	label := labelOf(n)
	f.relabel = &relabel{from: sum, is: is, key: keyOf(before, label)}
	return f, fileKey{before, label}, err
}

// directories compiles the metadata objects. Those that depend on unknown files have no checksum.
func (o *objects) directories(root *composefs.Inode) error {
	o.metadata = nil
	clear(o.seen)
	var err error
	o.tree, o.meta, err = o.dir(root, "")
	return err
}

// complete compiles the metadata objects again, once all files are stored and known.
func (o *objects) complete(root *composefs.Inode, repo *objectstore.Repo) error {
	if !slices.ContainsFunc(o.files, isRelabelled) {
		return nil
	}
	if err := o.remember(repo); err != nil {
		return err
	}
	return o.directories(root)
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

func (o *objects) marshal(typ objectstore.ObjectType, v interface{ Marshal() ([]byte, error) }, known bool) (sum objectstore.Checksum, err error) {
	data, err := v.Marshal()
	if err != nil {
		return sum, err
	}
	if known {
		sum = objectstore.Checksum(sha256.Sum256(data))
	}
	if !known || o.first(typ, sum) {
		o.metadata = append(o.metadata, metadataObject{typ, sum, data})
	}
	return sum, nil
}

func (o *objects) dir(n *composefs.Inode, name string) (tree, meta objectstore.Checksum, err error) {
	var t objectstore.DirTree
	known := true
	for _, e := range n.Entries {
		if e.Inode.IsDir() {
			d := objectstore.TreeDir{Name: e.Name}
			if d.Tree, d.Meta, err = o.dir(e.Inode, path.Join(name, e.Name)); err != nil {
				return tree, meta, err
			}
			known = known && !d.Tree.IsZero()
			t.Dirs = append(t.Dirs, d)
			continue
		}
		sum := o.files[o.inodes[e.Inode]].sum
		known = known && !sum.IsZero()
		t.Files = append(t.Files, objectstore.TreeFile{Name: e.Name, Checksum: sum})
	}
	attributes := layer.FileMeta(n)
	meta, err = o.marshal(objectstore.TypeDirMeta, &objectstore.DirMeta{
		UID: attributes.UID, GID: attributes.GID, Mode: attributes.Mode, Xattrs: attributes.Xattrs,
	}, true)
	if err == nil {
		tree, err = o.marshal(objectstore.TypeDirTree, &t, known)
	}
	if err != nil {
		err = fmt.Errorf("/%s: %w", name, err)
	}
	return tree, meta, err
}

// checksum returns the content object of a regular file or symbolic link: the one that a layer names, whatever label the
// file has now, or, for a file that layers have only in their image, the one to create.
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

// filesPerWorker is the number of files per goroutine that works on them.
const filesPerWorker = 1024

// eachFile calls f for every file, by several goroutines. It names the file of an error.
func (o *objects) eachFile(ctx context.Context, f func(*file) error) error {
	return panics.Each(ctx, len(o.files), filesPerWorker, func(i int) error {
		if err := f(&o.files[i]); err != nil {
			return fmt.Errorf("/%s: %w", o.files[i].path, err)
		}
		return nil
	})
}

// storeFiles stores every file, and calls done after each.
func (o *objects) storeFiles(ctx context.Context, txn *objectstore.Txn, from *objectstore.Repo, done func(objectstore.Stored)) error {
	return o.eachFile(ctx, func(f *file) error {
		stored, err := f.store(txn, from)
		if err == nil {
			done(stored)
		}
		return err
	})
}

// store puts the object into the repository unless it exists.
func (f *file) store(txn *objectstore.Txn, from *objectstore.Repo) (objectstore.Stored, error) {
	meta := contentMeta(f.inode)
	switch {
	case isSymlink(f.inode):
		return txn.StoreSymlink(&meta)
	case f.inode.Payload == "":
		return txn.StoreFile(&meta, f.inode.Mtime, nil)
	case f.relabel != nil:
		return f.storeRelabelled(txn, from, &meta)
	case from == nil, f.given:
		have, err := f.find(txn.Repo())
		if err == nil && !have {
			err = f.notExist()
		}
		return objectstore.Stored{Checksum: f.sum}, err
	}
	return txn.ImportFile(from, f.sum, &meta, f.inode.Size)
}

// storeRelabelled creates an object with the content of another one, and learns its checksum, unless it is known.
func (f *file) storeRelabelled(txn *objectstore.Txn, from *objectstore.Repo, meta *objectstore.FileMeta) (objectstore.Stored, error) {
	switch {
	case !f.sum.IsZero():
		return objectstore.Stored{Checksum: f.sum}, nil
	case from == nil:
		from = txn.Repo()
	}
	stored, err := txn.ImportContent(from, f.relabel.from, &f.relabel.is, meta, f.inode.Size)
	f.sum = stored.Checksum
	return stored, err
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
func (o *objects) need(to, from *objectstore.Repo, how objectstore.Transfers) (n Need, err error) {
	n.Transfers = how
	for i := range o.files {
		f := &o.files[i]
		meta := contentMeta(f.inode)
		lacks, err := f.lackedBy(to, from, &meta)
		switch {
		case err != nil:
			return n, fmt.Errorf("/%s: %w", f.path, err)
		case lacks == nothing, f.inode.Payload == "": // takes an inode
		case lacks == ownObject, f.transfer(&n.Transfers, &meta) == objectstore.TransferCopy:
			n.Objects++
			n.Bytes += to.Allocated(f.inode.Size)
		default:
			n.Shared++
		}
	}
	if slices.ContainsFunc(o.files, func(f file) bool { return isRelabelled(f) && f.sum.IsZero() }) {
		n.Metadata += to.Allocated(int64(knownSize(len(o.files) + len(o.known))))
	}
	for i := range o.metadata {
		m := &o.metadata[i]
		have := false
		if !m.sum.IsZero() {
			if have, err = to.Has(m.typ, m.sum); err != nil {
				return n, err
			}
		}
		if !have {
			n.Metadata += to.Allocated(int64(len(m.data)))
		}
	}
	return n, nil
}

// transfer returns how a repository gets an object that it lacks. One with a new label is another inode.
func (f *file) transfer(t *objectstore.Transfers, meta *objectstore.FileMeta) objectstore.Transfer {
	if f.relabel != nil {
		return t.Others
	}
	return t.Of(meta)
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
	switch {
	case f.relabel != nil && f.sum.IsZero():
		return object, nil
	case f.relabel != nil, f.given:
		return nothing, nil
	}
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
