package layer

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/faulttest"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// TestRecipeGolden pins the format: the layer's ID depends on every byte.
func TestRecipeGolden(t *testing.T) {
	s, root := newStore(t, Options{})
	l := importTar(t, s, makeTar(t, dir("usr"), file("usr/a", "content"), file("usr/b", strings.Repeat("x", 700), withXattr("user.a", "1")),
		symlink("usr/l", "a"), file("usr/c", "more")))
	recipe, err := os.ReadFile(filepath.Join(root, "repo/objects", objectstore.LoosePath(l.Recipe, objectstore.TypeFile)))
	testenv.Must(t, err)
	const name = "testdata/recipe.golden"
	if *faulttest.Update {
		testenv.Must(t, os.WriteFile(name, recipe, 0o644))
	}
	want, err := os.ReadFile(name)
	testenv.Must(t, err)
	if !bytes.Equal(recipe, want) {
		t.Errorf("got recipe\n%q\nwant\n%q", recipe, want)
	}
	const id = "d3cf0e22c72664ffc0f59d3985c3743b090aee24e36810ea80b410af4f187cd7"
	if got := l.ID.String(); got != id {
		t.Errorf("got layer %s, want %s", got, id)
	}
}

// TestRecipeSize states the size of a recipe for a tar like those of images.
func TestRecipeSize(t *testing.T) {
	const files = 10_000
	for _, format := range []tar.Format{tar.FormatUSTAR, tar.FormatPAX, tar.FormatGNU} {
		t.Run(format.String(), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(1, 1))
			var entries []tarEntry
			for i := range files {
				e := file(fmt.Sprintf("usr/lib/python3/dist-packages/package%d/module%d.py", i/40, i), strings.Repeat("x", 1+rnd.IntN(20)))
				e.Format = format
				if format == tar.FormatPAX {
					e.ModTime = when.Add(1) // needs a record
				}
				entries = append(entries, e)
			}
			s, _ := newStore(t, Options{})
			l := importTar(t, s, makeTar(t, entries...))
			st, err := s.Repo().Stat(l.Recipe)
			testenv.Must(t, err)
			t.Logf("%d bytes for each file", st.Size/files)
			if st.Size > 40*files {
				t.Errorf("recipe has %d bytes for each file, want 40 at most", st.Size/files)
			}
		})
	}
}

// TestWriteTarOdd rewrites tars of which the layer keeps only a part.
func TestWriteTarOdd(t *testing.T) {
	padded := makeTar(t, file("a", "x", at(time.Unix(1, 0))), file("b", "y"))
	copy(padded[512+1:], "not zeros, although they should be")
	for name, b := range map[string][]byte{
		"replaced":         makeTar(t, file("a", "one"), file("a", "two"), file("a", "three"), dir("a"), file("a", "four")),
		"relabelled":       makeTar(t, file("a", "one"), hardlink("b", "a", mode(0o600)), file("a", "two")),
		"whiteout":         makeTar(t, file("a", "one"), whiteout("", "a"), whiteout("", "b")),
		"content ignored":  slices.Concat(rawHeader(tar.TypeDir, "d/", 0, nil), makeTar(t, file("f", "x"))),
		"padding":          padded,
		"no end":           bytes.TrimRight(makeTar(t, file("a", strings.Repeat("x", 512))), "\x00"),
		"end within block": append(makeTar(t, file("a", "x")), "abc"...),
		"sparse":           slices.Concat(sparseGNU(nil), makeTar(t, file("f", "x"))),
		"sparse PAX":       slices.Concat(sparsePAX("s", sparseMap), makeTar(t, file("f", "x"))),
		"empty":            {},
		"large":            mixedTar(t),
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := newStore(t, Options{})
			l := importTar(t, s, b)
			testenv.Must(t, s.Prove(t.Context(), l.ID))
		})
	}
}

