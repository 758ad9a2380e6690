package layer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// An import does not wait for a plan, which takes longer in a larger store, and the planned garbage that it reuses
// stays.
func TestImportDuringPlan(t *testing.T) {
	b := newBed(t, Options{})
	reused := makeTar(t, file("a", "planned to go"), file("b", "too"))
	importTar(t, b.Store, reused)
	importTar(t, b.Store, makeTar(t, file("c", "really goes")))
	var young Layer
	calls := 0
	plan, err := b.PlanPrune(t.Context(), func(ctx context.Context) (map[objectstore.Checksum]struct{}, error) {
		if calls++; calls == 2 { // the plan is in progress; nothing it would wait for can continue before this returns
			young = importTar(t, b.Store, makeTar(t, file("a", "planned to go"), file("new", "new")))
			checkOut(t, b.Store, b.path, young.ID)
		}
		return live(young)(ctx)
	})
	if err != nil {
		t.Fatal(err)
	}
	if calls != 2 {
		t.Fatalf("Live was called %d times for a plan, want 2", calls)
	}
	late := importTar(t, b.Store, reused)
	plan.live = live(young, late)
	stats, err := plan.Execute(t.Context())
	if err != nil || stats.Objects == 0 {
		t.Errorf("removed %+v, %v, want the objects of one layer", stats, err)
	}
	for _, l := range []Layer{young, late} {
		if err := b.Whole(l.ID); err != nil {
			t.Errorf("layer %s: %v", l.ID, err)
		}
	}
	if p := b.problems(t); len(p) > 0 {
		t.Error(p)
	}
}

// A liveSet holds the needed layers, as snapshots do.
type liveSet struct {
	mu  sync.Mutex
	ids map[objectstore.Checksum]int
}

func (l *liveSet) add(id objectstore.Checksum, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ids[id] += n; l.ids[id] == 0 {
		delete(l.ids, id)
	}
}

func (l *liveSet) live(context.Context) (map[objectstore.Checksum]struct{}, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	ids := make(map[objectstore.Checksum]struct{})
	for id := range maps.Keys(l.ids) {
		ids[id] = struct{}{}
	}
	return ids, nil
}

// race runs functions repeatedly, each in its own goroutine, until time is up or one of them fails.
func race(t *testing.T, functions ...func(r *rand.Rand) error) {
	t.Helper()
	seed := rand.Uint64()
	limit := 4 * time.Second
	if testing.Short() {
		limit = time.Second
	}
	stop := time.Now().Add(limit)
	var group sync.WaitGroup
	var failed atomic.Bool
	for i, f := range functions {
		r := rand.New(rand.NewPCG(seed, uint64(i)))
		group.Go(func() {
			for time.Now().Before(stop) && !failed.Load() {
				if err := f(r); err != nil {
					failed.Store(true)
					t.Errorf("seed %d: %v", seed, err)
				}
			}
		})
	}
	group.Wait()
}

// importer returns a function for race that imports a layer with shared files, uses it for a while as a snapshot would,
// and drops it.
// snapshot would, and lets it go.
func (b *bed) importer(t *testing.T, needed *liveSet) func(r *rand.Rand) error {
	t.Helper()
	return func(r *rand.Rand) (err error) {
		entries := []tarEntry{dir("d")}
		for range 1 + r.IntN(8) {
			n := r.IntN(30)
			entries = append(entries, file(fmt.Sprintf("d/%d", n), fmt.Sprintf("content %d", n)))
		}
		tar := makeTar(t, entries...)
		h, err := b.Import(t.Context(), bytes.NewReader(tar), ImportOptions{})
		if err != nil {
			return err
		}
		needed.add(h.ID, 1) // before it is released, as in the differ
		if err := errors.Join(b.Whole(h.ID), h.Release()); err != nil {
			return err
		}
		name, _, err := b.Checkout(t.Context(), []objectstore.Checksum{h.ID})
		if err != nil {
			return err
		}
		time.Sleep(time.Duration(r.IntN(30)) * time.Millisecond)
		if err := b.Whole(h.ID); err != nil {
			return err
		}
		for _, e := range entries[1:] {
			got, err := os.ReadFile(filepath.Join(b.path, name, e.Name))
			if err != nil || string(got) != e.content {
				return fmt.Errorf("file %s of layer %s: %q, %w", e.Name, h.ID, got, err)
			}
		}
		needed.add(h.ID, -1)
		time.Sleep(time.Duration(r.IntN(30)) * time.Millisecond)
		return nil
	}
}

// pruner returns a function for race that prunes, and counts the removed layers.
func (b *bed) pruner(t *testing.T, needed *liveSet, removed *atomic.Int64) func(r *rand.Rand) error {
	t.Helper()
	return func(r *rand.Rand) error {
		plan, err := b.PlanPrune(t.Context(), needed.live)
		if err != nil {
			return err
		}
		time.Sleep(time.Duration(r.IntN(10)) * time.Millisecond) // let the plan become outdated
		stats, err := plan.Execute(t.Context())
		removed.Add(int64(stats.Objects))
		return err
	}
}

