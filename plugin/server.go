package plugin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/diffservice"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"
	sd "github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/panics"
	"github.com/ostree-snapshotter/ostree-snapshotter/plugin/containerd"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/differ"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/inspect"
)

// noContext is the context of calls that do not block.
var noContext = context.Background()

// drainTimeout is how long a stopping server waits for running calls, so that most layers being unpacked are completed.
// Layers that are not are discarded.
const drainTimeout = 10 * time.Second

// A Server is the daemon: a snapshotter and a differ over one store.
type Server struct {
	config      *Config
	version     string
	store       *Store
	containerd  *containerd.Client
	snapshotter *snapshotter.Snapshotter
	grpc        *grpc.Server
	close       func() error
}

// An Option changes a Server.
type Option func(*Server)

// WithVersion makes the server tell its clients which version of the program it is; see [ProbeDaemon].
func WithVersion(version string) Option { return func(s *Server) { s.version = version } }

// Assemble prepares the process (umask, limit of open files) and opens everything except the socket. Its errors are one
// line and tell what to do. The caller closes the server.
func Assemble(ctx context.Context, c *Config, options ...Option) (_ *Server, err error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("must run as root: it mounts, and makes files of any owner")
	}
	unix.Umask(0)
	raiseFileLimit(ctx)
	s := &Server{config: c}
	for _, o := range options {
		o(s)
	}
	s.close = sync.OnceValue(s.closeAll)
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if s.store, err = OpenStore(ctx, c); err != nil {
		return nil, err
	}
	if s.containerd, err = containerd.Dial(c.Containerd.Address); err != nil {
		return nil, err
	}
	blobs := s.containerd.Blobs(c.Containerd.ContentRoot)
	if err := s.store.Recover(ctx, blobs); err != nil {
		return nil, err
	}
	opts := []snapshotter.Option{
		snapshotter.WithMappedMounts(s.containerd.MapsMounts), snapshotter.WithBackgroundRemoval(c.Cleanup.WaitAbove),
	}
	if c.SkipDownload {
		opts = append(opts, snapshotter.WithStaging(s.containerd.StagesMounts))
	}
	if c.ShareNamespaces {
		opts = append(opts, snapshotter.WithSharedNamespaces())
	}
	if c.Durability == DurabilitySync {
		opts = append(opts, snapshotter.WithSync())
	}
	if s.store.Composefs != nil {
		opts = append(opts, snapshotter.WithComposefs(*s.store.Composefs))
	}
	if s.snapshotter, err = snapshotter.New(ctx, s.store.Root, s.store.Layers, opts...); err != nil {
		return nil, err
	}
	target := differ.Target{Store: s.containerd.Content(), Leases: s.containerd.Leases()}
	d := differ.New(s.snapshotter, s.store.Layers, blobs, target)
	identity, err := inspect.Identity(s.store.Root)
	if err != nil {
		return nil, err
	}
	s.grpc = newGRPC(identity, s.version)
	snapshotsapi.RegisterSnapshotsServer(s.grpc, snapshotservice.FromSnapshotter(s.snapshotter))
	diffapi.RegisterDiffServer(s.grpc, diffservice.FromApplierAndComparer(d, d))
	return s, nil
}

// raiseFileLimit raises the limit of open files to its maximum: containerd pulls many layers at once.
func raiseFileLimit(ctx context.Context) {
	var l unix.Rlimit
	err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l)
	if err == nil && l.Cur < l.Max {
		l.Cur = l.Max
		err = unix.Setrlimit(unix.RLIMIT_NOFILE, &l)
	}
	if err != nil {
		log.G(ctx).WithError(err).Warn("limit of open files is not raised")
	}
}

// Snapshotter returns the server's snapshotter.
func (s *Server) Snapshotter() *snapshotter.Snapshotter { return s.snapshotter }

// Run listens on the configured socket, notifies systemd that the daemon is ready, and serves until ctx is done. Then
// it waits for running calls, ten seconds at most, and returns nil.
func (s *Server) Run(ctx context.Context) error {
	l, err := listen(s.config.Address)
	if err != nil {
		return err
	}
	return s.Serve(ctx, l)
}

