package layer

import (
	"bytes"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/composefs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/gvariant"
)

const (
	// maxImage is the maximum size of a layer image to write or read: a damaged inode can claim any size.
	maxImage = 1 << 30
	// maxObjects is the maximum number of objects in the dirtree of a layer commit: ostree reads no larger metadata. An
	// entry is a name of 64 digits with its NUL, a checksum, and two offsets.
	maxObjects = (objectstore.MaxMetadataSize - 64) / (64 + 1 + 32 + 1 + 4)
)

// readImage parses a layer image.
func readImage(b []byte) (*composefs.Inode, error) { return composefs.Read(b, composefs.Limits{}) }

// marshalImage makes an image. what names it in errors.
func marshalImage(root *composefs.Inode, what string) ([]byte, error) {
	image, err := composefs.Marshal(root, composefs.Options{MaxVersion: 1})
	if err != nil {
		return nil, fmt.Errorf("make %s: %w", what, err)
	}
	if len(image) > maxImage {
		return nil, fmt.Errorf("%w: %s of %d bytes, at most %d are supported", ErrInvalid, what, len(image), maxImage)
	}
	return image, nil
}

// storeLayer writes the layer image, the rest of the recipe and the layer commit of a sealed tree, and fills in l.
func (in *ingest) storeLayer(l *Layer, root *composefs.Inode, added *Usage) error {
	txn := in.txn
	objects := l.summarize(root)
	if in.recipe != nil {
		objects = in.withContents(objects)
	}
	if most := in.s.opts.maxObjects; len(objects) > most {
		return fmt.Errorf("%w: %d different files, at most %d are supported", ErrInvalid, len(objects), most)
	}
	image, err := marshalImage(root, "layer image")
	if err != nil {
		return err
	}
	stored, err := txn.StoreFile(&ownMeta, unix.Timespec{}, image)
	if err != nil {
		return fmt.Errorf("store layer image: %w", err)
	}
	added.add(stored)
	l.Image = stored.Checksum
	files := []objectstore.TreeFile{{Name: imageName, Checksum: l.Image}}
	if in.recipe != nil {
		if err := in.storeRecipe(l, objects, added); err != nil {
			return fmt.Errorf("store recipe: %w", err)
		}
		files = append(files, objectstore.TreeFile{Name: recipeName, Checksum: l.Recipe})
	}

	put := func(t objectstore.ObjectType, data []byte, err error) (objectstore.Checksum, error) {
		if err != nil {
			return objectstore.Checksum{}, err
		}
		stored, err := txn.StoreMetadata(t, data)
		if err == nil {
			added.add(stored)
		}
		return stored.Checksum, err
	}
	marshal := func(t objectstore.ObjectType, v interface{ Marshal() ([]byte, error) }) (objectstore.Checksum, error) {
		data, err := v.Marshal()
		return put(t, data, err)
	}
	meta, err := marshal(objectstore.TypeDirMeta, &objectstore.DirMeta{Mode: unix.S_IFDIR | 0o700})
	if err != nil {
		return fmt.Errorf("store layer commit: %w", err)
	}
	var set objectstore.DirTree
	for _, sum := range objects {
		set.Files = append(set.Files, objectstore.TreeFile{Name: sum.String(), Checksum: sum})
	}
	setSum, err := marshal(objectstore.TypeDirTree, &set)
	if err != nil {
		return fmt.Errorf("store layer commit: %w", err)
	}
	top, err := marshal(objectstore.TypeDirTree, &objectstore.DirTree{
		Files: files,
		Dirs:  []objectstore.TreeDir{{Name: objectsName, Tree: setSum, Meta: meta}},
	})
	if err != nil {
		return fmt.Errorf("store layer commit: %w", err)
	}
	c := &objectstore.Commit{Tree: top, Meta: meta}
	if l.DiffID != "" {
		c.Metadata = append(c.Metadata, objectstore.MetaEntry{Key: metaDiffID, Value: gvariant.String(l.DiffID.String())})
	}
	for _, m := range []struct {
		key string
		v   int64
	}{{metaEntries, l.Entries}, {metaBytes, l.Size}, {metaTarBytes, l.TarSize}, {metaUnresolved, l.Unresolved}} {
		c.Metadata = append(c.Metadata, objectstore.MetaEntry{Key: m.key, Value: gvariant.Uint64(uint64(m.v))})
	}
	if l.ID, err = marshal(objectstore.TypeCommit, c); err != nil {
		return fmt.Errorf("store layer commit: %w", err)
	}
	in.s.noteWhiteouts(l.ID, root)
	return nil
}

