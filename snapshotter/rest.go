package snapshotter

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/containerd/log"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

type waitKey struct{}

// WaitForRemoval returns a context with which Cleanup removes everything before it returns, also with
// [WithBackgroundRemoval], and also what earlier ones have left for the background.
func WaitForRemoval(ctx context.Context) context.Context {
	return context.WithValue(ctx, waitKey{}, true)
}

const (
	// restAfterLast is how long no Cleanup must have left something before the removal begins: containerd removes several
	// images one after the other.
	restAfterLast  = 100 * time.Millisecond
	restAfterFirst = 5 * time.Second

	// restStep is the number of files that are removed in one go, in 20 to 30 ms. Other processes wait so long for the lock,
	// but no pull of ours.
	restStep = 1024

	// restPause is the shortest time between two steps. It is at least twice the time of the last step too, so that the
	// lock is free when somebody tries again who met that step, see objectstore.Lock, and one processor is idle for most
	// of the time.
	restPause = 20 * time.Millisecond

	// restRetry is half the time until the next attempt if the lock was not to be had in the repository's own time.
	restRetry = time.Second
)

// A rest is what cleanups left to be removed in the background. The store itself has it: nothing but layers that no
// snapshot needs and objects that no ref reaches, which every prune finds, also that of the next start. A nil rest has
// nothing.
type rest struct {
	*worker
	ctx    context.Context
	cancel context.CancelFunc

	added   atomic.Int64 // cleanups that have left something
	removed atomic.Int64 // those of which nothing is left any more
}

// newRest returns a rest that remove removes.
func newRest(ctx context.Context, remove func(ctx context.Context) error) *rest {
	r := &rest{}
	r.ctx, r.cancel = context.WithCancel(context.WithoutCancel(ctx))
	r.worker = newWorker(func() error { return r.run(remove) }, restAfterLast, restAfterFirst)
	r.failed = func(err error) {
		if r.ctx.Err() == nil {
			log.G(ctx).WithError(err).Error("files of removed layers are left, the next cleanup tries again")
		}
	}
	return r
}

// left reports whether there may be something left.
func (r *rest) left() bool { return r != nil && r.removed.Load() < r.added.Load() }

// begin returns a function to be called when everything left until now has been removed.
func (r *rest) begin() (done func()) {
	n := r.added.Load()
	return func() {
		for {
			if old := r.removed.Load(); old >= n || r.removed.CompareAndSwap(old, n) {
				return
			}
		}
	}
}

// add leaves something.
func (r *rest) add() {
	r.added.Add(1)
	r.trigger()
}

func (r *rest) run(remove func(ctx context.Context) error) error {
	for r.left() {
		done := r.begin()
		err := remove(r.ctx)
		if errors.Is(err, objectstore.ErrLocked) {
			if err = pause(r.ctx, restRetry); err == nil {
				continue
			}
		}
		if err != nil {
			return err
		}
		done()
	}
	return nil
}

// close stops the removal. The next start goes on with it.
func (r *rest) close() {
	if r == nil {
		return
	}
	r.cancel()
	r.stop()
}

// forgetPatience limits how long a Cleanup waits for a pull to end before it leaves everything to the background.
const forgetPatience = 50 * time.Millisecond

// forget removes what finds layers that nothing needs, and leaves their files to the background.
func (s *Snapshotter) forget(ctx context.Context) error {
	if !s.garbage.Swap(false) {
		if s.rest.left() { // the last attempt failed
			s.rest.trigger()
		}
		return nil
	}
	start := time.Now()
	waiting, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	patience := time.AfterFunc(forgetPatience, func() { cancel(objectstore.ErrLocked) })
	stats, err := s.layers.Forget(waiting, func(ctx context.Context) (map[objectstore.Checksum]struct{}, error) {
		if !patience.Stop() { // otherwise it has the lock, and may take its time
			return nil, objectstore.ErrLocked
		}
		return s.Live(ctx)
	})
	switch {
	case errors.Is(err, objectstore.ErrLocked):
		err = nil
	case err != nil:
		s.garbage.Store(true)
	case stats.Layers > 0:
		log.G(ctx).WithFields(log.Fields{
			"layers": stats.Layers, "checkouts": stats.Checkouts, "duration": time.Since(start),
		}).Info("layers forgotten, their files will be removed")
	}
	s.rest.add()
	return err
}

// removeRest removes layers and objects that nothing needs, slowly, and never while a pull has the lock.
func (s *Snapshotter) removeRest(ctx context.Context) error {
	// A plan walks the whole store. During a pull it is pointless.
	lock, err := s.layers.Repo().Lock(ctx, objectstore.LockExclusive)
	if err != nil {
		return err
	}
	if err := lock.Unlock(); err != nil {
		return err
	}
	start := time.Now()
	plan, err := s.layers.PlanUnmeasured(ctx, s.Live)
	if err != nil {
		return err
	}
	stats, err := plan.ExecuteInSteps(ctx, objectstore.Steps{Objects: restStep, Between: pause})
	if err != nil {
		return err
	}
	s.shares.stale.Store(true) // a pull may have reused what was garbage before
	log.G(ctx).WithFields(log.Fields{
		"layers": stats.Layers, "objects": stats.Objects, "leftovers": stats.Leftovers, "duration": time.Since(start),
	}).Info("files of removed layers are removed")
	return nil
}

// pause waits between two steps of a removal.
func pause(ctx context.Context, held time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(max(restPause, 2*held)):
		return nil
	}
}
