package native

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/native/format"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/keyfile"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/composefs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
)

// Limits of a commit.
const (
	maxAll   = 64 << 20 // bytes of all metadata objects, and of all different lists of extended attributes
	spread   = 16       // times maxAll: bytes of the attributes of all files, and of all directories, by path
	maxPaths = 4 << 20
	maxPath  = 4095 // PATH_MAX without the NUL
	maxDepth = maxPath / len("a/")
)

// A Base is the verified commit of an image. Of its content objects, those are not verified yet whose extended attributes
// differ from the layer's.
type Base struct {
	Sum    objectstore.Checksum
	Commit *objectstore.Commit

	place      *Place
	metadata   []metadata // children before parents; the commit is the last
	commitMeta []byte     // nil if there is none
	trees      map[objectstore.Checksum]*objectstore.DirTree
	metas      map[objectstore.Checksum]*dirMeta
	files      []*file // in the order of the tree
}

// errChecksum is the error of an object in a layer that is another one than its name tells.
var errChecksum = errors.New("its checksum is not its name")

type metadata struct {
	name objectstore.ObjectName
	data []byte
}

// A dirMeta is a dirmeta object.
type dirMeta struct {
	*objectstore.DirMeta
	xattrs []composefs.Xattr // the same once more
	size   int64             // of the object
}

// A file is a content object of the commit.
type file struct {
	sum   objectstore.Checksum
	layer int
	inode *composefs.Inode     // in the layer, whose extended attributes it has
	own   objectstore.FileMeta // in the layer
	meta  objectstore.FileMeta // in the commit
}

// Read reads and verifies the metadata of the commit at a place, from the unpacked layers of its image, lowest first. It
// writes nothing. Errors in the image are ErrInvalid, those in a single layer a [LayerError].
func Read(ctx context.Context, layers *layer.Store, ids []objectstore.Checksum, place *Place) (*Base, error) {
	return read(ctx, layers, ids, place, maxAll)
}

func read(ctx context.Context, layers *layer.Store, ids []objectstore.Checksum, place *Place, limit int64) (*Base, error) {
	if len(ids) < len(place.DiffIDs) {
		return nil, fmt.Errorf("%w: its configuration has more layers than the image", ErrInvalid)
	}
	roots := make([]*composefs.Inode, len(place.DiffIDs))
	for i := range roots {
		var err error
		if roots[i], err = openLayer(ctx, layers, ids[i], place.DiffIDs[i]); err != nil {
			return nil, err
		}
	}
	found, at, err := scan(roots)
	if err != nil {
		return nil, place.layerError(at, err)
	}
	r := &reader{
		Base: &Base{
			Sum: found.commit, place: place,
			trees: make(map[objectstore.Checksum]*objectstore.DirTree),
			metas: make(map[objectstore.Checksum]*dirMeta),
		},
		seen: make(map[objectstore.Checksum]struct{}),
		ctx:  ctx, repo: layers.Repo(), found: found, limit: limit,
		extents: make(map[objectstore.Checksum]extent),
		lists:   make(map[string]xattrList),
	}
	if err := r.read(); err != nil {
		return nil, err
	}
	return r.Base, nil
}

// openLayer returns the tree of a layer, which should have a diff ID.
func openLayer(ctx context.Context, layers *layer.Store, id objectstore.Checksum, want digest.Digest) (*composefs.Inode, error) {
	l, err := layers.Layer(ctx, id)
	if err != nil {
		return nil, err
	}
	if l.DiffID != want {
		return nil, fmt.Errorf("%w: its configuration names layer %s where the image has layer %q", ErrInvalid, want, l.DiffID)
	}
	return layers.Image(ctx, id)
}

// A readError is an error of the disk or the store, and not in a layer.
type readError struct{ error }

func (e *readError) Unwrap() error { return e.error }

// layerError names the layer of an error, unless it is one of the disk or the store.
func (p *Place) layerError(at int, err error) error {
	if errors.As(err, new(*readError)) {
		return err
	}
	return &LayerError{Layer: at, DiffID: p.DiffIDs[at], Err: err}
}

