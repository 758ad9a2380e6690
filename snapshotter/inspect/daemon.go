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
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter"
)

// snapshotterName is sent with each call. Our daemon has one snapshotter and ignores the name.
const snapshotterName = "ostree"

// StoreHeader is the gRPC header with which the daemon sends the [Identity] of its store with every response.
const StoreHeader = "ostree-snapshotter-store"

// VersionHeader is the gRPC header with the version of the daemon.
const VersionHeader = "ostree-snapshotter-version"

// WaitHeader is the gRPC header with which a client asks for a Cleanup that leaves nothing for the background.
const WaitHeader = "ostree-snapshotter-wait"

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

// Cleanup asks the daemon that uses this store to remove leftovers of removed snapshots, and waits for that. If the
// daemon does not answer, the error is a [LockedError]; if it could not remove some files, an objectstore.ErrNotRemoved
// that names them.
func (s *Store) Cleanup(ctx context.Context) error {
	var left error
	ctx = metadata.AppendToOutgoingContext(ctx, WaitHeader, "true")
	err := s.askDaemon(ctx, func(sn snapshots.Snapshotter) error {
		c, ok := sn.(snapshots.Cleaner)
		if !ok {
			return errdefs.ErrNotImplemented
		}
		err := c.Cleanup(ctx)
		if errdefs.IsFailedPrecondition(err) { // the class of the daemon's objectstore.ErrNotRemoved
			left, err = objectstore.NotRemoved(err), nil
		}
		return err
	})
	return errors.Join(err, left)
}

// askDaemon calls f with the snapshotter of the daemon, which must have this store open: the snapshots of another store
// tell nothing about which of our layers are in use.
func (s *Store) askDaemon(ctx context.Context, f func(snapshots.Snapshotter) error) error {
	err := dialDaemon(ctx, s.Daemon, s.Root, func(client snapshotsapi.SnapshotsClient, _ metadata.MD) error {
		return f(proxy.NewSnapshotter(client, snapshotterName))
	})
	if err != nil {
		return &LockedError{filepath.Join(s.Root.Path(), snapshotter.MetadataFile), s.Daemon, err}
	}
	return nil
}

// DaemonVersion returns the version of the daemon at a socket, "" if it is too old to send one. The daemon must have the
// store below root open. errdefs.IsUnavailable reports that nothing listens there.
func DaemonVersion(ctx context.Context, address string, root *atfs.Dir) (version string, err error) {
	err = dialDaemon(ctx, address, root, func(_ snapshotsapi.SnapshotsClient, header metadata.MD) error {
		version = strings.Join(header.Get(VersionHeader), "")
		return nil
	})
	return version, err
}

// dialDaemon calls f with a client of the daemon at a socket, which must have the store below root open, and with the
// header of its responses.
func dialDaemon(
	ctx context.Context, address string, root *atfs.Dir, f func(snapshotsapi.SnapshotsClient, metadata.MD) error,
) (err error) {
	dial := func(ctx context.Context, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", strings.TrimPrefix(address, "unix://"))
	}
	conn, err := grpc.NewClient("passthrough:///daemon", // the dialer knows the path, which would need quoting here
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(dial),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)))
	if err != nil {
		return fmt.Errorf("connect to %s: %w", address, err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	client := snapshotsapi.NewSnapshotsClient(conn)
	header, err := identify(ctx, client, root)
	if err != nil {
		return err
	}
	return f(client, header)
}

// maxMessage is the size of the largest message that containerd's services send.
const maxMessage = 16 << 20

// identify returns the header of the daemon's responses, or an error unless it has the store below root open.
func identify(ctx context.Context, client snapshotsapi.SnapshotsClient, root *atfs.Dir) (header metadata.MD, err error) {
	want, err := Identity(root)
	if err != nil {
		return nil, err
	}
	// Any call that does nothing will do: every response has the header. No snapshot is called "".
	_, err = client.Stat(ctx, &snapshotsapi.StatSnapshotRequest{Snapshotter: snapshotterName}, grpc.Header(&header))
	switch got := header.Get(StoreHeader); {
	case len(got) == 1 && got[0] == want:
		return header, nil
	case len(got) > 0:
		return nil, errors.New("it has another store open")
	case status.Code(err) == codes.Unavailable, ctx.Err() != nil:
		return nil, errgrpc.ToNative(err)
	}
	return nil, errors.New("it does not tell which store it has open: it is older than this program, or another snapshotter")
}
