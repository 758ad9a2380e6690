package snapshotter_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/go-digest"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/snaptest"
)

// TestNothingWaitsForTheSync checks that no step of a pull, a container start or a removal waits while the store is
// synced in the background, which can take minutes.
func TestNothingWaitsForTheSync(t *testing.T) {
	testenv.NeedsRoot(t)
	plain, err := atfs.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	syncing, gate := make(chan struct{}), make(chan struct{})
	begun := sync.OnceFunc(func() { close(syncing) })
	var started atomic.Bool // a start does wait
	root, err := plain.WithHook(func(op atfs.Op, _ string) error {
		if op == atfs.OpSyncFS && started.Load() {
			begun()
			<-gate
		}
		return nil
	})
	if err = errors.Join(err, plain.Close()); err != nil {
		t.Fatal(err)
	}
	e, err := snaptest.OpenAt(t.Context(), root, layer.Options{Journal: true})
	if err != nil {
		t.Fatal(err)
	}
	started.Store(true)
	img := newImage(t)
	before := img.unpackAll(t, e)
	synced := make(chan error, 1)
	go func() { synced <- e.Store.Sync(context.WithoutCancel(t.Context())) }()
	<-syncing

	done := make(chan struct{})
	go func() {
		defer close(done)
		useWhileSyncing(t, e, before)
	}()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Error("something waits for the sync")
	}
	select {
	case err := <-synced:
		t.Fatalf("the sync has ended: %v", err)
	default:
	}
	close(gate)
	<-done
	if err := errors.Join(<-synced, e.Check(t.Context()), e.Close()); err != nil {
		t.Error(err)
	}
}

// useWhileSyncing pulls an image, starts and commits containers of it and of another one, and removes everything.
func useWhileSyncing(t *testing.T, e *snaptest.Env, before string) {
	t.Helper()
	ctx := t.Context()
	check := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	// Existing and new files, so that those pending for the sync are used too.
	tar := snaptest.Tar(t, snaptest.File("same", "same"), snaptest.File("new", "new"))
	held, err := e.Store.Import(ctx, bytes.NewReader(tar), layer.ImportOptions{Blob: digest.FromString("blob")})
	if err != nil {
		t.Errorf("import: %v", err)
		return
	}
	mounts, err := e.Prepare(ctx, "default/8/extract-1 x", before)
	check("prepare", err)
	id, _, err := e.Locate(ctx, mounts)
	check("locate", err)
	check("add layer", e.AddLayer(ctx, id, held, false))
	check("release", held.Release())
	check("commit", e.Commit(ctx, "default/9/pulled", "default/8/extract-1 x"))

	for _, parent := range []string{before, "default/9/pulled"} {
		_, err := e.Prepare(ctx, "container", parent)
		check("prepare container", err)
		_, err = e.Mounts(ctx, "container")
		check("mounts", err)
		_, err = e.View(ctx, "view", parent)
		check("view", err)
		check("remove view", e.Remove(ctx, "view"))
		check("commit container", e.Commit(ctx, "committed", "container"))
		check("remove committed", e.Remove(ctx, "committed"))
		check("clean up", e.Cleanup(ctx))
	}
	check("walk", e.Walk(ctx, func(context.Context, snapshots.Info) error { return nil }))
	check("remove", e.Remove(ctx, "default/9/pulled"))
	check("clean up", e.Cleanup(ctx))
}

// TestSync checks that with durability "sync", everything that Apply and Commit wrote is on the disk when they return.
// Without it, and without a caller that requests it, neither waits.
func TestSync(t *testing.T) {
	testenv.NeedsRoot(t)
	for _, on := range []bool{true, false} {
		t.Run(fmt.Sprint(on), func(t *testing.T) {
			plain, err := atfs.Open(t.TempDir())
			testenv.Must(t, err)
			var mu sync.Mutex
			dirty, syncs := "", 0 // the first operation since the last sync
			root, err := plain.WithHook(func(op atfs.Op, name string) error {
				mu.Lock()
				defer mu.Unlock()
				switch {
				case op == atfs.OpSyncFS:
					dirty = ""
					syncs++
				case dirty == "" && (strings.HasPrefix(name, "repo/") || strings.HasPrefix(name, "layers/")):
					dirty = fmt.Sprint(op, " ", name)
				}
				return nil
			})
			testenv.Must(t, errors.Join(err, plain.Close()))
			var opts []snapshotter.Option
			if on {
				opts = append(opts, snapshotter.WithSync())
			}
			e, err := snaptest.OpenAt(t.Context(), root, layer.Options{}, opts...)
			testenv.Must(t, err)
			defer func() { testenv.Must(t, e.Close()) }()
			expect := func(after string, some int) {
				t.Helper()
				mu.Lock()
				defer mu.Unlock()
				if on && (dirty != "" || syncs != some) || !on && syncs != 0 {
					t.Errorf("after %s: %d syncs, not synced: %q", after, syncs, dirty)
				}
			}
			tar := snaptest.Tar(t, snaptest.File("f", "content"), snaptest.File("d/g", "more"))
			apply(t, e, prepare(t, e, "default/1/extract-1 x", ""), tar)
			expect("apply", 1)
			commit(t, e, "default/2/x", "default/1/extract-1 x")
			expect("commit of a layer", 2)
			prepare(t, e, "container", "default/2/x")
			writeInto(t, e, "container", "written")
			commit(t, e, "saved", "container")
			expect("commit of what was written", 3)
		})
	}
}