// A reader reads a commit.
type reader struct {
	*Base
	ctx         context.Context
	repo        *objectstore.Repo // of the layers
	found       *objects
	limit       int64 // maxAll
	metadataLen int64
	seen        map[objectstore.Checksum]struct{} // files
	extents     map[objectstore.Checksum]extent   // by dirtree
	lists       map[string]xattrList              // of extended attributes, by payload
	listsLen    int64
	xattrsLen   int64 // of all files
}

// An extent is the size of the tree below a directory.
type extent struct {
	paths  int   // of files and directories
	length int   // of the longest, in bytes
	metas  int64 // bytes of the dirmeta objects of all paths
}

func (r *reader) read() error {
	if r.Sum != r.place.Commit {
		return r.place.layerError(0, fmt.Errorf("its commit is %s, the label %s names %s", r.Sum, format.LabelCommit, r.place.Commit))
	}
	if err := r.checkConfig(); err != nil {
		return err
	}
	commit := objectstore.ObjectName{Type: objectstore.TypeCommit, Checksum: r.Sum}
	data, err := r.object(commit)
	if err != nil {
		return err
	}
	if r.Commit, err = objectstore.ParseCommit(data); err != nil {
		return r.place.layerError(0, err)
	}
	if err := r.dirMeta(r.Commit.Meta); err != nil {
		return err
	}
	if _, err := r.dirTree(r.Commit.Tree, 0); err != nil {
		return err
	}
	r.metadata = append(r.metadata, metadata{commit, data})
	return r.readCommitMeta()
}

// checkConfig checks the mode of the repository. Images without the label of their last layer may have no configuration.
func (r *reader) checkConfig() error {
	if r.found.config == nil {
		if r.place.Unmarked {
			return nil
		}
		return r.place.layerError(0, fmt.Errorf("/%s has no %s", format.RepoDir, format.ConfigName))
	}
	if r.found.config.Size > maxConfig {
		return r.place.layerError(0, fmt.Errorf("/%s/%s has %d bytes, at most %d are allowed", format.RepoDir, format.ConfigName, r.found.config.Size, maxConfig))
	}
	data, err := r.content(r.found.config)
	if err != nil {
		return err
	}
	f, err := keyfile.Parse(data)
	if err != nil {
		return r.place.layerError(0, fmt.Errorf("/%s/%s: %w", format.RepoDir, format.ConfigName, err))
	}
	if mode, _ := f.Get("core", "mode"); strings.TrimSpace(mode) != format.RepoMode {
		return r.place.layerError(0, fmt.Errorf("/%s has mode %.50q, not %s", format.RepoDir, mode, format.RepoMode))
	}
	return nil
}

func (r *reader) readCommitMeta() (err error) {
	if r.found.commitMeta == nil {
		return nil
	}
	name := objectstore.ObjectName{Type: objectstore.TypeCommitMeta, Checksum: r.Sum}
	if r.found.metadata[name] == nil {
		return r.place.layerError(0, errors.New("it has the signatures of another commit"))
	}
	r.commitMeta, err = r.content(r.found.commitMeta)
	return err
}

// object returns the verified bytes of a metadata object.
func (r *reader) object(name objectstore.ObjectName) ([]byte, error) {
	if r.ctx.Err() != nil {
		return nil, context.Cause(r.ctx)
	}
	n := r.found.metadata[name]
	if n == nil && name == format.EmptyTree {
		return (&objectstore.DirTree{}).Marshal()
	}
	if n == nil {
		return nil, r.place.layerError(0, fmt.Errorf("object %s is missing", name))
	}
	if r.metadataLen += n.Size; r.metadataLen > r.limit {
		return nil, r.place.layerError(0, fmt.Errorf("metadata of more than %d bytes", r.limit))
	}
	data, err := r.content(n)
	if err == nil && sha256.Sum256(data) != name.Checksum {
		err = r.place.layerError(0, fmt.Errorf("object %s: %w", name, errChecksum))
	}
	return data, err
}

