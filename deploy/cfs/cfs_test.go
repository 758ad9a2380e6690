package cfs_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/cfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/composefs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/objecttest"
)

type nodes = map[string]*objecttest.Node

var (
	dir  = objecttest.Dir
	file = objecttest.File
)

func commit(t *testing.T, repo *objectstore.Repo, tree *objecttest.Node) *objectstore.Commit {
	t.Helper()
	c, err := repo.Commit(objecttest.Commit(t, repo, "test", tree))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func dump(t *testing.T, image []byte) string {
	t.Helper()
	root, err := composefs.Read(image, composefs.Limits{Inodes: 100, Depth: 10})
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	if err := composefs.WriteDump(&text, root); err != nil {
		t.Fatal(err)
	}
	return text.String()
}

// An image is described by its dump, with which mkcomposefs makes the same one.
func TestMarshal(t *testing.T) {
	testenv.NeedsRoot(t)
	repo := objecttest.NewRepo(t)
	shared := file(0o4755, "shared").Own(7, 8)
	c := commit(t, repo, dir(0o700, nodes{
		"usr": dir(0o2755, nodes{
			"a": shared, "b": shared, "empty": file(0o644, ""), "link": objecttest.Symlink("a"),
			"labelled": file(0o644, "x").Xattr("user.b", "2").Xattr("user.a", "1"), ".ostree-wh.gone": file(0o600, ""),
		}).Own(5, 6).Xattr("user.dir", "d"),
		"boot": objecttest.Symlink("sysroot/boot"),
	}))
	payload := func(name string) string {
		e, err := repo.Lookup(c.Root(), name)
		if err != nil {
			t.Fatal(err)
		}
		return objectstore.LoosePath(e.Checksum, objectstore.TypeFile)
	}
	digest := func(content string) string {
		sum, err := composefs.VerityDigest(strings.NewReader(content))
		if err != nil {
			t.Fatal(err)
		}
		return objectstore.Checksum(sum).String()
	}
	for _, tt := range []struct {
		digests    cfs.Digests
		shared, xs string
	}{{cfs.KnownDigests, "-", "-"}, {cfs.AllDigests, digest("shared"), digest("x")}} {
		image, err := cfs.Marshal(t.Context(), repo, c.Root(), tt.digests)
		if err != nil {
			t.Fatal(err)
		}
		want := strings.Join([]string{
			"/ 0 40700 6 0 0 0 0.0 - - -",
			"/boot 12 120777 1 0 0 0 0.0 sysroot/boot - -",
			"/etc 0 40755 2 0 0 0 0.0 - - -",
			"/sysroot 0 40755 2 0 0 0 0.0 - - -",
			"/usr 0 42755 2 5 6 0 0.0 - - - user.dir=d",
			"/var 0 40755 2 0 0 0 0.0 - - -",
			"/usr/.ostree-wh.gone 0 100600 1 0 0 0 0.0 - - -",
			"/usr/a 6 104755 1 7 8 0 0.0 " + payload("usr/a") + " - " + tt.shared,
			"/usr/b 6 104755 1 7 8 0 0.0 " + payload("usr/a") + " - " + tt.shared,
			"/usr/empty 0 100644 1 0 0 0 0.0 - - -",
			"/usr/labelled 1 100644 1 0 0 0 0.0 " + payload("usr/labelled") + " - " + tt.xs + " user.a=1 user.b=2",
			"/usr/link 1 120777 1 0 0 0 0.0 a - -",
		}, "\n") + "\n"
		if got := dump(t, image); got != want {
			t.Errorf("digests %d:\n%s", tt.digests, testenv.Diff(want, got))
		}
	}
}

func TestMarshalErrors(t *testing.T) {
	testenv.NeedsRoot(t)
	repo, err := objectstore.Create(objecttest.OpenDir(t, t.TempDir()), objectstore.ModeBare)
	if err != nil {
		t.Fatal(err)
	}
	defer repo.Close()
	lost := commit(t, repo, dir(0o755, nodes{"lost": file(0o644, "lost")}))
	e, err := repo.Lookup(lost.Root(), "lost")
	if err != nil {
		t.Fatal(err)
	}
	if err := repo.ObjectsDir().Unlink(objectstore.LoosePath(e.Checksum, objectstore.TypeFile)); err != nil {
		t.Fatal(err)
	}
	reserved := commit(t, repo, dir(0o755, nodes{"a": file(0o644, "a").Xattr("user.overlay.whiteout", "y")}))
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	for name, tt := range map[string]struct {
		ctx    context.Context
		commit *objectstore.Commit
		want   error
		text   string
	}{
		"lost":     {t.Context(), lost, objectstore.ErrNotExist, e.Checksum.String()},
		"bomb":     {t.Context(), bomb(t, repo, 2, 25), cfs.ErrInvalid, "4194304 names"},
		"deep":     {t.Context(), bomb(t, repo, 1, 1025), cfs.ErrInvalid, "1024 directories"},
		"reserved": {t.Context(), reserved, cfs.ErrInvalid, `"/a"`},
		"canceled": {canceled, reserved, context.Canceled, ""},
	} {
		_, err := cfs.Marshal(tt.ctx, repo, tt.commit.Root(), cfs.AllDigests)
		if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: got %v, want %v with %q", name, err, tt.want, tt.text)
		}
	}
}

// bomb returns a commit whose directories have each the next one under several names.
func bomb(t *testing.T, repo *objectstore.Repo, names, depth int) *objectstore.Commit {
	t.Helper()
	txn, err := repo.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := txn.Abort(); err != nil {
			t.Error(err)
		}
	}()
	c := &objectstore.Commit{}
	if c.Tree, c.Meta, err = objecttest.Store(txn, dir(0o755, nil)); err != nil {
		t.Fatal(err)
	}
	for range depth {
		var d objectstore.DirTree
		for i := range names {
			d.Dirs = append(d.Dirs, objectstore.TreeDir{Name: string(rune('a' + i)), Tree: c.Tree, Meta: c.Meta})
		}
		data, err := d.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		stored, err := txn.StoreMetadata(objectstore.TypeDirTree, data)
		if err != nil {
			t.Fatal(err)
		}
		c.Tree = stored.Checksum
	}
	return c
}
