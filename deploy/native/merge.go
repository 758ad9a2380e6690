package native

import (
	"context"
	"crypto/sha256"
	"fmt"
	"slices"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/native/format"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/oscommit"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/composefs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
)

// Merge returns the tree of an image: that of its commit, with the layers above it, if there are any, laid over it as a
// container shows them. ids are all layers of the image.
//
// Layers know the commit's /usr/etc as /etc, which it is in the result if there are any. They may also have hard links to
// files in the repository, and write to these files; the repository itself is not in the result. The tree's root keeps
// its attributes: layers have none for it.
func (b *Base) Merge(ctx context.Context, layers *layer.Store, ids []objectstore.Checksum) (*Tree, error) {
	t := b.Tree()
	below, above := ids[:len(b.place.DiffIDs)], ids[len(b.place.DiffIDs):]
	if len(above) == 0 {
		return t, nil
	}
	shown, err := layers.Flatten(ctx, below)
	if err != nil {
		return nil, err
	}
	t.showEtc()
	t.showRepo(shown)
	attributes := *t.Root
	if t.Root, err = layers.FlattenOver(ctx, t.Root, above); err != nil {
		return nil, err
	}
	t.Root.Mode, t.Root.UID, t.Root.GID, t.Root.Xattrs = attributes.Mode, attributes.UID, attributes.GID, attributes.Xattrs
	if sysroot := child(t.Root, "sysroot"); sysroot != nil {
		remove(sysroot, "ostree")
	}
	t.findCopies()
	return t, nil
}

// showEtc moves /usr/etc to /etc, unless there is one.
func (t *Tree) showEtc() {
	usr := child(t.Root, "usr")
	if usr == nil || child(t.Root, "etc") != nil {
		return
	}
	if etc := child(usr, "etc"); etc != nil && etc.IsDir() {
		remove(usr, "etc")
		insert(t.Root, "etc", etc)
	}
}

// showRepo adds the /sysroot that a container sees. Files of the commit are the same inodes there.
func (t *Tree) showRepo(shown *composefs.Inode) {
	from := child(shown, "sysroot")
	if from == nil {
		return
	}
	if dir := lookup(shown, format.RepoDir+"/"+format.ObjectsDir); dir != nil {
		t.linkObjects(dir)
	}
	to := child(t.Root, "sysroot")
	if to == nil {
		insert(t.Root, "sysroot", from)
	} else if to.IsDir() {
		to.Entries = from.Entries
	}
}

func (t *Tree) linkObjects(dir *composefs.Inode) {
	for _, sub := range dir.Entries {
		for i, e := range sub.Inode.Entries {
			name, err := parseName(sub.Name, e.Name)
			if err != nil || name.Type != objectstore.TypeFile {
				continue
			}
			if n := t.inodes[name.Checksum]; n != nil {
				sub.Inode.Entries[i].Inode = n
			}
		}
	}
}

// findCopies gives inodes that are copies of the commit's files, which a hard link to such a file makes, the same objects.
func (t *Tree) findCopies() {
	given := make(map[[sha256.Size]byte]oscommit.Given, len(t.Given))
	for n, g := range t.Given {
		given[identity(n)] = g
	}
	var walk func(dir *composefs.Inode)
	walk = func(dir *composefs.Inode) {
		for _, e := range dir.Entries {
			if e.Inode.IsDir() {
				walk(e.Inode)
			} else if e.Inode.Payload != "" {
				if g, ok := given[identity(e.Inode)]; ok {
					t.Given[e.Inode] = g
				}
			}
		}
	}
	walk(t.Root)
}

// identity returns a hash that differs for regular files with different content objects.
func identity(n *composefs.Inode) [sha256.Size]byte {
	h := sha256.New()
	fmt.Fprintf(h, "%s %o %d:%d", n.Payload, n.Mode, n.UID, n.GID)
	for _, x := range n.Xattrs {
		fmt.Fprintf(h, " %q=%q", x.Name, x.Value)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

func remove(dir *composefs.Inode, name string) {
	if i, ok := dir.Find(name); ok {
		dir.Entries = slices.Delete(dir.Entries, i, i+1)
	}
}

func insert(dir *composefs.Inode, name string, n *composefs.Inode) {
	i, _ := dir.Find(name)
	dir.Entries = slices.Insert(dir.Entries, i, composefs.Entry{Name: name, Inode: n})
}