// content returns the content of a regular file of a layer, whose size has been checked.
func (r *reader) content(n *composefs.Inode) ([]byte, error) {
	if n.Payload == "" {
		return n.Content, nil
	}
	sum, err := layer.PayloadSum(n.Payload)
	if err != nil {
		return nil, err
	}
	f, err := r.repo.OpenFile(sum)
	if err != nil {
		return nil, &readError{err}
	}
	data, err := io.ReadAll(io.LimitReader(f, n.Size))
	if err = errors.Join(err, f.Close()); err == nil {
		err = verify(n, data, sum)
	}
	if err != nil {
		return nil, &readError{err}
	}
	return data, nil
}

// verify tells damage of the store from an error in the image: it returns an objectstore.ErrCorrupt if a file of a layer
// has other content than its object sum.
func verify(n *composefs.Inode, data []byte, sum objectstore.Checksum) error {
	meta := layer.FileMeta(n)
	h, err := objectstore.NewContentHash(&meta)
	if err != nil {
		return err
	}
	h.Write(data)
	if objectstore.Checksum(h.Sum(nil)) == sum {
		return nil
	}
	return &objectstore.ObjectError{Type: objectstore.TypeFile, Checksum: sum, Err: objectstore.ErrCorrupt}
}

func (r *reader) dirMeta(sum objectstore.Checksum) error {
	if r.metas[sum] != nil {
		return nil
	}
	name := objectstore.ObjectName{Type: objectstore.TypeDirMeta, Checksum: sum}
	data, err := r.object(name)
	if err != nil {
		return err
	}
	m, err := objectstore.ParseDirMeta(data)
	if err != nil {
		return r.place.layerError(0, fmt.Errorf("object %s: %w", name, err))
	}
	if err := m.Validate(); err != nil {
		return r.place.layerError(0, fmt.Errorf("object %s: %w", name, err))
	}
	r.metas[sum] = &dirMeta{m, inodeXattrs(m.Xattrs), int64(len(data))}
	r.metadata = append(r.metadata, metadata{name, data})
	return nil
}

// dirTree reads a directory with all that is below it, each object once.
func (r *reader) dirTree(sum objectstore.Checksum, depth int) (extent, error) {
	if e, ok := r.extents[sum]; ok {
		return e, nil
	}
	name := objectstore.ObjectName{Type: objectstore.TypeDirTree, Checksum: sum}
	if depth > maxDepth {
		return extent{}, r.place.layerError(0, fmt.Errorf("object %s: more than %d directories above it", name, maxDepth))
	}
	data, err := r.object(name)
	if err != nil {
		return extent{}, err
	}
	t, err := objectstore.ParseDirTree(data)
	if err != nil {
		return extent{}, r.place.layerError(0, fmt.Errorf("object %s: %w", name, err))
	}
	var all extent
	for _, f := range t.Files {
		if err := r.file(f.Checksum); err != nil {
			return extent{}, err
		}
		all.add(f.Name, extent{}, 0)
	}
	for _, d := range t.Dirs {
		if err := r.dirMeta(d.Meta); err != nil {
			return extent{}, err
		}
		below, err := r.dirTree(d.Tree, depth+1)
		if err != nil {
			return extent{}, err
		}
		all.add(d.Name, below, r.metas[d.Meta].size)
	}
	if all.paths > maxPaths || all.length > maxPath {
		return extent{}, r.place.layerError(0, fmt.Errorf("object %s: more than %d paths below it, or longer than %d", name, maxPaths, maxPath))
	}
	if all.metas > spread*r.limit {
		return extent{}, r.place.layerError(0, fmt.Errorf("object %s: attributes of directories below it have more than %d bytes", name, spread*r.limit))
	}
	r.extents[sum] = all
	r.trees[sum] = t
	r.metadata = append(r.metadata, metadata{name, data})
	return all, nil
}

// add adds an entry, which has an extent itself, and a dirmeta, if it is a directory.
func (e *extent) add(name string, below extent, meta int64) {
	e.metas += meta + below.metas // no overflow: both are limited, and so is the number of entries
	e.paths = min(e.paths+1+below.paths, maxPaths+1)
	e.length = max(e.length, len(name)+1+below.length)
}

