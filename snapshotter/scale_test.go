package snapshotter_test

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"

	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/snaptest"
)

// addRows adds committed snapshots with the content of an existing one, in one transaction, which the snapshotter
// itself cannot do. The environment is reopened.
func addRows(t *testing.T, e *snaptest.Env, like string, n int) {
	t.Helper()
	info, err := e.Stat(t.Context(), like)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	ms, err := storage.NewMetaStore(filepath.Join(e.Path, "metadata.db"))
	if err != nil {
		t.Fatal(err)
	}
	err = ms.WithTransaction(t.Context(), true, func(ctx context.Context) error {
		for i := range n {
			key, name := fmt.Sprint("key ", i), fmt.Sprintf("default/%d/other snapshot", i)
			if _, err := storage.CreateSnapshot(ctx, snapshots.KindActive, key, info.Parent); err != nil {
				return err
			}
			if _, err := storage.CommitActive(ctx, key, name, snapshots.Usage{}, snapshots.WithLabels(info.Labels)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := ms.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := snaptest.Open(t.Context(), e.Path)
	if err != nil {
		t.Fatal(err)
	}
	*e = *again
}

// TestCostDoesNotGrow checks that operations on the path of pulls and container starts cost the same with 10 snapshots
// and with 10,000. It compares the shortest times of alternating calls, and makes more of them while they differ, so that a
// busy machine makes no difference.
func TestCostDoesNotGrow(t *testing.T) {
	const rounds, mostRounds, most = 20, 400, 3.0
	img := newImage(t)
	stores := map[int]*snaptest.Env{10: snaptest.New(t), 10_000: snaptest.New(t)}
	var top string // the same name in both
	for n, e := range stores {
		top = img.unpackAll(t, e)
		addRows(t, e, top, n-2)
	}
	shortest := make(map[string]map[int]time.Duration)
	grown := func() (which []string) {
		for what, took := range shortest {
			if float64(took[10_000]) > most*float64(took[10]) {
				which = append(which, what)
			}
		}
		return which
	}
	for i := range mostRounds {
		if i >= rounds && len(grown()) == 0 {
			break
		}
		for n, e := range stores {
			timed := func(what string, f func() error) {
				t.Helper()
				start := time.Now()
				err := f()
				took := time.Since(start)
				if err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				if shortest[what] == nil {
					shortest[what] = make(map[int]time.Duration)
				}
				if old := shortest[what][n]; old == 0 || took < old {
					shortest[what][n] = took
				}
			}
			ctx := t.Context()
			timed("Prepare", func() error { _, err := e.Prepare(ctx, "active", top); return err })
			timed("View", func() error { _, err := e.View(ctx, "view", top); return err })
			timed("Mounts", func() error { _, err := e.Mounts(ctx, "active"); return err })
			timed("Stat", func() error { _, err := e.Stat(ctx, top); return err })
			timed("Remove", func() error { return e.Remove(ctx, "active") })
			timed("Remove of a view", func() error { return e.Remove(ctx, "view") })
			apply(t, e, prepare(t, e, "unpack", top), snaptest.Tar(t, snaptest.File("file", fmt.Sprint(i))))
			timed("Commit", func() error { return e.Commit(ctx, "committed", "unpack") })
			timed("Live", func() error { _, err := e.Live(ctx); return err })
			timed("Remove of a committed one", func() error { return e.Remove(ctx, "committed") })
		}
	}
	for what, took := range shortest {
		t.Logf("%s: %v with 10 snapshots, %v with 10,000: %.2f", what, took[10], took[10_000], float64(took[10_000])/float64(took[10]))
	}
	for _, what := range grown() {
		t.Errorf("%s costs more than %.0f times as much with 10,000 snapshots as with 10", what, most)
	}
}
