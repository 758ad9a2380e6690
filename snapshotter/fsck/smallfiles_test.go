package fsck

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/inspect"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/snaptest"
)

// Files that are read back but written without a sync may be empty, torn, garbage or absent after a power failure. Each
// verb then does what it does without the file: none fails, nothing that is needed is removed, and fsck and the next
// start agree on what is lost.
func TestSmallFilesAfterPowerLoss(t *testing.T) {
	testenv.NeedsRoot(t)
	t.Run("hard links", func(t *testing.T) { smallFilesAfterPowerLoss(t, false) })
	t.Run("composefs", func(t *testing.T) { smallFilesAfterPowerLoss(t, true, snapshotter.WithComposefs(snaptest.Kernel(t))) })
}

func smallFilesAfterPowerLoss(t *testing.T, composefs bool, opts ...snapshotter.Option) {
	t.Helper()
	const active = "default/1/extract-1 unfinished"
	damages := []struct {
		name   string
		damage func(t *testing.T, name string)
	}{
		{"empty", func(t *testing.T, name string) { testenv.Must(t, os.Truncate(name, 0)) }},
		{"truncated", func(t *testing.T, name string) {
			st, err := os.Stat(name)
			testenv.Must(t, err)
			testenv.Must(t, os.Truncate(name, st.Size()/2))
		}},
		{"zeros", func(t *testing.T, name string) { testenv.Must(t, os.WriteFile(name, make([]byte, 65), 0o600)) }},
		{"garbage", func(t *testing.T, name string) {
			testenv.Must(t, os.WriteFile(name, bytes.Repeat([]byte("\xff\x1b[\n"), 100), 0o600))
		}},
		{"absent", func(t *testing.T, name string) { testenv.Must(t, os.Remove(name)) }},
	}
	for _, file := range []struct {
		name string   // below the root
		lost []string // damages with which the unfinished snapshot cannot be used
		fsck Kind     // of the problem that fsck reports, "" if the file is not missed
	}{
		{"snapshots/*/layer", []string{"empty", "truncated", "zeros", "garbage"}, KindSnapshot},
		{"snapshots/*/blob", nil, ""},
		{"snapshots/*/usage", nil, ""},
		{"layers/BASE/commit", nil, KindCheckout},
		{"rootfs/*/digest", nil, ""},
		{"journal/*", nil, ""},
		{"repo/refs/heads/oci/blob/*", nil, KindRef},
		{"repo/refs/heads/oci/diff/*", nil, KindRef},
	} {
		if composefs && file.fsck == KindCheckout {
			continue
		}
		for _, d := range damages {
			t.Run(file.name+" "+d.name, func(t *testing.T) {
				dir := t.TempDir()
				f, err := snaptest.MakeFixture(t.Context(), dir)
				testenv.Must(t, err)
				if composefs { // a daemon that used hard links before
					base, a := f.Base, f.A
					testenv.Must(t, f.Close())
					f, err = snaptest.OpenFixture(t.Context(), dir, opts...)
					testenv.Must(t, err)
					f.Base, f.A = base, a
				}
				s := &inspect.Store{Root: f.Root, Repo: f.Repo, Layers: f.Store}
				mounts, err := f.Prepare(t.Context(), active, "")
				testenv.Must(t, err)
				data, err := snaptest.MakeTar([]snaptest.TarFile{{Name: "new/file", Content: "unfinished", Mtime: 1}})
				testenv.Must(t, err)
				held, err := f.Store.Import(t.Context(), bytes.NewReader(data), layer.ImportOptions{Blob: digest.FromBytes(data)})
				testenv.Must(t, err)
				id, _, err := f.Locate(t.Context(), mounts)
				testenv.Must(t, err)
				testenv.Must(t, f.AddLayer(t.Context(), id, held, false))
				testenv.Must(t, held.Release())
				testenv.Must(t, f.Snapshotter.Close())
				testenv.Must(t, f.Store.RemakeRootfs(t.Context(), []objectstore.Checksum{f.Base, f.A}))
				if strings.HasPrefix(file.name, "journal/") {
					testenv.Must(t, os.WriteFile(filepath.Join(dir, "journal/entry"), []byte("ostree-snapshotter journal 1\nboot other\n"), 0o600))
				}
				pattern := strings.Replace(file.name, "BASE", layer.CheckoutDir(f.Base), 1)
				names, err := filepath.Glob(filepath.Join(dir, pattern))
				if err != nil || len(names) == 0 {
					t.Fatalf("no files %s: %v", pattern, err)
				}
				for _, name := range names {
					d.damage(t, name)
				}

				r, err := Check(t.Context(), s, Options{Composefs: composefs})
				testenv.Must(t, err)
				missed := file.fsck != "" && (d.name != "absent" || file.fsck == KindCheckout)
				if !missed && d.name != "absent" && len(r.Problems) > 0 {
					t.Errorf("fsck: got %+v, want no problems", r.Problems)
				}
				if missed && len(r.Problems) != len(names) {
					t.Errorf("fsck: got %+v, want %d problems", r.Problems, len(names))
				}
				for _, p := range r.Problems {
					if missed && p.Kind != file.fsck {
						t.Errorf("fsck: got %+v, want a problem of kind %q", p, file.fsck)
					}
				}
				use, err := s.Usage(t.Context(), nil, func(int64) {})
				if err != nil {
					t.Errorf("df: %v", err)
				}
				if torn := d.name != "absent" && file.fsck == KindRef; err == nil && torn != (use.ToFree == inspect.Unknown) {
					t.Errorf("df: %d bytes to free", use.ToFree)
				}
				if _, err := s.LayerUsage(t.Context(), func(int64) {}); err != nil {
					t.Errorf("layers: %v", err)
				}
				if _, err := s.Prune(t.Context(), true); err != nil {
					t.Errorf("prune --dry-run: %v", err)
				}
				if _, err := s.Prune(t.Context(), false); err != nil {
					t.Errorf("prune: %v", err)
				}
				testenv.Must(t, f.Close())
				f2, err := snaptest.OpenFixture(t.Context(), dir, opts...)
				if err != nil {
					t.Fatalf("start: %v", err)
				}
				defer f2.Close()
				for _, key := range []string{snaptest.SnapshotName("container")} {
					if _, err := f2.Mounts(t.Context(), key); err != nil {
						t.Errorf("mounts of %s: %v", key, err)
					}
				}
				lost := slices.Contains(file.lost, d.name)
				check := func(what string, err error) {
					if errdefs.IsDataLoss(err) != lost || !lost && err != nil {
						t.Errorf("%s: got %v, data loss expected: %t", what, err, lost)
					}
				}
				_, err = f2.Mounts(t.Context(), active)
				check("mounts", err)
				_, err = f2.Usage(t.Context(), active)
				check("usage", err)
				check("commit", f2.Commit(t.Context(), "done", active))
				if lost {
					testenv.Must(t, f2.Remove(t.Context(), active))
				}
				testenv.Must(t, f2.Cleanup(t.Context()))
				testenv.Must(t, f2.Snapshotter.Close())
				s = &inspect.Store{Root: f2.Root, Repo: f2.Repo, Layers: f2.Store}
				noBlobs := func(context.Context) content.Provider { return nil }
				r, err = CheckAndRepair(t.Context(), s, Options{Composefs: composefs}, noBlobs, func(err error) { t.Errorf("repair: %v", err) })
				if err != nil || len(r.Problems) > 0 {
					t.Errorf("fsck --repair: got %+v, %v, want no problems", r, err)
				}
			})
		}
	}
}

