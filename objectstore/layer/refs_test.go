package layer

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// refLayers are layers of each kind: one found by blob, one only by tar, one of a directory.
func refLayers(t testing.TB, s *Store) map[objectstore.Checksum][]digest.Digest {
	t.Helper()
	h, err := s.Import(t.Context(), bytes.NewReader(someTar(t)), ImportOptions{Blob: someBlob})
	testenv.Must(t, err)
	testenv.Must(t, h.Release())
	if h.Blob != someBlob {
		t.Errorf("import: blob is %q, want %s", h.Blob, someBlob)
	}
	upper := t.TempDir()
	writeTree(t, upper, [2]string{"f", "of a directory"})
	d, err := atfs.Open(upper)
	testenv.Must(t, err)
	defer d.Close()
	made, err := s.ImportDir(t.Context(), d, nil, "7")
	testenv.Must(t, err)
	testenv.Must(t, made.Release())
	tarOnly := importTar(t, s, makeTar(t, file("f", "of a tar")))
	return map[objectstore.Checksum][]digest.Digest{h.ID: {someBlob}, tarOnly.ID: nil, made.ID: nil}
}

// Whatever refs are removed, they are restored: each layer is kept, and found by the same digests as before.
func TestRestoreRefs(t *testing.T) {
	for _, tt := range []struct {
		name, remove string
		refs         int
	}{
		{"nothing", "repo/refs/heads/other", 0},
		{"everything", "repo/refs", 4},
		{"all of ours", "repo/refs/heads/oci", 4},
		{"blobs", "repo/refs/heads/oci/blob", 1},
		{"diff IDs", "repo/refs/heads/oci/diff", 2},
		{"directories", "repo/refs/heads/oci/snapshot", 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBed(t, Options{Journal: true})
			layers := refLayers(t, b.Store)
			testenv.Must(t, b.Sync(t.Context()))
			before, err := b.repo.Refs("")
			testenv.Must(t, err)
			testenv.Must(t, os.RemoveAll(filepath.Join(b.path, tt.remove)))
			r, err := b.RestoreRefs(t.Context(), layers)
			if err != nil || r.Refs != tt.refs || len(r.Damaged) != 0 {
				t.Errorf("got %+v, %v, want %d refs", r, err, tt.refs)
			}
			after, err := b.repo.Refs("")
			testenv.Must(t, err)
			for name, id := range before {
				if kept := slices.Contains(slices.Collect(maps.Values(after)), id); !kept {
					t.Errorf("layer %s has no ref", id)
				}
				if !strings.HasPrefix(name, refSnapshot) && after[name] != id {
					t.Errorf("ref %s: got %s, want %s", name, after[name], id)
				}
			}
			if len(after) != len(before) {
				t.Errorf("got refs %v, want as many as %v", after, before)
			}
			if n := len(b.records(t)); (n > 0) != (tt.refs > 0) {
				t.Errorf("the journal has %d entries after %d refs were written", n, tt.refs)
			}
			if r, err := b.RestoreRefs(t.Context(), layers); err != nil || r.Refs != 0 {
				t.Errorf("again: got %+v, %v, want nothing to do", r, err)
			}
			h, err := b.AcquireBlob(t.Context(), someBlob)
			testenv.Must(t, err)
			if h.Blob != someBlob {
				t.Errorf("blob is %q, want %s", h.Blob, someBlob)
			}
			testenv.Must(t, h.Release())
			var ls []Layer
			for id := range layers {
				ls = append(ls, Layer{ID: id})
			}
			plan, err := b.PlanPrune(t.Context(), live(ls...))
			if err != nil || plan.Stats() != (PruneStats{}) {
				t.Errorf("prune: got %+v, %v, want nothing to remove", plan.Stats(), err)
			}
			checkStore(t, b.path)
		})
	}
}

