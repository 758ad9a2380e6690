package inspect

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
)

// ErrNotUnpacked is the error of an image that was pulled, but not all of whose layers are in the store.
var ErrNotUnpacked = errors.New("it is pulled, but this snapshotter has not unpacked it")

// Unpacked returns the layers with diff IDs, lowest first. Layers that were built here instead of pulled have no diff
// ID; they are found by the snapshot of the image's chain. If the store does not have them all the error is
// ErrNotUnpacked.
func (s *Store) Unpacked(ctx context.Context, diffIDs []digest.Digest) ([]objectstore.Checksum, error) {
	layers, err := s.byDiffID(ctx, diffIDs)
	if err != nil || layers != nil {
		return layers, err
	}
	if layers, err = s.byChain(ctx, identity.ChainID(diffIDs)); err != nil {
		return nil, err
	}
	if len(layers) != len(diffIDs) {
		return nil, ErrNotUnpacked
	}
	return layers, nil
}

// byDiffID returns nil if the store does not have all.
func (s *Store) byDiffID(ctx context.Context, diffIDs []digest.Digest) ([]objectstore.Checksum, error) {
	layers := make([]objectstore.Checksum, 0, len(diffIDs))
	for _, diffID := range diffIDs {
		held, err := s.Layers.Acquire(ctx, diffID)
		if errors.Is(err, objectstore.ErrNotExist) || errdefs.IsNotFound(err) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		layers = append(layers, held.ID)
		if err := held.Release(); err != nil {
			return nil, err
		}
	}
	return layers, nil
}

// byChain returns nil if the store has no snapshot of the chain.
func (s *Store) byChain(ctx context.Context, chain digest.Digest) ([]objectstore.Checksum, error) {
	list, err := s.Snapshots(ctx)
	if err != nil {
		return nil, err
	}
	var top *Snapshot
	for i := range list {
		if list[i].Kind == snapshots.KindCommitted && list[i].Chain == chain {
			top = &list[i]
		}
	}
	return chainOf(top, index(list)), nil
}

// AllLayers describes the layers that refs or snapshots name, ordered by ID. Damaged ones are left out, and the error
// names them: it can come with a list.
func (s *Store) AllLayers(ctx context.Context, list []Snapshot) ([]layer.Layer, error) {
	layers, err := s.Layers.Layers(ctx)
	errs := []error{err}
	known := make(map[objectstore.Checksum]struct{}, len(layers))
	for _, l := range layers {
		known[l.ID] = struct{}{}
	}
	for _, sn := range list {
		if sn.Damage != nil {
			errs = append(errs, sn.Damage)
		}
		if _, ok := known[sn.Layer]; ok || sn.Layer.IsZero() {
			continue
		}
		known[sn.Layer] = struct{}{}
		l, err := s.Layers.Layer(ctx, sn.Layer)
		if err != nil {
			errs = append(errs, fmt.Errorf("snapshot %q: %w", sn.Key, err))
			continue
		}
		layers = append(layers, *l)
	}
	slices.SortFunc(layers, func(a, b layer.Layer) int { return bytes.Compare(a.ID[:], b.ID[:]) })
	return layers, errors.Join(errs...)
}
