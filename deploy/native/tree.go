package native

import (
	"strings"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/oscommit"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/composefs"
)

// A Tree is the tree of a commit, or of an image with a commit inside.
type Tree struct {
	Root *composefs.Inode
	// Given are the content objects of the commit by the tree's files. A file's payload is the layer's object, which may
	// have other extended attributes.
	Given map[*composefs.Inode]oscommit.Given

	inodes map[objectstore.Checksum]*composefs.Inode
}

// Tree returns a tree of the commit, which the caller may change. All names of an object are hard links.
func (b *Base) Tree() *Tree {
	t := &Tree{
		Given:  make(map[*composefs.Inode]oscommit.Given, len(b.files)),
		inodes: make(map[objectstore.Checksum]*composefs.Inode, len(b.files)),
	}
	for _, f := range b.files {
		n := *f.inode
		t.inodes[f.sum] = &n
		if n.Payload != "" {
			t.Given[&n] = oscommit.Given{Sum: f.sum, Layer: f.own}
		}
	}
	t.Root = b.dir(t, b.Commit.Tree, b.Commit.Meta)
	return t
}

func (b *Base) dir(t *Tree, tree, meta objectstore.Checksum) *composefs.Inode {
	m := b.metas[meta]
	n := &composefs.Inode{Mode: m.Mode, UID: m.UID, GID: m.GID, Xattrs: m.xattrs}
	files, dirs := b.trees[tree].Files, b.trees[tree].Dirs
	n.Entries = make([]composefs.Entry, 0, len(files)+len(dirs))
	for len(files) > 0 || len(dirs) > 0 {
		if len(dirs) == 0 || len(files) > 0 && strings.Compare(files[0].Name, dirs[0].Name) < 0 {
			n.Entries = append(n.Entries, composefs.Entry{Name: files[0].Name, Inode: t.inodes[files[0].Checksum]})
			files = files[1:]
		} else {
			n.Entries = append(n.Entries, composefs.Entry{Name: dirs[0].Name, Inode: b.dir(t, dirs[0].Tree, dirs[0].Meta)})
			dirs = dirs[1:]
		}
	}
	return n
}
