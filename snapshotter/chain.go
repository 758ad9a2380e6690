package snapshotter

import (
	"context"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// A snapshot is a row of metadata.db.
type snapshot struct {
	id string
	snapshots.Info
}

// allIn returns every snapshot, inside a transaction.
func allIn(ctx context.Context) (all []snapshot, err error) {
	err = walk(ctx, func(ctx context.Context, info snapshots.Info) error {
		id, _, _, err := storage.GetInfo(ctx, info.Name)
		all = append(all, snapshot{id, info})
		return err
	})
	return all, err
}

// chainOf returns the content of a committed snapshot and of those below it, topmost first. An empty name has an empty
// chain.
func (s *Snapshotter) chainOf(ctx context.Context, name string) (chain []content, err error) {
	if name == "" {
		return nil, nil
	}
	err = s.read(ctx, func(ctx context.Context) error {
		chain, err = chainIn(ctx, name)
		return err
	})
	return chain, err
}

// chainIn is chainOf inside a transaction.
func chainIn(ctx context.Context, name string) ([]content, error) {
	return chainBy(name, func(name string) (snapshot, error) {
		id, info, _, err := storage.GetInfo(ctx, name)
		return snapshot{id, info}, err
	})
}

// chainBy is chainOf with a function that returns snapshots.
func chainBy(name string, get func(name string) (snapshot, error)) ([]content, error) {
	var chain []content
	for name != "" {
		sn, err := get(name)
		if err != nil {
			return nil, fmt.Errorf("parent snapshot %q: %w", name, err)
		}
		if sn.Kind != snapshots.KindCommitted {
			return nil, fmt.Errorf("parent snapshot %q is not committed: %w", name, errdefs.ErrInvalidArgument)
		}
		c, err := contentOf(sn.id, sn.Info)
		if err != nil {
			return nil, err
		}
		chain = append(chain, c)
		name = sn.Parent
	}
	return chain, nil
}

// parentOf returns the chain that an active snapshot lies on, topmost first.
func (s *Snapshotter) parentOf(ctx context.Context, id string) (chain []content, err error) {
	err = s.read(ctx, func(ctx context.Context) error {
		sn, err := rowIn(ctx, id)
		if err == nil {
			chain, err = chainIn(ctx, sn.Parent)
		}
		return err
	})
	return chain, err
}

// rowIn returns the snapshot with an ID, inside a transaction; the zero value if there is none.
func rowIn(ctx context.Context, id string) (row snapshot, err error) {
	all, err := allIn(ctx)
	if i := slices.IndexFunc(all, func(sn snapshot) bool { return sn.id == id }); i >= 0 {
		row = all[i]
	}
	return row, err
}

// layerIDs returns the layers of a chain, lowest first, as the layer store expects them.
func layerIDs(chain []content, above ...objectstore.Checksum) []objectstore.Checksum {
	ids := make([]objectstore.Checksum, 0, len(chain)+len(above))
	for _, c := range slices.Backward(chain) {
		ids = append(ids, c.layer)
	}
	return append(ids, above...)
}

// walk is storage.WalkInfo, but a store that never had a snapshot is empty rather than an error.
func walk(ctx context.Context, f snapshots.WalkFunc, filters ...string) error {
	called := false
	err := storage.WalkInfo(ctx, func(ctx context.Context, info snapshots.Info) error {
		called = true
		return f(ctx, info)
	}, filters...)
	if !called && errdefs.IsNotFound(err) {
		return nil
	}
	return err
}
