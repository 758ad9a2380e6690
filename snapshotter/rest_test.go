package snapshotter_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/snaptest"
)

// A blocker stops the removal of objects.
type blocker struct {
	reached chan struct{} // closed when the first object is about to be removed
	free    chan struct{} // close it to go on
	once    sync.Once
}

func newBlocker() *blocker { return &blocker{reached: make(chan struct{}), free: make(chan struct{})} }

func (b *blocker) hook(op atfs.Op, name string) error {
	if op == atfs.OpUnlink && strings.HasPrefix(name, "repo/objects/") {
		b.once.Do(func() { close(b.reached) })
		<-b.free
	}
	return nil
}

// openBlocked opens a store below path whose removals are in the background and wait for b.
func openBlocked(t *testing.T, path string, b *blocker) *snaptest.Env {
	t.Helper()
	plain, err := atfs.Open(path)
	testenv.Must(t, err)
	defer plain.Close()
	root, err := plain.WithHook(b.hook)
	testenv.Must(t, err)
	e, err := snaptest.OpenAt(t.Context(), root, layer.Options{Journal: true}, snapshotter.WithBackgroundRemoval(100))
	testenv.Must(t, err)
	return e
}

// removeImage removes an image. It returns an error if that does not end in time.
func removeImage(ctx context.Context, e *snaptest.Env, img image) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for i := len(img.tars); i > 0; i-- {
		if err := e.Remove(ctx, img.unpacked(i)); err != nil {
			return err
		}
	}
	done := make(chan error, 1)
	go func() { done <- e.Cleanup(ctx) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// wantNothing waits until everything is removed, and checks that.
func wantNothing(t *testing.T, e *snaptest.Env) {
	t.Helper()
	testenv.Must(t, e.Cleanup(snapshotter.WaitForRemoval(t.Context())))
	if names := left(t, e); len(names) > 0 {
		t.Errorf("left: %q", names)
	}
}

// objectsOf counts the objects of a store.
func objectsOf(t *testing.T, path string) int {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(path, "repo/objects/??/*"))
	testenv.Must(t, err)
	return len(names)
}

// TestRemovalInBackground removes an image while no object can be removed: Cleanup returns, the layers have no names any
// more, and the objects go later.
func TestRemovalInBackground(t *testing.T) {
	needsOverlay(t)
	b := newBlocker()
	e := openBlocked(t, t.TempDir(), b)
	defer func() { testenv.Must(t, e.Close()) }()
	img := newImage(t)
	img.unpackAll(t, e)
	free := sync.OnceFunc(func() { close(b.free) })
	defer free()
	testenv.Must(t, removeImage(t.Context(), e, img))
	if refs, err := e.Repo.Refs(""); err != nil || len(refs) > 0 {
		t.Errorf("after the cleanup there are refs %v (%v)", refs, err)
	}
	<-b.reached
	if len(left(t, e)) == 0 {
		t.Error("all objects are gone: this tests nothing")
	}
	free()
	wantNothing(t, e)
}

// TestWantedAgain unpacks an image again while its objects wait to be removed, at each time that makes a difference.
func TestWantedAgain(t *testing.T) {
	needsOverlay(t)
	img := newImage(t)
	t.Run("before", func(t *testing.T) {
		b := newBlocker()
		close(b.free)
		e := openBlocked(t, t.TempDir(), b)
		defer func() { testenv.Must(t, e.Close()) }()
		e.StopRemoval()
		img.unpackAll(t, e)
		testenv.Must(t, removeImage(t.Context(), e, img))
		before := len(left(t, e))
		name := img.unpackAll(t, e)
		testenv.Must(t, e.RemoveRest())
		testenv.Must(t, e.Check(t.Context()))
		wantFiles(t, view(t, e, name), imageFiles)
		if before == 0 {
			t.Error("there were no objects: this tests nothing")
		}
		testenv.Must(t, removeImage(t.Context(), e, img))
		wantNothing(t, e)
	})
	t.Run("during", func(t *testing.T) {
		b := newBlocker()
		e := openBlocked(t, t.TempDir(), b)
		defer func() { testenv.Must(t, e.Close()) }()
		img.unpackAll(t, e)
		testenv.Must(t, removeImage(t.Context(), e, img))
		<-b.reached
		time.AfterFunc(20*time.Millisecond, func() { close(b.free) }) // the pull waits for the lock by then
		name := img.unpackAll(t, e)
		testenv.Must(t, e.Cleanup(snapshotter.WaitForRemoval(t.Context())))
		testenv.Must(t, e.Check(t.Context()))
		wantFiles(t, view(t, e, name), imageFiles)
		testenv.Must(t, removeImage(t.Context(), e, img))
		wantNothing(t, e)
	})
}

// TestRemovalIsStopped closes a snapshotter while it removes objects: it stops at once, and the next one goes on.
func TestRemovalIsStopped(t *testing.T) {
	needsOverlay(t)
	path := t.TempDir()
	b := newBlocker()
	e := openBlocked(t, path, b)
	img := newImage(t)
	img.unpackAll(t, e)
	testenv.Must(t, removeImage(t.Context(), e, img))
	<-b.reached
	before := objectsOf(t, path)
	closed := make(chan error, 1)
	go func() { closed <- e.Close() }()
	e.WaitForStop()
	close(b.free)
	testenv.Must(t, <-closed)
	again, err := snaptest.Open(t.Context(), path, snapshotter.WithBackgroundRemoval(100))
	testenv.Must(t, err)
	defer func() { testenv.Must(t, again.Close()) }()
	if n := objectsOf(t, path); n < before-1 || n == 0 {
		t.Errorf("%d of %d objects are left after the stop, want all but one", n, before)
	}
	testenv.Must(t, again.Check(t.Context()))
	wantNothing(t, again)
}

