package stack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/image-spec/identity"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/tree"
)

// ChainID returns the name of an image's snapshot.
func (s *Stack) ChainID(ctx context.Context, namespace, image string) (string, error) {
	ctx = namespaces.WithNamespace(ctx, namespace)
	img, err := s.client.GetImage(ctx, image)
	if err != nil {
		return "", err
	}
	ids, err := img.RootFS(ctx)
	if err != nil {
		return "", err
	}
	return identity.ChainID(ids).String(), nil
}

// ReadView reads the files of a committed snapshot in a view.
func (s *Stack) ReadView(ctx context.Context, namespace, name string) (tree.Tree, error) {
	return s.readSnapshot(ctx, namespace, name, snapshots.Snapshotter.View)
}

// ReadActive reads the files of a committed snapshot in a new active one, as a new container sees them.
func (s *Stack) ReadActive(ctx context.Context, namespace, name string) (tree.Tree, error) {
	return s.readSnapshot(ctx, namespace, name, snapshots.Snapshotter.Prepare)
}

func (s *Stack) readSnapshot(ctx context.Context, namespace, name string,
	create func(snapshots.Snapshotter, context.Context, string, string, ...snapshots.Opt) ([]mount.Mount, error),
) (_ tree.Tree, err error) {
	ctx = namespaces.WithNamespace(ctx, namespace)
	ctx, release, err := s.client.WithLease(ctx) // keeps containerd from collecting the snapshot
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, release(context.WithoutCancel(ctx))) }()
	sn := s.client.SnapshotService(s.Snapshotter)
	key := "read-" + strconv.FormatInt(time.Now().UnixNano(), 36)
	mounts, err := create(sn, ctx, key, name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, sn.Remove(ctx, key)) }()
	return s.ReadMounts(ctx, mounts)
}

// ReadMounts mounts a snapshot and reads its files.
func (s *Stack) ReadMounts(ctx context.Context, mounts []mount.Mount) (_ tree.Tree, err error) {
	target, err := os.MkdirTemp(s.Dir, "view")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.Remove(target)) }()
	if err := mount.All(mounts, target); err != nil {
		return nil, fmt.Errorf("mount snapshot: %w", err)
	}
	defer func() { err = errors.Join(err, mount.UnmountAll(target, 0)) }()
	return tree.Read(ctx, target)
}
