package inspect

import (
	"context"
	"errors"
	"fmt"

	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter"
)

// Prune removes layers, checkouts and objects that no snapshot needs, and leftovers of interrupted operations. With
// dryRun it only counts them. A running daemon removes the directories of its own snapshots.
//
// If metadata.db is damaged or lost, or the daemon does not answer for this store, it removes nothing and the errors
// are those of [Store.Snapshots]. Files that cannot be removed do not stop the rest: the error is then an
// objectstore.ErrNotRemoved that names them. A result beside an error counts what was removed.
func (s *Store) Prune(ctx context.Context, dryRun bool) (*layer.PruneStats, error) {
	swept, err := snapshotter.Sweep(ctx, s.Root, dryRun)
	daemon := errors.Is(err, bolterrors.ErrTimeout)
	if daemon {
		swept, err = &snapshotter.Swept{}, nil // the daemon knows which directories it uses
	}
	var left error // what cannot be removed does not stop the rest
	switch {
	case errors.Is(err, objectstore.ErrNotRemoved):
		left = fmt.Errorf("sweep snapshots: %w", err)
	case err != nil:
		return nil, fmt.Errorf("sweep snapshots: %w", err)
	}
	plan, err := s.Layers.PlanPrune(ctx, s.Live(swept.Orphans...))
	if err != nil {
		return nil, errors.Join(err, left)
	}
	stats := plan.Stats()
	if !dryRun {
		stats, err = plan.Execute(ctx)
		if daemon && (err == nil || errors.Is(err, objectstore.ErrNotRemoved)) {
			err = errors.Join(err, s.Cleanup(ctx))
		}
	}
	stats.Leftovers += len(swept.Orphans) + swept.Removed
	stats.Bytes += swept.Bytes
	return &stats, errors.Join(err, left)
}
