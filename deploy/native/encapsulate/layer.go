package encapsulate

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/native/format"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// A Version is a version of the format, as rpm-ostree counts them. Nothing in an image says which it has.
type Version int

const (
	// Version1 leaves it to layers below to have the directories of a chunk's files.
	Version1 Version = 1
	// Version2 gives each layer the directories above its files.
	Version2 Version = 2
)

// A Layer is a layer of an image.
type Layer struct {
	Chunk // of the lowest layer, without components

	commit   *Commit
	version  Version
	lowest   bool
	progress func(files int) // may be nil
}

// Layers returns the layers of a commit, lowest first. They write their tars independently of each other.
func (c *Commit) Layers(plan Plan, v Version) ([]*Layer, error) {
	rest, err := plan.rest(c.Files)
	if err != nil {
		return nil, err
	}
	name := cmp.Or(c.Object.Subject, "ostree export of commit "+c.Sum.String())
	layers := []*Layer{{Chunk: Chunk{Name: name, Files: rest}, commit: c, version: v, lowest: true}}
	for _, chunk := range plan {
		layers = append(layers, &Layer{Chunk: chunk, commit: c, version: v})
	}
	return layers, nil
}

// WriteTar writes the layer as a tar, always the same bytes. An absent object is an objectstore.ErrNotExist, one whose content
// is not what its name says an objectstore.ErrCorrupt, and one that no importer takes an ErrInvalid.
func (l *Layer) WriteTar(ctx context.Context, w io.Writer) error {
	lw := layerWriter{
		tarWriter: tarWriter{w: w}, ctx: ctx, c: l.commit, progress: l.progress, parents: l.version >= Version2,
		done: make(map[objectstore.ObjectName]bool), entered: make([]bool, len(l.commit.dirs)), buf: make([]byte, copyBuffer),
	}
	if l.lowest {
		lw.lowest()
	} else {
		lw.skeleton()
	}
	lw.content(l.Files)
	lw.end()
	return lw.err
}

const copyBuffer = 256 << 10

// A layerWriter writes one layer.
type layerWriter struct {
	tarWriter
	ctx      context.Context
	c        *Commit
	progress func(files int)
	parents  bool
	done     map[objectstore.ObjectName]bool // metadata objects
	entered  []bool                          // by directory: it has an entry before a file of it
	buf      []byte
}

// lowest writes what only the lowest layer has: the root directory, metadata objects and all directories.
func (w *layerWriter) lowest() {
	w.dir("./", w.c.dirs[0].attrs)
	w.skeleton()
	w.metadata(objectstore.TypeCommit, w.c.Sum)
	if w.c.signed {
		w.metadata(objectstore.TypeCommitMeta, w.c.Sum)
	}
	for i, d := range w.c.dirs {
		w.metadata(objectstore.TypeDirMeta, d.meta)
		if d.path == ownDir {
			continue
		}
		if i > 0 {
			w.dir(shown(d.path), d.attrs)
		}
		w.metadata(objectstore.TypeDirTree, d.tree)
	}
	if _, ok := w.c.dirAt[ownDir]; ok { // builders forget this one if no other directory is empty
		w.metadata(objectstore.TypeDirTree, format.EmptyTree.Checksum)
	}
	if _, ok := w.c.dirAt["var/tmp"]; !ok {
		w.dir("var/tmp", attrs{mode: 0o1777})
	}
}

// skeleton writes an empty repository.
func (w *layerWriter) skeleton() {
	w.dir(ownDir, dirs)
	w.dir(ownDir+"/ostree", dirs)
	w.dir(format.RepoDir, dirs)
	w.dir(format.RepoDir+"/"+format.ObjectsDir, dirs)
	for i := range 256 {
		w.dir(fmt.Sprintf("%s/%s/%02x", format.RepoDir, format.ObjectsDir, i), dirs)
	}
	for _, name := range []string{"extensions", "refs", "refs/heads", "refs/mirrors", "refs/remotes", "state", "tmp", "tmp/cache"} {
		w.dir(format.RepoDir+"/"+name, dirs)
	}
	w.file(format.RepoDir+"/"+format.ConfigName, []byte("[core]\nrepo_version=1\nmode="+format.RepoMode+"\n"), plain)
}

// metadata writes a metadata object, once.
func (w *layerWriter) metadata(t objectstore.ObjectType, sum objectstore.Checksum) {
	name := objectstore.ObjectName{Type: t, Checksum: sum}
	if w.err != nil || w.done[name] {
		return
	}
	w.done[name] = true
	data, err := w.c.metadata(t, sum)
	if errors.Is(err, objectstore.ErrNotExist) && name == format.EmptyTree {
		data, err = (&objectstore.DirTree{}).Marshal()
	}
	if err != nil {
		w.fail(err)
		return
	}
	w.file(format.ObjectPath(sum, t), data, plain)
}

