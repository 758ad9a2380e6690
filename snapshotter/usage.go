package snapshotter

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	continuity "github.com/containerd/continuity/fs"
)

// Usage returns the space of a snapshot without its parents. For a committed snapshot that is what its commit added to
// the store: content that was there already is not counted again, so the sum over all snapshots is what they take
// together. For an active one it is the current size of its upper directory, plus what an applied layer added.
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