// withContents adds the objects that only the recipe needs to those of the layer's image: files that a later entry of
// the tar replaced. The list is sorted.
func (in *ingest) withContents(objects []objectstore.Checksum) []objectstore.Checksum {
	for _, n := range in.contents {
		objects = append(objects, n.sum)
	}
	slices.SortFunc(objects, compareSums)
	return slices.Compact(objects)
}

// storeRecipe ends the recipe, which refers to the layer's objects by index.
func (in *ingest) storeRecipe(l *Layer, objects []objectstore.Checksum, added *Usage) error {
	err := in.recipe.WriteTable(func(yield func(int) bool) {
		for _, n := range in.contents {
			if i, _ := slices.BinarySearchFunc(objects, n.sum, compareSums); !yield(i) {
				return
			}
		}
	})
	if err != nil {
		return err
	}
	stored, err := in.recipeFile.Commit()
	added.add(stored)
	l.Recipe = stored.Checksum
	return err
}

func compareSums(a, b objectstore.Checksum) int { return bytes.Compare(a[:], b[:]) }

// summarize counts the entries of a layer's tree and returns the objects it uses, sorted.
func (l *Layer) summarize(root *composefs.Inode) []objectstore.Checksum {
	l.Entries, l.Size, l.Unresolved = 0, 0, 0
	seen := make(map[*composefs.Inode]struct{})
	var sums []objectstore.Checksum
	var walk func(n *composefs.Inode)
	walk = func(n *composefs.Inode) {
		for _, e := range n.Entries {
			l.Entries++
			c := e.Inode
			if _, ok := seen[c]; ok {
				continue
			}
			if !c.IsDir() {
				seen[c] = struct{}{}
			}
			if unresolved(c) {
				l.Unresolved++
			}
			if c.Payload != "" {
				l.Size += c.Size
				if sum, err := PayloadSum(c.Payload); err == nil { // made by LoosePath
					sums = append(sums, sum)
				}
			}
			walk(c)
		}
	}
	walk(root)
	slices.SortFunc(sums, compareSums)
	return slices.Compact(sums)
}

func isOpaque(n *composefs.Inode) bool {
	v, ok := xattr(n, xattrOpaque)
	return ok && string(v) == "y"
}

func isImplicit(n *composefs.Inode) bool {
	_, ok := xattr(n, xattrImplicit)
	return ok
}

// external returns the target of an inode that is a hard link into a lower layer.
func external(n *composefs.Inode) (string, bool) {
	v, ok := xattr(n, xattrHardlink)
	return string(v), ok
}

// LinksBelow reports whether a file of a layer's image is a hard link to a file of a layer below, which alone has its
// content and attributes.
func LinksBelow(n *composefs.Inode) bool {
	_, ok := external(n)
	return ok
}

func unresolved(n *composefs.Inode) bool {
	_, link := external(n)
	return link || isImplicit(n)
}

func xattr(n *composefs.Inode, name string) ([]byte, bool) {
	for _, x := range n.Xattrs {
		if x.Name == name {
			return x.Value, true
		}
	}
	return nil, false
}

func withoutXattr(x []composefs.Xattr, names ...string) []composefs.Xattr {
	return slices.DeleteFunc(slices.Clone(x), func(x composefs.Xattr) bool { return slices.Contains(names, x.Name) })
}

// child returns the file with a name in a directory, or nil.
func child(dir *composefs.Inode, name string) *composefs.Inode {
	if e := childEntry(dir, name); e != nil {
		return e.Inode
	}
	return nil
}

// childEntry returns the entry with a name in a directory, or nil. Entries are sorted.
func childEntry(dir *composefs.Inode, name string) *composefs.Entry {
	i, ok := dir.Find(name)
	if !ok {
		return nil
	}
	return &dir.Entries[i]
}
