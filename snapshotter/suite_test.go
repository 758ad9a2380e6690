package snapshotter_test

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/snaptest"
)

// suiteName is a snapshotter with the same limits as ours: a directory of a lower layer cannot be renamed.
const suiteName = "overlayfs"

// suiteLayers gives each file of a checkout its own inode. The suite now and then writes equal files within one tick of
// the clock; linked to one object, its comparison would take them for hard links. README names that limit.
var suiteLayers = layer.Options{MaxLinks: 2}

func TestSuiteInProcess(t *testing.T) {
	testenv.NeedsRoot(t)
	testsuite.SnapshotterSuite(t, suiteName, func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		e, err := snaptest.OpenWith(ctx, root, suiteLayers)
		if err != nil {
			return nil, nil, err
		}
		return e.Snapshotter, func() error { return errors.Join(e.Check(ctx), e.Close()) }, nil
	})
}

func TestSuiteOverSocket(t *testing.T) {
	testenv.NeedsRoot(t)
	testsuite.SnapshotterSuite(t, suiteName, func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		e, err := snaptest.OpenWith(ctx, root, suiteLayers)
		if err != nil {
			return nil, nil, err
		}
		address := filepath.Join(snaptest.SocketDir(t), "s")
		l, err := net.Listen("unix", address)
		if err != nil {
			return nil, nil, err
		}
		server := grpc.NewServer()
		snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(e.Snapshotter))
		served := make(chan error, 1)
		go func() { served <- server.Serve(l) }()
		conn, err := grpc.NewClient("unix://"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return nil, nil, err
		}
		return proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "ostree"), func() error {
			err := conn.Close()
			server.Stop()
			return errors.Join(err, <-served, e.Check(ctx), e.Close())
		}, nil
	})
}
