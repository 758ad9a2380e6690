package fsck

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/inspect"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/snaptest"
)

// Active snapshots whose directory is missing, or whose layer cannot be told, are problems.
func TestCheckDirectories(t *testing.T) {
	testenv.NeedsRoot(t)
	for _, tt := range []struct {
		name   string
		damage func(dir string) error
		want   error
	}{
		{"nothing", func(string) error { return nil }, nil},
		{"directory missing", os.RemoveAll, objectstore.ErrNotExist},
		{"layer torn", func(dir string) error {
			return os.WriteFile(filepath.Join(dir, snapshotter.AppliedFile), []byte("torn"), 0o600)
		}, errdefs.ErrDataLoss},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f, err := snaptest.MakeFixture(t.Context(), t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if err := f.Snapshotter.Close(); err != nil {
				t.Fatal(err)
			}
			s := &inspect.Store{Root: f.Root, Repo: f.Repo, Layers: f.Store}
			list, err := s.Snapshots(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			key := snaptest.SnapshotName("container")
			i := slices.IndexFunc(list, func(sn inspect.Snapshot) bool { return sn.Key == key })
			if err := tt.damage(filepath.Join(f.Path, snapshotter.SnapshotsDir, list[i].ID)); err != nil {
				t.Fatal(err)
			}
			r, err := Check(t.Context(), s, Options{})
			if err != nil {
				t.Fatal(err)
			}
			switch {
			case tt.want == nil && len(r.Problems) == 0:
			case len(r.Problems) == 1 && r.Problems[0].Kind == KindSnapshot && r.Problems[0].Name == key && errors.Is(r.Problems[0].Err, tt.want):
			default:
				t.Errorf("problems: %+v, want one with %v", r.Problems, tt.want)
			}
		})
	}
}

// A layer that was made of a directory has no diff ID. That is no problem, but a ref that gives it one is.
func TestCheckWithoutDiffID(t *testing.T) {
	testenv.NeedsRoot(t)
	f, err := snaptest.MakeFixture(t.Context(), t.TempDir())
	testenv.Must(t, err)
	defer f.Close()
	_, err = f.Prepare(t.Context(), "build", snaptest.SnapshotName(string(f.Chain)))
	testenv.Must(t, err)
	uppers, err := filepath.Glob(filepath.Join(f.Path, snapshotter.SnapshotsDir, "*/fs"))
	testenv.Must(t, err)
	for _, upper := range uppers {
		testenv.Must(t, os.WriteFile(filepath.Join(upper, "built"), []byte("by a build"), 0o644))
	}
	testenv.Must(t, f.Commit(t.Context(), "built", "build"))
	testenv.Must(t, f.Snapshotter.Close())
	s := &inspect.Store{Root: f.Root, Repo: f.Repo, Layers: f.Store}

	r, err := Check(t.Context(), s, Options{Deep: true})
	if err != nil || len(r.Problems) != 0 || r.Deep.WithoutTar != 1 {
		t.Fatalf("got %+v, %v, want no problems and one layer without a tar", r, err)
	}
	refs, err := f.Repo.Refs(layer.RefPrefix)
	testenv.Must(t, err)
	wrong := layer.RefPrefix + "/diff/" + strings.Repeat("ab", 32)
	for name, id := range refs {
		if strings.HasPrefix(name, layer.RefPrefix+"/snapshot/") {
			txn, err := f.Repo.Begin(t.Context())
			testenv.Must(t, err)
			txn.SetRef(wrong, id)
			testenv.Must(t, txn.Commit(t.Context(), objectstore.CommitOptions{}))
		}
	}
	r, err = Check(t.Context(), s, Options{})
	if err != nil || len(r.Problems) != 1 || r.Problems[0].Kind != KindRef || r.Problems[0].Name != wrong ||
		!strings.Contains(r.Problems[0].Err.Error(), "layer has no diff ID") {
		t.Errorf("got %+v, %v, want one problem with %s", r, err, wrong)
	}
}

// A problem affects the snapshots that have its layer and all that rest on them, and their images.
func TestAffects(t *testing.T) {
	layers := func(n byte) objectstore.Checksum { return objectstore.Checksum{n} }
	list := []inspect.Snapshot{
		{Key: "base", Layer: layers(1)},
		{Key: "a", Parent: "base", Layer: layers(2)},
		{Key: "b", Parent: "base", Layer: layers(3)},
		{Key: "container", Parent: "a"},
		{Key: "x", Parent: "y", Layer: layers(4)}, // in a circle
		{Key: "y", Parent: "x", Layer: layers(5)},
	}
	groups := []inspect.Group{
		{Image: 0, Keys: map[string]struct{}{"base": {}, "a": {}}},
		{Image: 1, Keys: map[string]struct{}{"base": {}, "b": {}}},
		{Image: -1, Keys: map[string]struct{}{"x": {}, "y": {}}},
	}
	images := []inspect.Image{{Names: []string{"ns/a:2", "ns/a:1"}}, {Names: []string{"ns/b"}}}
	for _, tt := range []struct {
		layer             byte
		snapshots, images string
	}{
		{1, "a b base container", "ns/a:1 ns/a:2 ns/b"},
		{2, "a container", "ns/a:1 ns/a:2"},
		{3, "b", "ns/b"},
		{4, "x y", ""},
		{9, "", ""},
	} {
		p := problem{layers: map[objectstore.Checksum]struct{}{layers(tt.layer): {}}}
		got := p.affects(list, groups, images)
		if s := strings.Join(got.Snapshots, " "); s != tt.snapshots {
			t.Errorf("layer %d affects snapshots %q, want %q", tt.layer, s, tt.snapshots)
		}
		if s := strings.Join(got.Images, " "); s != tt.images {
			t.Errorf("layer %d affects images %q, want %q", tt.layer, s, tt.images)
		}
	}
}