// slowPruner is pruner for prunes in steps.
func (b *bed) slowPruner(t *testing.T, needed *liveSet, removed *atomic.Int64) func(r *rand.Rand) error {
	t.Helper()
	return func(r *rand.Rand) error {
		plan, err := b.PlanPrune(t.Context(), needed.live)
		if err != nil {
			return err
		}
		stats, err := plan.ExecuteInSteps(t.Context(), objectstore.Steps{
			Objects: 1 + r.IntN(5),
			Between: func(context.Context, time.Duration) error {
				time.Sleep(time.Duration(r.IntN(5)) * time.Millisecond) // let it become outdated
				return nil
			},
		})
		removed.Add(int64(stats.Objects))
		return err
	}
}

// forgetter returns a function for race that forgets layers.
func (b *bed) forgetter(t *testing.T, needed *liveSet) func(r *rand.Rand) error {
	t.Helper()
	return func(*rand.Rand) error {
		_, err := b.Forget(t.Context(), needed.live)
		return err
	}
}

// checker returns a function for race that checks the repository: concurrent changes are no problem.
func (b *bed) checker(t *testing.T) func(r *rand.Rand) error {
	t.Helper()
	return func(*rand.Rand) error {
		report, err := b.repo.Fsck(t.Context(), objectstore.FsckOptions{})
		if err == nil {
			err = report.Err()
		}
		return err
	}
}

// A prune never breaks an import that has decided to reuse an object that the prune planned to remove (ostree#2474),
// nor a needed layer.
func TestPruneBesideImports(t *testing.T) {
	b := newBed(t, Options{Journal: true})
	needed := &liveSet{ids: make(map[objectstore.Checksum]int)}
	var removed atomic.Int64
	imp, prune := b.importer(t, needed), b.pruner(t, needed, &removed)
	race(t, imp, imp, imp, prune, prune, b.checker(t))
	if removed.Load() == 0 {
		t.Error("no prune removed anything")
	}
	b.endRace(t)
}

// The same with prunes in steps, which imports come between, after layers were forgotten.
func TestSlowPruneBesideImports(t *testing.T) {
	b := newBed(t, Options{Journal: true})
	needed := &liveSet{ids: make(map[objectstore.Checksum]int)}
	var removed atomic.Int64
	imp, prune := b.importer(t, needed), b.slowPruner(t, needed, &removed)
	race(t, imp, imp, imp, prune, prune, b.forgetter(t, needed), b.checker(t))
	if removed.Load() == 0 {
		t.Error("no prune removed anything")
	}
	b.endRace(t)
}

// endRace checks the store and prunes it, which must leave nothing.
func (b *bed) endRace(t *testing.T) {
	t.Helper()
	if p := b.problems(t); len(p) > 0 {
		t.Error(p)
	}
	plan, err := b.PlanPrune(t.Context(), live())
	if err == nil {
		_, err = plan.Execute(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, pattern := range []string{"repo/objects/*/*", "repo/refs/heads/oci/*/*", "layers/*", "tmp/*", "repo/tmp/[^c]*", "journal/*"} {
		if left, err := filepath.Glob(filepath.Join(b.path, pattern)); err != nil || len(left) > 0 {
			t.Errorf("left are %q (%v)", left, err)
		}
	}
	checkStore(t, b.path)
}

// Beside our imports and prunes, another program commits to the repository with ostree and prunes it. The objects of
// its refs and of a deployment must stay too.
func TestPruneBesideOstree(t *testing.T) {
	ostree := testenv.NeedsTool(t, "ostree")
	b := newBed(t, Options{Journal: true})
	repo := "--repo=" + filepath.Join(b.path, "repo")
	run := func(args ...string) error {
		if out, err := exec.Command(ostree, args...).CombinedOutput(); err != nil {
			return fmt.Errorf("ostree %q: %w\n%s", args, err, out)
		}
		return nil
	}
	commit := func(ref string, r *rand.Rand) error {
		tree := t.TempDir()
		for range 4 {
			n := r.IntN(30)
			if err := os.WriteFile(filepath.Join(tree, fmt.Sprint(n)), fmt.Appendf(nil, "content %d", n), 0o644); err != nil {
				return err
			}
		}
		return run("commit", repo, "--branch="+ref, "--parent=none", "--owner-uid=0", "--owner-gid=0", "--subject=s", tree)
	}
	r := rand.New(rand.NewPCG(1, 2))
	kept := []string{"theirs/kept", "ostree/0/1/0"}
	for _, ref := range kept {
		if err := commit(ref, r); err != nil {
			t.Fatal(err)
		}
	}
	needed := &liveSet{ids: make(map[objectstore.Checksum]int)}
	var removed atomic.Int64
	imp := b.importer(t, needed)
	race(t, imp, imp, b.pruner(t, needed, &removed), b.slowPruner(t, needed, &removed),
		func(r *rand.Rand) error { return commit("theirs/a", r) },
		func(*rand.Rand) error { return run("refs", repo, "--delete", "theirs/a") },
		func(*rand.Rand) error { return run("prune", repo, "--refs-only") },
	)
	if removed.Load() == 0 {
		t.Error("no prune of ours removed anything")
	}
	checkStore(t, b.path)
	for _, ref := range kept {
		if err := run("checkout", repo, "--union", ref, t.TempDir()); err != nil {
			t.Error(err)
		}
	}
	if err := run("refs", repo, "--delete", "theirs", "ostree"); err != nil {
		t.Fatal(err)
	}
	b.endRace(t)
}