// file finds a content object, and verifies it as far as that takes no content.
func (r *reader) file(sum objectstore.Checksum) error {
	if _, ok := r.seen[sum]; ok {
		return nil
	}
	r.seen[sum] = struct{}{}
	c := r.found.files[sum]
	if c == nil {
		last := len(r.place.DiffIDs) - 1
		return r.place.layerError(last, fmt.Errorf("object %s.file is missing, in this layer and those below", sum))
	}
	own := layer.FileMeta(c.file)
	f := &file{sum: sum, layer: c.layer, inode: c.file, own: own, meta: own}
	list, err := r.xattrsOf(c.xattrs)
	if err != nil {
		return r.place.layerError(c.layer, fmt.Errorf("object %s.%s: %w", sum, objectstore.TypeFileXattrsLink, err))
	}
	f.meta.Xattrs = list.xattrs
	if f.isSymlink() {
		f.meta.Target = c.file.Target
	}
	got, known, err := f.known()
	if err == nil && known && got != sum {
		err = errChecksum
	}
	if err != nil {
		return r.place.layerError(c.layer, fmt.Errorf("object %s.file: %w", sum, err))
	}
	inode := *c.file
	inode.Xattrs = list.inode
	f.inode = &inode
	r.files = append(r.files, f)
	return nil
}

func (f *file) isSymlink() bool { return f.inode.Mode&unix.S_IFMT == unix.S_IFLNK }

// linkable reports whether the layer has an inode that is the object.
func (f *file) linkable() bool {
	return f.inode.Payload == objectstore.LoosePath(f.sum, objectstore.TypeFile)
}

// known returns the checksum of an object if that takes no content: a layer knows those of files that have the same
// attributes in the commit. Attributes that an object cannot have are an error.
func (f *file) known() (sum objectstore.Checksum, known bool, err error) {
	if err := f.meta.Validate(); err != nil {
		return sum, false, err
	}
	if f.inode.Payload == "" {
		h, err := objectstore.NewContentHash(&f.meta)
		if err != nil {
			return sum, false, err
		}
		h.Write(f.inode.Content)
		return objectstore.Checksum(h.Sum(nil)), true, nil
	}
	switch {
	case slices.EqualFunc(f.own.Xattrs, f.meta.Xattrs, objectstore.Xattr.Equal):
		sum, err = layer.PayloadSum(f.inode.Payload)
		return sum, true, err
	case f.linkable(): // without these attributes
		return sum, false, errChecksum
	}
	return sum, false, nil
}

func inodeXattrs(xattrs []objectstore.Xattr) (list []composefs.Xattr) {
	for _, x := range xattrs {
		list = append(list, composefs.Xattr{Name: x.Name, Value: x.Value})
	}
	return list
}

// An xattrList is a list of extended attributes, in two forms.
type xattrList struct {
	xattrs []objectstore.Xattr
	inode  []composefs.Xattr
}

// xattrsOf reads a list of extended attributes. Most files of an image share a few lists.
func (r *reader) xattrsOf(n *composefs.Inode) (list xattrList, err error) {
	if n.Size == 0 {
		return list, nil
	}
	if r.xattrsLen += n.Size; r.xattrsLen > spread*r.limit {
		return list, fmt.Errorf("the extended attributes of all files have more than %d bytes", spread*r.limit)
	}
	if list, ok := r.lists[n.Payload]; ok && n.Payload != "" {
		return list, nil
	}
	if r.listsLen += n.Size; r.listsLen > r.limit {
		return list, fmt.Errorf("all lists of extended attributes have more than %d bytes", r.limit)
	}
	data, err := r.content(n)
	if err != nil {
		return list, err
	}
	if list.xattrs, err = objectstore.ParseXattrs(data); err != nil {
		return list, err
	}
	list.inode = inodeXattrs(list.xattrs)
	r.lists[n.Payload] = list
	return list, nil
}