// Serve is like Run with the given listener, which it closes.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	var background sync.WaitGroup
	defer background.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	background.Go(func() {
		// Leftovers of the last process.
		err := panics.Call(func() error { return s.snapshotter.Cleanup(ctx) })
		if err != nil && ctx.Err() == nil {
			log.G(ctx).WithError(err).Warn("cleanup at start")
		}
	})
	served := panics.Go(func() error { return s.grpc.Serve(l) })
	s.store.recordCheckout(ctx)
	log.G(ctx).WithField("address", l.Addr().String()).WithField("root", s.config.Root).Info("serving")
	notify(ctx, sd.SdNotifyReady)
	select {
	case err := <-served:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}
	notify(ctx, sd.SdNotifyStopping)
	log.G(ctx).Info("stopping")
	s.drain(ctx)
	if err := <-served; err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}

// drain stops the server: it refuses new calls and waits for running ones, up to drainTimeout.
func (s *Server) drain(ctx context.Context) {
	timer := time.AfterFunc(drainTimeout, func() {
		log.G(ctx).Warn("ending calls that still run")
		s.grpc.Stop()
	})
	defer timer.Stop()
	s.grpc.GracefulStop()
}

func notify(ctx context.Context, state string) {
	if _, err := sd.SdNotify(false, state); err != nil {
		log.G(ctx).WithError(err).Warn("systemd was not notified")
	}
}

// Close closes the store. Call it after Run has returned. Further calls return the result of the first.
func (s *Server) Close() error { return s.close() }

func (s *Server) closeAll() error {
	var err error
	if s.snapshotter != nil {
		err = s.snapshotter.Close()
	}
	if s.containerd != nil {
		err = errors.Join(err, s.containerd.Close())
	}
	if s.store != nil {
		err = errors.Join(err, s.store.Close())
	}
	return err
}

// maxCalls is the number of calls that one connection can have at a time. Further ones wait in the client. containerd has
// a call for each layer being unpacked, and short ones for containers.
const maxCalls = 1000

// window is how much of requests a client may send before the server has read it. It is fixed: a server that adapts it to
// the speed of the connection sends a ping with each request, which wakes containerd once more.
const window = 1 << 20

// newGRPC returns a server with containerd's message limits. A panic ends one call, not the daemon. Errors get the
// codes of errdefs: containerd's services see to that themselves, except for List. Every response carries the identity
// of the store, for commands that must know whose snapshots they list, and the version of the daemon.
func newGRPC(identity, version string) *grpc.Server {
	header := metadata.Pairs(inspect.StoreHeader, identity, inspect.VersionHeader, version)
	return grpc.NewServer(
		grpc.MaxRecvMsgSize(defaults.DefaultMaxRecvMsgSize),
		grpc.MaxSendMsgSize(defaults.DefaultMaxSendMsgSize),
		grpc.MaxConcurrentStreams(maxCalls),
		grpc.StaticStreamWindowSize(window),
		grpc.StaticConnWindowSize(window),
		grpc.WaitForHandlers(true),
		grpc.UnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
			if err := grpc.SetHeader(ctx, header); err != nil {
				return nil, err
			}
			if len(metadata.ValueFromIncomingContext(ctx, inspect.WaitHeader)) > 0 {
				ctx = snapshotter.WaitForRemoval(ctx)
			}
			err = call(info.FullMethod, func() error { resp, err = handler(ctx, req); return err })
			return resp, errgrpc.ToGRPC(err)
		}),
		grpc.StreamInterceptor(func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
			if err := ss.SetHeader(header); err != nil {
				return err
			}
			return errgrpc.ToGRPC(call(info.FullMethod, func() error { return handler(srv, ss) }))
		}),
	)
}

// call calls a handler. A panic in it, or in a goroutine of it, is an error with the code Internal.
func call(method string, handler func() error) error {
	err := panics.Call(handler)
	var p *panics.Error
	if errors.As(err, &p) {
		return status.Errorf(codes.Internal, "%s %v", method, err)
	}
	return err
}

func init() {
	panics.Report = func(e *panics.Error) { log.L.WithField("stack", string(e.Stack)).Error(e) }
}
