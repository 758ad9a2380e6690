package deploy

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/native/nativetest"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/oscommit"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/composefs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/objecttest"
)

// TestPromoteNativeDamaged: damage of the store is told from an error in the image, whatever object of the commit it hits.
func TestPromoteNativeDamaged(t *testing.T) {
	from := objecttest.NewRepo(t)
	commit := objecttest.Commit(t, from, "os", nativeTree())
	c, err := from.Commit(commit)
	testenv.Must(t, err)
	for _, name := range []string{
		repoPath(objectstore.TypeCommit, commit), repoPath(objectstore.TypeDirTree, c.Tree), repoPath(objectstore.TypeDirMeta, c.Meta),
		"sysroot/ostree/repo/config", objectOf(t, from, commit, "usr/bin/kept"), objectOf(t, from, commit, "usr/bin/kept") + "-xattrs-link",
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			img := b.nativeImage(t, "example.org/native:1", commit, nativetest.Encapsulate(t, from, commit, inside, byName)...)
			n := 0
			for _, id := range img.Layers {
				root, err := b.layers.Image(t.Context(), id)
				testenv.Must(t, err)
				file := lookupInode(root, name)
				if file == nil {
					continue
				}
				object := filepath.Join(b.repo.ObjectsDir().Path(), file.Payload)
				text, err := os.ReadFile(object)
				testenv.Must(t, err)
				damaged := slices.Clone(text)
				damaged[len(text)-1] ^= 1
				testenv.Must(t, os.WriteFile(object, damaged, 0))
				t.Cleanup(func() { testenv.Must(t, os.WriteFile(object, text, 0)) })
				n++
			}
			if n == 0 {
				t.Fatal("no layer has the file")
			}
			_, err := Promote(t.Context(), b.layers, sysrootRepo(t, b.root.Path()+"-sysroot/ostree/repo"), img, PromoteOptions{})
			if !errors.Is(err, objectstore.ErrCorrupt) || errors.Is(err, oscommit.ErrInvalid) {
				t.Errorf("got error %v, want an ErrCorrupt that is no ErrInvalid", err)
			}
		})
	}
}

// repoPath returns the path in a layer of a metadata object.
func repoPath(typ objectstore.ObjectType, sum objectstore.Checksum) string {
	return "sysroot/ostree/repo/objects/" + objectstore.LoosePath(sum, typ)
}

// lookupInode returns the file at a path, or nil.
func lookupInode(n *composefs.Inode, name string) *composefs.Inode {
	for part := range strings.SplitSeq(name, "/") {
		i, ok := n.Find(part)
		if !ok {
			return nil
		}
		n = n.Entries[i].Inode
	}
	return n
}