// shown returns the name in the root file system of a path in the commit.
func shown(name string) string {
	if name == "usr/etc" || strings.HasPrefix(name, "usr/etc/") {
		return name[len("usr/"):]
	}
	return name
}

// content writes the content objects of files in the order of their checksums, each with its names.
func (w *layerWriter) content(files []File) {
	files = slices.Clone(files)
	slices.SortStableFunc(files, func(a, b File) int { return bytes.Compare(a.Sum[:], b.Sum[:]) })
	for len(files) > 0 && w.err == nil {
		if w.ctx.Err() != nil {
			w.fail(context.Cause(w.ctx))
			return
		}
		n := 1
		for n < len(files) && files[n].Sum == files[0].Sum {
			n++
		}
		w.object(files[:n])
		if w.progress != nil {
			w.progress(n)
		}
		files = files[n:]
	}
}

// object writes a content object and its names.
func (w *layerWriter) object(names []File) {
	sum := names[0].Sum
	m, err := w.c.objects.FileMeta(sum)
	if err != nil {
		w.fail(err)
		return
	}
	size, err := w.contentObject(sum, m)
	if err != nil {
		w.fail(err)
		return
	}
	a := attrs{m.UID, m.GID, m.Mode}
	for _, f := range names {
		if w.parents {
			w.enter(f.Path)
		}
		if !m.IsSymlink() && size == 0 {
			w.file(shown(f.Path), nil, a) // builders would change an object that unrelated files share
			continue
		}
		w.header(typeLink, shown(f.Path), format.ObjectPath(sum, objectstore.TypeFile), a, 0)
	}
}

// enter writes the directories above a file that have no entry yet.
func (w *layerWriter) enter(name string) {
	for i := range len(name) {
		if name[i] != '/' {
			continue
		}
		if at := w.c.dirAt[name[:i]]; !w.entered[at] {
			w.entered[at] = true
			w.dir(shown(name[:i]), w.c.dirs[at].attrs)
		}
	}
}

// contentObject writes a content object, and its extended attributes twice: for ostree, and without the label for unpackers.
func (w *layerWriter) contentObject(sum objectstore.Checksum, m *objectstore.FileMeta) (size int64, err error) {
	as := func(err error) error {
		return &objectstore.ObjectError{Type: objectstore.TypeFile, Checksum: sum, Err: err}
	}
	xattrs, err := objectstore.MarshalXattrs(m.Xattrs)
	if err != nil {
		return 0, as(err)
	}
	if len(xattrs) > format.MaxXattrs {
		return 0, as(fmt.Errorf("%w: extended attributes of %d bytes, importers allow %d", ErrInvalid, len(xattrs), format.MaxXattrs))
	}
	h, err := objectstore.NewContentHash(m)
	if err != nil {
		return 0, as(err)
	}
	w.file(format.ObjectPath(sum, objectstore.TypeFileXattrsLink), xattrs, plain)
	var records []byte
	for _, x := range m.Xattrs {
		if x.Name != atfs.XattrSELinux {
			records = appendRecord(records, "SCHILY.xattr."+x.Name, x.Value)
		}
	}
	if len(records) > 0 {
		w.pax(records)
	}
	name, a := format.ObjectPath(sum, objectstore.TypeFile), attrs{m.UID, m.GID, m.Mode}
	if m.IsSymlink() {
		w.header(typeSymlink, name, m.Target, a, 0)
	} else {
		content, n, err := w.c.objects.Open(sum)
		if err != nil {
			return 0, err
		}
		size = n
		w.header(typeFile, name, "", a, size)
		if w.err != nil {
			return 0, errors.Join(w.err, content.Close())
		}
		err = w.copy(io.MultiWriter(h, w.w), content, size)
		if err = errors.Join(err, content.Close()); err != nil {
			return 0, as(err)
		}
		w.pad(size)
	}
	if objectstore.Checksum(h.Sum(nil)) != sum {
		return 0, as(objectstore.ErrCorrupt)
	}
	return size, w.err
}

// copy copies the content of an object, which has size bytes.
func (w *layerWriter) copy(to io.Writer, content io.Reader, size int64) error {
	// Without the wrappers, the buffer would not be used.
	n, err := io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{io.LimitReader(content, size)}, w.buf)
	if err == nil && n < size {
		err = objectstore.ErrCorrupt
	}
	return err
}
