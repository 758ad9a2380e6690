package inspect

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter"
)

// snapshotterName is sent with each call. Our daemon has one snapshotter and ignores the name.
const snapshotterName = "ostree"

// StoreHeader is the gRPC header with which the daemon sends the [Identity] of its store with every response.
const StoreHeader = "ostree-snapshotter-store"

// Identity returns a text that distinguishes the store below root from every other store of the running kernel.
func Identity(root *atfs.Dir) (string, error) {
	st, err := root.Lstat(".")
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%x:%d", st.Dev, st.Ino), nil
}

// A LockedError reports that metadata.db is locked, and that the daemon at Address does not answer for this store.
type LockedError struct {
	File    string
	Address string
	Err     error
}

func (e *LockedError) Error() string {
	return fmt.Sprintf("%s is locked, and the daemon at %s does not answer for it: %v", e.File, e.Address, e.Err)
}

func (e *LockedError) Unwrap() error { return e.Err }

// Cleanup asks the daemon that uses this store to remove leftovers of removed snapshots. If the daemon does not answer,
// the error is a [LockedError].
func (s *Store) Cleanup(ctx context.Context) error {
	return s.askDaemon(ctx, func(sn snapshots.Snapshotter) error {
		c, ok := sn.(snapshots.Cleaner)
		if !ok {
			return errdefs.ErrNotImplemented
		}
		return c.Cleanup(ctx)
	})
}

// askDaemon calls f with the snapshotter of the daemon, which must have this store open: the snapshots of another store
// tell nothing about which of our layers are in use.
func (s *Store) askDaemon(ctx context.Context, f func(snapshots.Snapshotter) error) error {
	err := s.dialDaemon(ctx, f)
	if err != nil {
		return &LockedError{filepath.Join(s.Root.Path(), snapshotter.MetadataFile), s.Daemon, err}
	}
	return nil
}

func (s *Store) dialDaemon(ctx context.Context, f func(snapshots.Snapshotter) error) (err error) {
	dial := func(ctx context.Context, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", strings.TrimPrefix(s.Daemon, "unix://"))
	}
	conn, err := grpc.NewClient("passthrough:///daemon", // the dialer knows the path, which would need quoting here
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(dial),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)))
	if err != nil {
		return fmt.Errorf("connect to %s: %w", s.Daemon, err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	client := snapshotsapi.NewSnapshotsClient(conn)
	if err := s.identify(ctx, client); err != nil {
		return err
	}
	return f(proxy.NewSnapshotter(client, snapshotterName))
}

// maxMessage is the size of the largest message that containerd's services send.
const maxMessage = 16 << 20

// identify returns an error unless the daemon has this store open.
func (s *Store) identify(ctx context.Context, client snapshotsapi.SnapshotsClient) error {
	want, err := Identity(s.Root)
	if err != nil {
		return err
	}
	// Any call that does nothing will do: every response has the header. No snapshot is called "".
	var header metadata.MD
	_, err = client.Stat(ctx, &snapshotsapi.StatSnapshotRequest{Snapshotter: snapshotterName}, grpc.Header(&header))
	switch got := header.Get(StoreHeader); {
	case len(got) == 1 && got[0] == want:
		return nil
	case len(got) > 0:
		return errors.New("it has another store open")
	case status.Code(err) == codes.Unavailable, ctx.Err() != nil:
		return errgrpc.ToNative(err)
	}
	return errors.New("it does not tell which store it has open: it is older than this program, or another snapshotter")
}
