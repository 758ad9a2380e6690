package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/log"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
)

// Cleanup frees the space of removed snapshots: their directories, layers that no snapshot needs any more, and the
// checkouts and objects of these. Calls wait for each other. During a pull the store is not pruned; the next Cleanup
// does so. Files that cannot be removed do not stop the rest: the error is then an objectstore.ErrNotRemoved that names
// them, and the next Cleanup tries again.
//
// With [WithBackgroundRemoval] layers are only forgotten, and their files removed later, after any pull.
func (s *Snapshotter) Cleanup(ctx context.Context) error {
	select {
	case s.cleaning <- struct{}{}:
		defer func() { <-s.cleaning }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	var errs []error
	for _, step := range []func(context.Context) error{s.sweepDirectories, s.sweepMounts, s.free} {
		if err := step(ctx); err != nil {
			errs = append(errs, fmt.Errorf("clean up snapshots: %w", err))
		}
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(errs...)
}

// sweepDirectories removes the directories of snapshots that were removed.
func (s *Snapshotter) sweepDirectories(ctx context.Context) error {
	err := s.discardOrphans(ctx)
	names, rerr := s.tmp.ReadNames()
	err = errors.Join(err, rerr)
	var left []error
	for _, name := range names {
		if ctx.Err() != nil {
			return errors.Join(append(left, err, context.Cause(ctx))...)
		}
		// Directories with newPrefix belong to a running Prepare.
		if strings.HasPrefix(name, oldPrefix) {
			left = append(left, s.tmp.RemoveAll(name))
		}
	}
	return errors.Join(err, objectstore.NotRemoved(left...))
}

// sweepMounts has the mounter remove mounts, images and checkouts that no snapshot needs any more.
func (s *Snapshotter) sweepMounts(ctx context.Context) (err error) {
	s.sweeping.Lock() // so that no sweep lists what another one is removing
	defer s.sweeping.Unlock()
	if !s.idle.Swap(false) {
		return nil
	}
	defer func() {
		if err != nil {
			s.idle.Store(true)
		}
	}()
	return s.mounter.sweep(ctx, func(ctx context.Context, f func(all []snapshot) error) error {
		return s.ms.WithTransaction(ctx, true, func(ctx context.Context) error { // it changes no row
			all, err := allIn(ctx)
			if err != nil {
				return err
			}
			return f(all)
		})
	})
}

// discardOrphans moves directories that no snapshot needs out of snapshots/. If there are candidates it looks again
// inside a write transaction, during which no snapshot is created or committed. Mostly there are none, and nothing has
// to wait.
func (s *Snapshotter) discardOrphans(ctx context.Context) error {
	// Names first: the row of a snapshot whose directory exists by now is in the transaction, unless it is still being
	// created.
	names, err := s.snaps.ReadNames()
	if err != nil {
		return err
	}
	err = s.read(ctx, func(ctx context.Context) error {
		names, err = orphans(ctx, names)
		return err
	})
	if err != nil || len(names) == 0 {
		return err
	}
	return s.ms.WithTransaction(ctx, true, func(ctx context.Context) error { // it changes no row
		if names, err = orphans(ctx, names); err != nil {
			return err
		}
		var errs []error
		for _, name := range names {
			s.garbage.Store(true) // it may have kept a layer
			s.shares.stale.Store(true)
			errs = append(errs, atfs.IgnoreNotExist(s.discard(name)))
		}
		return objectstore.NotRemoved(errs...)
	})
}

// orphans returns the names in snapshots/ of directories that no snapshot needs.
func orphans(ctx context.Context, names []string) ([]string, error) {
	if len(names) == 0 {
		return nil, nil
	}
	needed := make(map[string]struct{})
	err := walk(ctx, func(ctx context.Context, info snapshots.Info) error {
		if info.Kind == snapshots.KindCommitted {
			return nil
		}
		id, _, _, err := storage.GetInfo(ctx, info.Name)
		needed[id] = struct{}{}
		return err
	})
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool {
		_, ok := needed[name]
		return ok
	}), nil
}

// free removes layers and objects that nothing needs, or has that done in the background.
func (s *Snapshotter) free(ctx context.Context) error {
	if s.rest == nil {
		return s.prune(ctx)
	}
	if ctx.Value(waitKey{}) == nil {
		full, err := s.root.Fuller(s.opts.background)
		if err == nil && !full {
			return s.forget(ctx)
		}
		if err != nil {
			log.G(ctx).WithError(err).Warn("free space is unknown, removing files at once")
		}
	}
	done := s.rest.begin()
	err := s.prune(ctx)
	switch {
	case err != nil:
	case s.garbage.Load(): // the store is in use
		s.rest.add()
	default:
		done()
	}
	return err
}

// prune removes layers and objects that nothing needs. Finding them takes a walk over the whole store, so it runs only
// when there may be some.
func (s *Snapshotter) prune(ctx context.Context) (err error) {
	if !s.garbage.Swap(false) && !s.rest.left() {
		return nil
	}
	defer func() {
		if err != nil {
			s.garbage.Store(true)
		}
		if errors.Is(err, objectstore.ErrLocked) {
			log.G(ctx).WithError(err).Info("store is in use, not pruned now")
			err = nil
		}
	}()
	start := time.Now()
	stats, err := s.pruneNow(ctx)
	if err != nil {
		return err
	}
	s.shares.stale.Store(true) // a pull may have reused what was garbage before
	log.G(ctx).WithFields(log.Fields{
		"layers": stats.Layers, "checkouts": stats.Checkouts, "objects": stats.Objects, "leftovers": stats.Leftovers,
		"bytes": stats.Bytes, "duration": time.Since(start),
	}).Info("store pruned")
	return nil
}

// pruneNow prunes, or returns objectstore.ErrLocked if it would have to wait for a pull.
func (s *Snapshotter) pruneNow(ctx context.Context) (layer.PruneStats, error) {
	if err := s.probeLock(ctx); err != nil {
		return layer.PruneStats{}, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var patience *time.Timer // runs while Execute waits for the lock
	plan, err := s.layers.PlanPrune(ctx, func(ctx context.Context) (map[objectstore.Checksum]struct{}, error) {
		// Execute calls this once it has the lock: from then on it may take its time.
		if patience != nil && !patience.Stop() {
			return nil, objectstore.ErrLocked
		}
		patience = nil
		return s.Live(ctx)
	})
	if err != nil {
		return layer.PruneStats{}, err
	}
	patience = time.AfterFunc(lockPatience, func() { cancel(objectstore.ErrLocked) })
	return plan.Execute(ctx)
}

// lockPatience limits how long Cleanup waits for a pull to end: removing an image waits for Cleanup.
const lockPatience = time.Second

// probeLock returns objectstore.ErrLocked if a pull is running, which would make planning pointless.
func (s *Snapshotter) probeLock(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, lockPatience, objectstore.ErrLocked)
	defer cancel()
	lock, err := s.layers.Repo().Lock(ctx, objectstore.LockExclusive)
	if err != nil {
		return err
	}
	return lock.Unlock()
}
