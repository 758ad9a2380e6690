package snapshotter_test

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/snaptest"
)

// TestDirs creates everything that a root can hold, and checks that Dirs and Files of both packages list all of it,
// with its modes.
func TestDirs(t *testing.T) {
	e := snaptest.New(t, snapshotter.WithComposefs(snaptest.Kernel(t)))
	tar := snaptest.Tar(t, snaptest.File("f", "content"))
	prepare(t, e, "extract", "")
	apply(t, e, prepare(t, e, "layer", ""), tar)
	commit(t, e, "image", "layer")
	prepare(t, e, "container", "image")
	if err := e.Snapshotter.Close(); err != nil { // makes the copy
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(e.Path, snapshotter.MetadataFile)); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(e.Path, snapshotter.SnapshotsDir, "99/fs/written"), 0o700); err != nil {
		t.Fatal(err)
	}
	e.Reopen(t, snapshotter.WithComposefs(snaptest.Kernel(t))) // moves the directory without a row to lost/
	prepare(t, e, "another container", "image")

	want := map[string]uint32{"repo": unix.S_IFDIR | 0o700}
	for _, m := range []map[string]uint32{layer.Dirs(), snapshotter.Dirs(), snapshotter.Files()} {
		maps.Copy(want, m)
	}
	names, err := e.Root.ReadNames()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		st, err := e.Root.Lstat(name)
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode != want[name] {
			t.Errorf("%s has mode %o, want %o", name, st.Mode, want[name])
		}
		delete(want, name)
	}
	for name := range want {
		t.Errorf("%s is missing", name)
	}
}

func TestAppliedLayers(t *testing.T) {
	root, err := atfs.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if layers, damaged, err := snapshotter.AppliedLayers(root); len(layers)+len(damaged) > 0 || err != nil {
		t.Errorf("root without snapshots: got %v, %v, %v", layers, damaged, err)
	}
	id := objectstore.Checksum{1, 2, 3}
	for name, content := range map[string]string{"1": id.String() + "\n", "2": id.String(), "3": "torn", "4": ""} {
		if err := root.MkdirAll(filepath.Join(snapshotter.SnapshotsDir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := root.WriteFile(filepath.Join(snapshotter.SnapshotsDir, name, snapshotter.AppliedFile), []byte(content), 0o600, false); err != nil {
			t.Fatal(err)
		}
	}
	if err := root.MkdirAll(filepath.Join(snapshotter.SnapshotsDir, "without"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := root.WriteFile(filepath.Join(snapshotter.SnapshotsDir, "file"), nil, 0o600, false); err != nil {
		t.Fatal(err)
	}
	layers, damaged, err := snapshotter.AppliedLayers(root)
	if err != nil {
		t.Fatal(err)
	}
	if len(layers) != 2 || layers["1"] != id || layers["2"] != id {
		t.Errorf("layers are %v, want %s for 1 and 2", layers, id)
	}
	for _, name := range []string{"3", "4"} {
		if !errdefs.IsDataLoss(damaged[name]) {
			t.Errorf("snapshot %s: got %v, want a data loss", name, damaged[name])
		}
	}
	if len(damaged) != 2 {
		t.Errorf("damaged are %v", damaged)
	}
}

func TestWalkMetadata(t *testing.T) {
	e := snaptest.New(t)
	prepare(t, e, "a", "")
	commit(t, e, "b", "a")
	prepare(t, e, "c", "b")
	walked := func() (map[string]string, error) {
		got := make(map[string]string)
		return got, snapshotter.WalkMetadata(t.Context(), e.Root, func(id string, info snapshots.Info) error {
			got[id] = info.Name
			return nil
		})
	}
	if _, err := walked(); !errors.Is(err, bolterrors.ErrTimeout) {
		t.Errorf("beside a daemon: got %v, want %v", err, bolterrors.ErrTimeout)
	}
	if err := e.Snapshotter.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := walked()
	if err != nil {
		t.Fatal(err)
	}
	if want := map[string]string{"1": "b", "2": "c"}; !maps.Equal(got, want) {
		t.Errorf("snapshots are %v, want %v", got, want)
	}
	file := filepath.Join(e.Path, snapshotter.MetadataFile)
	if err := os.Truncate(file, 5000); err != nil {
		t.Fatal(err)
	}
	if _, err := walked(); !errdefs.IsDataLoss(err) {
		t.Errorf("damaged: got %v, want a data loss", err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if _, err := walked(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing: got %v, want %v", err, fs.ErrNotExist)
	}
	e.Reopen(t)
}