// A staged snapshot was created with a layer: without the file that names it, it must not be committed as an empty one.
func TestStagedWithoutLayer(t *testing.T) {
	testenv.NeedsRoot(t)
	dir := t.TempDir()
	f, err := snaptest.MakeFixture(t.Context(), dir)
	testenv.Must(t, err)
	const active = "default/1/extract-1 staged"
	_, err = f.Prepare(t.Context(), active, "")
	testenv.Must(t, err)
	testenv.Must(t, f.Snapshotter.Close())
	list, err := (&inspect.Store{Root: f.Root}).Snapshots(t.Context())
	testenv.Must(t, err)
	i := slices.IndexFunc(list, func(sn inspect.Snapshot) bool { return sn.Key == active })
	testenv.Must(t, os.WriteFile(filepath.Join(dir, "snapshots", list[i].ID, "staged"), nil, 0o600))

	r, err := Check(t.Context(), &inspect.Store{Root: f.Root, Repo: f.Repo, Layers: f.Store}, Options{})
	if err != nil || len(r.Problems) != 1 || r.Problems[0].Name != active {
		t.Errorf("fsck: got %+v, %v, want a problem of %q", r, err, active)
	}
	testenv.Must(t, f.Close())
	f, err = snaptest.OpenFixture(t.Context(), dir)
	testenv.Must(t, err)
	defer f.Close()
	if _, err := f.Mounts(t.Context(), active); !errdefs.IsDataLoss(err) {
		t.Errorf("mounts: got %v, want a data loss", err)
	}
	if err := f.Commit(t.Context(), "done", active); !errdefs.IsDataLoss(err) {
		t.Errorf("commit: got %v, want a data loss", err)
	}
	testenv.Must(t, f.Cleanup(t.Context()))
	testenv.Must(t, f.Remove(t.Context(), active))
}
