package native

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/native/format"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/composefs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
)

// maxConfig is the size of the largest configuration of a repository.
const maxConfig = 64 << 10

// Parts of names of objects.
const (
	fileExt = ".file"
	// xattrsExtV0 follows the name of a file's object in the first version of the format.
	xattrsExtV0 = ".xattrs"
)

// A LayerError is an error in the part of the commit that a layer has. It is an ErrInvalid.
type LayerError struct {
	Layer  int // 0 for the lowest
	DiffID digest.Digest
	Err    error
}

func (e *LayerError) Error() string {
	return fmt.Sprintf("layer %d (%s): %v", e.Layer, e.DiffID, e.Err)
}

// Unwrap returns the cause and ErrInvalid.
func (e *LayerError) Unwrap() []error { return []error{e.Err, ErrInvalid} }

// objects are the objects in layers, by name. Nothing of them has been read.
type objects struct {
	config     *composefs.Inode // of the repository, nil if it has none
	commit     objectstore.Checksum
	commitMeta *composefs.Inode                            // nil if there is none
	metadata   map[objectstore.ObjectName]*composefs.Inode // in the lowest layer
	files      map[objectstore.Checksum]*content
}

// content is a content object in a layer.
type content struct {
	layer  int
	file   *composefs.Inode
	xattrs *composefs.Inode // the file that lists them
}

// HasCommit reports whether a layer has an object with the name of a commit.
func HasCommit(root *composefs.Inode, sum objectstore.Checksum) bool {
	return lookup(root, format.ObjectPath(sum, objectstore.TypeCommit)) != nil
}

// lookup returns the file at a path, or nil. It follows no symbolic links.
func lookup(root *composefs.Inode, name string) *composefs.Inode {
	n := root
	for part := range strings.SplitSeq(name, "/") {
		if n = child(n, part); n == nil {
			return nil
		}
	}
	return n
}

func child(dir *composefs.Inode, name string) *composefs.Inode {
	i, ok := dir.Find(name)
	if !ok {
		return nil
	}
	return dir.Entries[i].Inode
}

// scan finds the objects in layers, lowest first. Errors are without the layer, whose number it returns.
func scan(layers []*composefs.Inode) (_ *objects, layer int, err error) {
	o := &objects{
		metadata: make(map[objectstore.ObjectName]*composefs.Inode),
		files:    make(map[objectstore.Checksum]*content),
	}
	for i, root := range layers {
		repo := lookup(root, format.RepoDir)
		if repo == nil {
			continue
		}
		if c := child(repo, format.ConfigName); c != nil && o.config == nil {
			o.config = c
		}
		if err := o.scanLayer(i, child(repo, format.ObjectsDir)); err != nil {
			return nil, i, err
		}
	}
	if o.commit.IsZero() {
		return nil, 0, fmt.Errorf("it has no commit in /%s", format.RepoDir)
	}
	return o, 0, nil
}

// scanLayer adds the objects of a layer, whose directory of objects may be nil.
func (o *objects) scanLayer(layer int, dir *composefs.Inode) error {
	if dir == nil {
		return nil
	}
	found := make(map[objectstore.Checksum]*content)
	for _, sub := range dir.Entries {
		for _, e := range sub.Inode.Entries {
			name, err := parseName(sub.Name, e.Name)
			if err == nil {
				err = o.add(layer, found, name, e.Inode)
			}
			if err != nil {
				return fmt.Errorf("/%s/%s/%.20s/%.200s: %w", format.RepoDir, format.ObjectsDir, sub.Name, e.Name, err)
			}
		}
	}
	for sum, c := range found {
		switch {
		case c.file == nil:
			return fmt.Errorf("object %s.file is missing, but not the list of its extended attributes", sum)
		case c.xattrs == nil:
			return fmt.Errorf("object %s.file has no list of its extended attributes", sum)
		}
		if o.files[sum] == nil { // a file's paths may be in several layers
			o.files[sum] = c
		}
	}
	return nil
}

// parseName returns the object that the entry name of the directory sub has.
func parseName(sub, name string) (objectstore.ObjectName, error) {
	const digits = 62
	if b, err := hex.DecodeString(sub); err != nil || len(b) != 1 || len(name) <= digits {
		return objectstore.ObjectName{}, errors.New("not the name of an object")
	}
	if rest, ok := strings.CutSuffix(name, fileExt+xattrsExtV0); ok {
		name = rest + "." + objectstore.TypeFileXattrsLink.Ext()
	}
	return objectstore.ParseLoosePath(sub + "/" + name)
}

// add adds one object of a layer, whose content objects are collected in found.
func (o *objects) add(at int, found map[objectstore.Checksum]*content, name objectstore.ObjectName, n *composefs.Inode) error {
	of := func(sum objectstore.Checksum) *content {
		if found[sum] == nil {
			found[sum] = &content{layer: at}
		}
		return found[sum]
	}
	switch kind := n.Mode & unix.S_IFMT; {
	case layer.LinksBelow(n):
		return errors.New("hard link to a file of another layer")
	case kind != unix.S_IFREG && (kind != unix.S_IFLNK || name.Type != objectstore.TypeFile):
		return fmt.Errorf("mode %o: not an object", n.Mode)
	}
	switch name.Type {
	case objectstore.TypeFile:
		of(name.Checksum).file = n
	case objectstore.TypeFileXattrsLink:
		if n.Size > format.MaxXattrs {
			return fmt.Errorf("extended attributes of %d bytes, at most %d are allowed", n.Size, format.MaxXattrs)
		}
		of(name.Checksum).xattrs = n
	case objectstore.TypeFileXattrs: // files for links to them
	case objectstore.TypeCommit, objectstore.TypeCommitMeta, objectstore.TypeDirTree, objectstore.TypeDirMeta:
		return o.addMetadata(at, name, n)
	case objectstore.TypeTombstone, objectstore.TypePayloadLink:
		return errors.New("no image has an object of this type")
	}
	return nil
}

func (o *objects) addMetadata(layer int, name objectstore.ObjectName, n *composefs.Inode) error {
	switch {
	case layer > 0:
		return errors.New("metadata in a layer above the lowest")
	case n.Size > format.MaxMetadata:
		return fmt.Errorf("metadata of %d bytes, at most %d are allowed", n.Size, format.MaxMetadata)
	case name.Type == objectstore.TypeCommit && !o.commit.IsZero():
		return fmt.Errorf("second commit beside %s", o.commit)
	case name.Type == objectstore.TypeCommit:
		o.commit = name.Checksum
	case name.Type == objectstore.TypeCommitMeta && o.commitMeta != nil:
		return errors.New("second object with the signatures of a commit")
	case name.Type == objectstore.TypeCommitMeta:
		o.commitMeta = n
	}
	o.metadata[name] = n
	return nil
}
