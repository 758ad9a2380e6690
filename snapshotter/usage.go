package snapshotter

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	continuity "github.com/containerd/continuity/fs"
)

// Usage returns the space that a snapshot takes, its parents not included. For a committed one that is what it added
// to the store when it was committed: what was there already is not counted again, so that the sum over all snapshots
// is what they take together. For an active one it is what its upper directory takes now, and what a layer that was
// applied to it added.
func (s *Snapshotter) Usage(ctx context.Context, key string) (usage snapshots.Usage, err error) {
	var id string
	var info snapshots.Info
	err = s.read(ctx, func(ctx context.Context) error {
		id, info, usage, err = storage.GetInfo(ctx, key)
		return err
	})
	if err != nil || info.Kind != snapshots.KindActive {
		return usage, err
	}
	d, err := s.readDirectory(id)
	if err != nil {
		return usage, fmt.Errorf("usage of snapshot %q: %w", key, err)
	}
	du, err := continuity.DiskUsage(ctx, filepath.Join(s.path, SnapshotsDir, id, upperDir))
	if err != nil {
		return usage, fmt.Errorf("usage of snapshot %q: %w", key, err)
	}
	return snapshots.Usage{Size: du.Size + d.usage.Bytes, Inodes: du.Inodes + d.usage.Inodes}, nil
}
