package deploy

import (
	"context"
	"fmt"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/composefs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/gvariant"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
)

// An Image is what an image says of itself. The OS commit is a function of it and of the tree alone: it is the same on every
// host.
type Image struct {
	ManifestDigest string
	Manifest       string // JSON, byte for byte
	Config         string // JSON, byte for byte
	Version        string // "" for none
	Created        time.Time
}

// Names in the metadata of an OS commit; those of an image are what ostree's own tools write for images that they have
// deployed.
const (
	metaVersion        = "version"
	metaLinux          = "ostree.linux"
	metaBootable       = "ostree.bootable"
	metaManifestDigest = "ostree.manifest-digest"
	metaManifest       = "ostree.manifest"
	metaConfig         = "ostree.container.image-config"
)

// Store writes the OS commit of an image with this tree, and returns its checksum. Content objects must be in the repository
// already, where the import of the layers has put them: one that is missing is an objectstore.ErrNotExist. Empty files and
// symbolic links, which are objects of no layer, are made here.
//
// Nothing refers to the commit yet: that is for txn.SetRef to do, before txn is committed.
func (t *Tree) Store(ctx context.Context, txn *objectstore.Txn, img Image) (objectstore.Checksum, error) {
	sum, err := t.store(ctx, txn, img)
	if err != nil {
		return sum, fmt.Errorf("store OS commit: %w", err)
	}
	return sum, nil
}

func (t *Tree) store(ctx context.Context, txn *objectstore.Txn, img Image) (objectstore.Checksum, error) {
	w := writer{ctx: ctx, txn: txn, files: make(map[*composefs.Inode]objectstore.Checksum)}
	c := &objectstore.Commit{Metadata: t.metadata(img)}
	if img.Created.Unix() > 0 {
		c.Timestamp = uint64(img.Created.Unix())
	}
	var err error
	if c.Tree, c.Meta, err = w.dir(t.root, ""); err != nil {
		return objectstore.Checksum{}, err
	}
	return w.metadata(objectstore.TypeCommit, c)
}

func (t *Tree) metadata(img Image) (entries []objectstore.MetaEntry) {
	add := func(key, value string) {
		if value != "" {
			entries = append(entries, objectstore.MetaEntry{Key: key, Value: gvariant.String(value)})
		}
	}
	add(metaVersion, img.Version)
	if kernel := t.Kernel(); kernel != "" {
		add(metaLinux, kernel)
		entries = append(entries, objectstore.MetaEntry{Key: metaBootable, Value: gvariant.Bool(true)})
	}
	add(metaManifestDigest, img.ManifestDigest)
	add(metaManifest, img.Manifest)
	add(metaConfig, img.Config)
	return entries
}

// A writer writes dirtrees from the leaves to the root.
type writer struct {
	ctx   context.Context //nolint:containedctx // of one call
	txn   *objectstore.Txn
	files map[*composefs.Inode]objectstore.Checksum // of files with several names, once
}

func (w *writer) metadata(typ objectstore.ObjectType, v interface{ Marshal() ([]byte, error) }) (objectstore.Checksum, error) {
	data, err := v.Marshal()
	if err != nil {
		return objectstore.Checksum{}, err
	}
	stored, err := w.txn.StoreMetadata(typ, data)
	return stored.Checksum, err
}

func (w *writer) dir(n *composefs.Inode, name string) (tree, meta objectstore.Checksum, err error) {
	if w.ctx.Err() != nil {
		return tree, meta, context.Cause(w.ctx)
	}
	var t objectstore.DirTree
	for _, e := range n.Entries {
		below := path.Join(name, e.Name)
		if e.Inode.IsDir() {
			d := objectstore.TreeDir{Name: e.Name}
			if d.Tree, d.Meta, err = w.dir(e.Inode, below); err != nil {
				return tree, meta, err
			}
			t.Dirs = append(t.Dirs, d)
			continue
		}
		sum, err := w.file(e.Inode)
		if err != nil {
			return tree, meta, fmt.Errorf("/%s: %w", below, err)
		}
		t.Files = append(t.Files, objectstore.TreeFile{Name: e.Name, Checksum: sum})
	}
	attributes := layer.FileMeta(n)
	meta, err = w.metadata(objectstore.TypeDirMeta, &objectstore.DirMeta{
		UID: attributes.UID, GID: attributes.GID, Mode: attributes.Mode, Xattrs: attributes.Xattrs,
	})
	if err == nil {
		tree, err = w.metadata(objectstore.TypeDirTree, &t)
	}
	if err != nil {
		err = fmt.Errorf("/%s: %w", name, err)
	}
	return tree, meta, err
}

func (w *writer) file(n *composefs.Inode) (objectstore.Checksum, error) {
	if sum, ok := w.files[n]; ok {
		return sum, nil
	}
	sum, err := w.object(n)
	if err == nil {
		w.files[n] = sum
	}
	return sum, err
}

func (w *writer) object(n *composefs.Inode) (objectstore.Checksum, error) {
	meta := layer.FileMeta(n)
	switch {
	case n.Mode&unix.S_IFMT == unix.S_IFLNK:
		meta.Target = n.Target
		stored, err := w.txn.StoreSymlink(&meta)
		return stored.Checksum, err
	case n.Payload == "":
		stored, err := w.txn.StoreFile(&meta, n.Mtime, nil)
		return stored.Checksum, err
	}
	sum, err := layer.PayloadSum(n.Payload)
	if err != nil {
		return sum, err
	}
	ok, err := w.txn.Repo().Has(objectstore.TypeFile, sum)
	if err == nil && !ok {
		err = &objectstore.ObjectError{Type: objectstore.TypeFile, Checksum: sum, Err: objectstore.ErrNotExist}
	}
	return sum, err
}

// ImageRef returns the ref that ostree's own tools give to the OS commit of an image, for a reference like
// "docker://quay.io/fedora/fedora-coreos:stable". Any string but one that is empty or has a NUL can be one.
func ImageRef(reference string) (string, error) {
	if reference == "" || strings.ContainsRune(reference, 0) {
		return "", fmt.Errorf("%w: reference %q", ErrInvalid, reference)
	}
	var b strings.Builder
	b.WriteString("ostree/container/image/")
	alnum := false // whether the character before was a letter or a digit
	for i, c := range reference {
		was := alnum
		alnum = c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z'
		switch {
		case alnum, c == '-', c == '/' && was && i+1 < len(reference):
			b.WriteRune(c)
		case c == '_':
			b.WriteString("__")
		default:
			fmt.Fprintf(&b, "_%02X_", c)
		}
	}
	return b.String(), nil
}