// The journal has the refs before they are written, as with those of an import.
func TestRestoreRefsJournal(t *testing.T) {
	b := newBed(t, Options{Journal: true})
	layers := refLayers(t, b.Store)
	testenv.Must(t, b.Sync(t.Context()))
	testenv.Must(t, os.RemoveAll(filepath.Join(b.path, "repo/refs")))
	listed := make(map[string]bool)
	written := 0
	b.hook = func(op atfs.Op, name string) error {
		if op == atfs.OpSync && strings.HasPrefix(name, "journal") {
			for _, r := range b.records(t) {
				for _, ref := range r.refs {
					listed[ref] = true
				}
			}
		}
		if ref, ok := strings.CutPrefix(name, "repo/refs/heads/"); ok && op == atfs.OpRename {
			written++
			if !listed[ref] {
				t.Errorf("ref %s is written before the journal lists it", ref)
			}
		}
		return nil
	}
	r, err := b.RestoreRefs(t.Context(), layers)
	b.hook = nil
	if err != nil || r.Refs != 4 || written != 4 {
		t.Errorf("got %+v, %v and %d refs written, want 4", r, err, written)
	}
}

// A layer that lacks an object, or its commit, must not be found; one whose ref was taken by another is kept by another
// ref.
func TestRestoreRefsOfDamagedLayers(t *testing.T) {
	b := newBed(t, Options{Journal: true})
	layers := refLayers(t, b.Store)
	whole := importTar(t, b.Store, makeTar(t, file("whole", "whole"))).ID
	damaged := importTar(t, b.Store, makeTar(t, file("damaged", "damaged"))).ID
	gone := importTar(t, b.Store, makeTar(t, file("gone", "gone"))).ID
	sums, err := b.Objects(t.Context(), damaged)
	testenv.Must(t, err)
	testenv.Must(t, os.RemoveAll(filepath.Join(b.path, "repo/refs")))
	testenv.Must(t, os.Remove(b.objectFile(objectstore.TypeFile, sums[0])))
	testenv.Must(t, os.Remove(b.objectFile(objectstore.TypeCommit, gone)))
	// Another layer, otherwise unknown here, has the ref of a complete one.
	l, err := b.Layer(t.Context(), whole)
	testenv.Must(t, err)
	taken := refDiff + l.DiffID.Encoded()
	var other objectstore.Checksum
	for id := range layers {
		other = id
	}
	testenv.Must(t, b.setMissingRefs(t.Context(), other, []string{taken}))
	want := map[objectstore.Checksum][]digest.Digest{whole: {digest.FromString("another blob")}, damaged: {digest.FromString("a third")}, gone: nil}
	r, err := b.RestoreRefs(t.Context(), want)
	testenv.Must(t, err)
	if r.Refs != 2 || len(r.Damaged) != 2 || !errors.Is(r.Damaged[damaged], objectstore.ErrNotExist) || !errors.Is(r.Damaged[gone], objectstore.ErrNotExist) {
		t.Errorf("got %+v, want 2 refs, and layers %s and %s damaged", r, damaged, gone)
	}
	refs, err := b.repo.Refs("")
	testenv.Must(t, err)
	if refs[taken] != other || refs[refSnapshot+whole.String()[:shortID]] != whole || len(refs) != 3 {
		t.Errorf("got refs %v", refs)
	}
}

// A restoringRefs case restores lost refs of layers of all kinds.
func restoringRefs() sweepCase {
	layers := func(t *testing.T, b *bed) map[objectstore.Checksum][]digest.Digest {
		t.Helper()
		rows := b.rows(t)
		return map[objectstore.Checksum][]digest.Digest{rows[0]: {someBlob}, rows[1]: nil}
	}
	return sweepCase{
		Min: 10,
		Prepare: prepare(func(t *testing.T, b *bed) {
			t.Helper()
			rows := fmt.Appendln(nil, b.importBlob(t, tinyTar(t), someBlob).ID)
			rows = fmt.Appendln(rows, importTar(t, b.Store, faultTar(t)).ID)
			testenv.Must(t, os.WriteFile(filepath.Join(b.path, rowFile), rows, 0o600))
			testenv.Must(t, os.RemoveAll(filepath.Join(b.path, "repo/refs/heads/oci")))
		}),
		Open: openSwept,
		Run: func(t *testing.T, b *bed) error {
			t.Helper()
			r, err := b.RestoreRefs(t.Context(), layers(t, b))
			if len(r.Damaged) != 0 {
				t.Errorf("damaged: %v", r.Damaged)
			}
			return err
		},
		Check: func(t *testing.T, b *bed, done bool) {
			t.Helper()
			b.checkAll(t)
			if !done {
				return
			}
			h, err := b.AcquireBlob(t.Context(), someBlob)
			testenv.Must(t, err)
			testenv.Must(t, h.Release())
			b.layerOf(t, faultTar(t))
		},
	}
}
