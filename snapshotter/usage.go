package snapshotter

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	continuity "github.com/containerd/continuity/fs"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
)

// Usage returns the space of a snapshot without its parents. Content that several snapshots have counts for one of them,
// so the sum over all snapshots is what they take together: objects, checkouts, and upper directories of active ones.
//
// For a committed snapshot that is what its commit added to the store. When a snapshot is removed, others take over
// what they shared with it: the next call finds out, in time linear in the objects of all layers.
func (s *Snapshotter) Usage(ctx context.Context, key string) (usage snapshots.Usage, err error) {
	var id string
	var info snapshots.Info
	err = s.read(ctx, func(ctx context.Context) error {
		id, info, usage, err = storage.GetInfo(ctx, key)
		return err
	})
	if err != nil {
		return usage, err
	}
	switch info.Kind {
	case snapshots.KindCommitted:
		err = s.committedUsage(ctx, id, info, &usage)
	case snapshots.KindActive:
		usage, err = s.activeUsage(ctx, id)
	default: // a view has nothing of its own
	}
	if err != nil {
		return snapshots.Usage{}, fmt.Errorf("usage of snapshot %q: %w", key, err)
	}
	return usage, nil
}

// committedUsage replaces what a commit added by the snapshot's share.
func (s *Snapshotter) committedUsage(ctx context.Context, id string, info snapshots.Info, usage *snapshots.Usage) error {
	sum, err := LayerOf(info)
	if err != nil {
		return nil //nolint:nilerr // its layer is unknown; using it reports that
	}
	share, ok, err := s.shareOf(ctx, id, sum)
	if ok {
		*usage = snapshots.Usage{Size: share.Bytes, Inodes: share.Inodes}
	}
	return err
}

func (s *Snapshotter) activeUsage(ctx context.Context, id string) (snapshots.Usage, error) {
	d, err := s.readDirectory(id)
	if err != nil {
		return snapshots.Usage{}, err
	}
	if !d.layer.IsZero() {
		share, ok, err := s.shareOf(ctx, id, d.layer)
		if err != nil {
			return snapshots.Usage{}, err
		}
		if ok {
			d.usage = share
		}
	}
	du, err := continuity.DiskUsage(ctx, filepath.Join(s.path, SnapshotsDir, id, upperDir))
	if err != nil {
		return snapshots.Usage{}, err
	}
	return snapshots.Usage{Size: du.Size + d.usage.Bytes, Inodes: du.Inodes + d.usage.Inodes}, nil
}

// A shareIndex holds the shares of snapshots in the store, as of the last time they were shared out. Snapshots that are
// not in it have what they added.
type shareIndex struct {
	stale  atomic.Bool   // a snapshot may have another share now
	unsure atomic.Bool   // the store may have had objects that were no snapshot's: a commit that uses them adds nothing
	busy   chan struct{} // holds an element while shares are computed

	mu   sync.Mutex
	byID map[string]share
}

type share struct {
	layer objectstore.Checksum
	usage layer.Usage
}

// shareOf returns the share of a snapshot with a layer, provided that it is not just what the snapshot added.
func (s *Snapshotter) shareOf(ctx context.Context, id string, sum objectstore.Checksum) (layer.Usage, bool, error) {
	if s.shares.stale.Load() {
		if err := s.shareOut(ctx); err != nil {
			return layer.Usage{}, false, err
		}
	}
	s.shares.mu.Lock()
	defer s.shares.mu.Unlock()
	found, ok := s.shares.byID[id]
	return found.usage, ok && found.layer == sum, nil
}

// shareOut computes all shares if they are stale.
func (s *Snapshotter) shareOut(ctx context.Context) (err error) {
	select {
	case s.shares.busy <- struct{}{}:
		defer func() { <-s.shares.busy }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if !s.shares.stale.Swap(false) {
		return nil
	}
	defer func() {
		if err != nil {
			s.shares.stale.Store(true)
		}
	}()
	s.shares.unsure.Store(true) // for commits meanwhile
	owners, sure, err := s.owners(ctx)
	if err != nil {
		return err
	}
	layers := make([]objectstore.Checksum, len(owners))
	for i, o := range owners {
		layers[i] = o.layer
	}
	usages, err := s.layers.Share(ctx, layers)
	if err != nil {
		return err
	}
	byID := make(map[string]share, len(owners))
	for _, o := range owners {
		usage, ok := usages[o.layer]
		if !ok {
			continue
		}
		byID[o.id] = share{o.layer, usage}
		usages[o.layer] = layer.Usage{} // the next snapshot with the layer shares all of it
	}
	s.shares.mu.Lock()
	s.shares.byID = byID
	s.shares.mu.Unlock()
	s.shares.unsure.Store(!sure)
	return nil
}

// An owner is a snapshot that has a layer.
type owner struct {
	id    string
	layer objectstore.Checksum
}

// owners returns the snapshots that have layers, oldest first. It is sure if the store has no object of another layer:
// a pull that runs meanwhile may have stored some, and found others that are a snapshot's.
func (s *Snapshotter) owners(ctx context.Context) (owners []owner, sure bool, err error) {
	try, cancel := context.WithCancel(ctx)
	cancel() // so that Lock does not wait
	lock, lerr := s.layers.Repo().Lock(try, objectstore.LockExclusive)
	if lerr == nil {
		defer func() { err = errors.Join(err, lock.Unlock()) }()
	}
	sure = lerr == nil && !s.garbage.Load() && !s.rest.left()
	// Directories before rows: Commit moves layers from the former to the latter.
	byID, _, err := appliedLayers(s.snaps)
	if err != nil {
		return nil, false, err
	}
	err = s.read(ctx, func(ctx context.Context) error {
		all, err := allIn(ctx)
		for _, sn := range all {
			if sum, lerr := LayerOf(sn.Info); lerr == nil && sn.Kind == snapshots.KindCommitted {
				byID[sn.id] = sum
			}
		}
		return err
	})
	if err != nil {
		return nil, false, err
	}
	known := make(map[objectstore.Checksum]struct{}, len(byID))
	for id, sum := range byID {
		owners = append(owners, owner{id, sum})
		known[sum] = struct{}{}
	}
	slices.SortFunc(owners, func(a, b owner) int { // decimal numbers
		return cmp.Or(cmp.Compare(len(a.id), len(b.id)), cmp.Compare(a.id, b.id))
	})
	refs, unreadable, err := s.layers.Repo().ReadableRefs(layer.RefPrefix)
	if err != nil {
		return nil, false, err
	}
	for _, sum := range refs {
		if _, ok := known[sum]; !ok {
			sure = false
		}
	}
	return owners, sure && len(unreadable) == 0, nil
}
