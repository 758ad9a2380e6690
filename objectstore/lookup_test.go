package objectstore_test

import (
	"errors"
	"io/fs"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/objecttest"
)

func TestLookup(t *testing.T) {
	repo, err := objectstore.Create(objecttest.OpenDir(t, t.TempDir()), objectstore.ModeBare)
	if err != nil {
		t.Fatal(err)
	}
	defer repo.Close()
	file := objecttest.File(0o644, "x")
	sum := objecttest.Commit(t, repo, "test", objecttest.Dir(0o755, map[string]*objecttest.Node{
		"usr": objecttest.Dir(0o750, map[string]*objecttest.Node{
			"etc":  objecttest.Dir(0o755, map[string]*objecttest.Node{"b": file, "a": file, "c": objecttest.Dir(0o700, nil)}),
			"file": file,
			"lost": objecttest.Dir(0o711, map[string]*objecttest.Node{"only here": file}),
		}),
		"link": objecttest.Symlink("usr"),
	}))
	c, err := repo.Commit(sum)
	if err != nil {
		t.Fatal(err)
	}
	lost, err := repo.Lookup(c.Root(), "usr/lost")
	if err != nil {
		t.Fatal(err)
	}
	if err := repo.ObjectsDir().Unlink(objectstore.LoosePath(lost.Checksum, objectstore.TypeDirTree)); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		dir  bool
		mode uint32 // of a directory
		err  error
	}{
		{".", true, 0o755, nil},
		{"usr", true, 0o750, nil},
		{"usr/etc/a", false, 0, nil},
		{"usr/etc/b", false, 0, nil},
		{"usr/etc/c", true, 0o700, nil},
		{"link", false, 0, nil},
		{"usr/lost", true, 0o711, nil}, // only its object is missing
		{"usr/lost/only here", false, 0, objectstore.ErrNotExist},
		{"var", false, 0, objectstore.ErrNoEntry},
		{"usr/etc/d", false, 0, objectstore.ErrNoEntry},
		{"usr/file/x", false, 0, objectstore.ErrNoEntry},
		{"link/etc", false, 0, objectstore.ErrNoEntry},
		{"usr/../usr", false, 0, objectstore.ErrNoEntry},
		{"usr/./etc", false, 0, objectstore.ErrNoEntry},
		{"usr/", false, 0, objectstore.ErrNoEntry},
		{"/usr", false, 0, objectstore.ErrNoEntry},
		{"", false, 0, objectstore.ErrNoEntry},
	} {
		e, err := repo.Lookup(c.Root(), tt.name)
		if !errors.Is(err, tt.err) || e.Dir != tt.dir {
			t.Errorf("Lookup(%q) = %+v, %v, want directory %v, %v", tt.name, e, err, tt.dir, tt.err)
		}
		if errors.Is(err, objectstore.ErrNoEntry) && errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Lookup(%q): %v is fs.ErrNotExist, as if an object were absent", tt.name, err)
		}
		switch {
		case err != nil:
		case tt.dir:
			if m, err := repo.DirMeta(e.Meta); err != nil || m.Mode&0o777 != tt.mode {
				t.Errorf("Lookup(%q): dirmeta is %+v, %v, want mode %o", tt.name, m, err, tt.mode)
			}
		default:
			if _, err := repo.FileMeta(e.Checksum); err != nil {
				t.Errorf("Lookup(%q): %v", tt.name, err)
			}
		}
	}
}