// TestProve damages the sources of a tar.
func TestProve(t *testing.T) {
	b := makeTar(t, file("a", "one"), file("b", "two"), file("a", "replaced"))
	for _, tt := range []struct {
		name   string
		damage func(t *testing.T, s *Store, l Layer, file func(objectstore.Checksum) string)
		want   error
	}{
		{"content", func(t *testing.T, s *Store, l Layer, file func(objectstore.Checksum) string) {
			sums, err := s.Objects(t.Context(), l.ID)
			testenv.Must(t, err)
			flip(t, file(sums[0]))
		}, objectstore.ErrCorrupt},
		{"content of a file that is hidden", func(t *testing.T, s *Store, l Layer, file func(objectstore.Checksum) string) {
			sums, err := s.Objects(t.Context(), l.ID)
			testenv.Must(t, err)
			if len(sums) != 3 {
				t.Fatalf("got %d objects, want 3", len(sums))
			}
			for _, sum := range sums {
				if c, err := os.ReadFile(file(sum)); err == nil && string(c) == "one" {
					flip(t, file(sum))
				}
			}
		}, objectstore.ErrCorrupt},
		{"size", func(t *testing.T, s *Store, l Layer, file func(objectstore.Checksum) string) {
			sums, err := s.Objects(t.Context(), l.ID)
			testenv.Must(t, err)
			truncate(t, file(sums[1]))
		}, objectstore.ErrCorrupt},
		{"missing", func(t *testing.T, s *Store, l Layer, file func(objectstore.Checksum) string) {
			sums, err := s.Objects(t.Context(), l.ID)
			testenv.Must(t, err)
			testenv.Must(t, os.Remove(file(sums[1])))
		}, objectstore.ErrNotExist},
		{"recipe", func(t *testing.T, _ *Store, l Layer, file func(objectstore.Checksum) string) { flip(t, file(l.Recipe)) }, objectstore.ErrCorrupt},
		{"recipe empty", func(t *testing.T, _ *Store, l Layer, file func(objectstore.Checksum) string) {
			truncate(t, file(l.Recipe))
		}, objectstore.ErrCorrupt},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newBed(t, Options{})
			defer s.close(t)
			l := importTar(t, s.Store, b)
			testenv.Must(t, s.Prove(t.Context(), l.ID))
			tt.damage(t, s.Store, l, func(sum objectstore.Checksum) string { return s.objectFile(objectstore.TypeFile, sum) })
			if err := s.Prove(t.Context(), l.ID); !errors.Is(err, tt.want) {
				t.Errorf("got error %v, want %v", err, tt.want)
			}
		})
	}
	t.Run("no recipe", func(t *testing.T) {
		s, root := newStore(t, Options{})
		upper := filepath.Join(root, "upper")
		writeTree(t, upper, [2]string{"d/", ""}, [2]string{"d/f", "content"})
		l := importDir(t, s, upper, "1")
		if err := s.Prove(t.Context(), l.ID); !errors.Is(err, ErrNoTar) {
			t.Errorf("got error %v, want %v", err, ErrNoTar)
		}
	})
}

// TestRecipeFaults fails each write of a recipe that is longer than the buffer.
func TestRecipeFaults(t *testing.T) {
	b := slices.Concat(makeTar(t, file("a", "x")), randomBytes(3*64<<10, 1))
	path := t.TempDir()
	openStore(t, path, Options{})
	for n := int64(1); ; n++ {
		var writes atomic.Int64 // by the recipe and by the workers
		h := hooked(t, path, Options{Workers: 1}, func(op atfs.Op, _ string) error {
			if op == atfs.OpWrite && writes.Add(1) == n {
				return unix.ENOSPC
			}
			return nil
		})
		held, err := h.Import(t.Context(), bytes.NewReader(b), ImportOptions{})
		if err == nil {
			testenv.Must(t, held.Release())
			if n < 5 {
				t.Errorf("got %d writes, want more", n)
			}
			return
		}
		if !errors.Is(err, unix.ENOSPC) || errors.Is(err, ErrInvalid) {
			t.Errorf("write %d failed: got error %v, want ENOSPC that is not the layer's fault", n, err)
		}
	}
}