// TestRemovalBesideAPull: the background waits for the end of a pull that Cleanup does not wait for, without another
// Cleanup.
func TestRemovalBesideAPull(t *testing.T) {
	needsOverlay(t)
	b := newBlocker()
	close(b.free)
	e := openBlocked(t, t.TempDir(), b)
	defer func() { testenv.Must(t, e.Close()) }()
	img := newImage(t)
	img.unpackAll(t, e)
	lock, err := e.Repo.Lock(t.Context(), objectstore.LockShared)
	testenv.Must(t, err)
	testenv.Must(t, removeImage(t.Context(), e, img))
	if refs, err := e.Repo.Refs(""); err != nil || len(refs) == 0 {
		t.Errorf("refs were removed during a pull: got %v, %v", refs, err)
	}
	testenv.Must(t, lock.Unlock())
	<-b.reached
	wantNothing(t, e)
}

// TestNoPlanDuringAPull: while a pull has the lock, the background does not walk the store. A plan restores a lost ref.
func TestNoPlanDuringAPull(t *testing.T) {
	needsOverlay(t)
	e, err := snaptest.Open(t.Context(), t.TempDir(), snapshotter.WithBackgroundRemoval(100))
	testenv.Must(t, err)
	defer func() { testenv.Must(t, e.Close()) }()
	newImage(t).unpackAll(t, e)
	refs, err := e.Repo.Refs("")
	testenv.Must(t, err)
	for name := range refs {
		testenv.Must(t, e.Repo.DeleteRefs(t.Context(), name))
	}
	lock, err := e.Repo.Lock(t.Context(), objectstore.LockShared)
	testenv.Must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := e.TryRemoveRest(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want it to wait for the lock", err)
	}
	if refs, err := e.Repo.Refs(""); err != nil || len(refs) > 0 {
		t.Errorf("a plan was made during a pull: got refs %v (%v)", refs, err)
	}
	testenv.Must(t, lock.Unlock())
	testenv.Must(t, e.TryRemoveRest(t.Context()))
	if refs, err := e.Repo.Refs(""); err != nil || len(refs) == 0 {
		t.Errorf("after the pull there are no refs (%v): this tests nothing", err)
	}
}

// TestFullerDiskWaits: on a disk that is fuller than the bound, everything is gone when Cleanup returns.
func TestFullerDiskWaits(t *testing.T) {
	needsOverlay(t)
	disk := testenv.NewDisk(t, "ext4", 64<<20, "-q")
	e, err := snaptest.Open(t.Context(), disk.Dir, snapshotter.WithBackgroundRemoval(40))
	testenv.Must(t, err)
	defer func() { testenv.Must(t, e.Close()) }()
	e.StopRemoval()
	img := newImage(t)
	img.unpackAll(t, e)
	testenv.Must(t, removeImage(t.Context(), e, img))
	if len(left(t, e)) == 0 {
		t.Error("on an empty disk everything is gone: this tests nothing")
	}
	img.unpackAll(t, e)
	f, err := os.Create(filepath.Join(disk.Dir, "full"))
	testenv.Must(t, err)
	testenv.Must(t, errors.Join(unix.Fallocate(int(f.Fd()), 0, 0, 32<<20), f.Close()))
	testenv.Must(t, removeImage(t.Context(), e, img))
	if names := left(t, e); len(names) > 0 {
		t.Errorf("left on a full disk: %q", names)
	}
}

// TestPullsBesideRemovals unpacks and removes images that share files, all at once: what is unpacked is whole, at any
// time.
func TestPullsBesideRemovals(t *testing.T) {
	needsOverlay(t)
	e, err := snaptest.OpenWith(t.Context(), t.TempDir(), layer.Options{Journal: true}, snapshotter.WithBackgroundRemoval(100))
	testenv.Must(t, err)
	defer func() { testenv.Must(t, e.Close()) }()
	limit := 3 * time.Second
	if testing.Short() {
		limit = time.Second
	}
	stop := time.Now().Add(limit)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	shared := snaptest.File("shared", "in all of them")
	var group sync.WaitGroup
	for i := range 3 {
		group.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(i)))
			for time.Now().Before(stop) && !t.Failed() {
				if err := pullAndRemove(t, e, i, r, shared); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	testenv.Must(t, e.Check(t.Context()))
	wantNothing(t, e)
}

func pullAndRemove(t *testing.T, e *snaptest.Env, i int, r *rand.Rand, shared tar.Header) error {
	t.Helper()
	n := fmt.Sprint(r.IntN(4))
	blob := snaptest.Tar(t, shared, snaptest.File("own", "of "+n), snaptest.Dir("d"), snaptest.File("d/own", "below, of "+n))
	key, name := fmt.Sprint("active-", i), fmt.Sprint("image-", i)
	mounts, err := e.Prepare(t.Context(), key, "")
	if err != nil {
		return err
	}
	id, _, err := e.Locate(t.Context(), mounts)
	if err != nil {
		return err
	}
	held, err := e.Store.Import(t.Context(), bytes.NewReader(blob), layer.ImportOptions{})
	if err != nil {
		return err
	}
	if err := errors.Join(e.AddLayer(t.Context(), id, held, false), held.Release(), e.Commit(t.Context(), name, key)); err != nil {
		return err
	}
	for range 1 + r.IntN(3) {
		if err := e.Store.Whole(held.ID); err != nil {
			return fmt.Errorf("an image that is there: %w", err)
		}
		time.Sleep(time.Duration(r.IntN(60)) * time.Millisecond) // removals begin 100 ms after a cleanup
	}
	return errors.Join(e.Remove(t.Context(), name), e.Cleanup(t.Context()))
}
