package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	versionapi "github.com/containerd/containerd/api/services/version/v1"
	"github.com/containerd/containerd/v2/core/content"
	contentproxy "github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/core/leases"
	leasesproxy "github.com/containerd/containerd/v2/core/leases/proxy"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/blob"
)

// questionTimeout bounds the questions of the daemon to a containerd that waits for the daemon meanwhile.
const questionTimeout = 2 * time.Second

// maxRetry bounds the time until a client connects again to a containerd that was restarted.
const maxRetry = 5 * time.Second

// ErrNoContentRoot is returned if containerd does not report the directory of its content store.
var ErrNoContentRoot = errors.New("containerd does not report the directory of its content store")

// A Client is a client of the containerd at one socket. Its methods may be called concurrently.
type Client struct{ conn *grpc.ClientConn }

// window is how much of answers containerd may send before the client has read it. A fixed window spares a ping with each
// answer, by which gRPC would adapt it.
const window = 1 << 20

// Dial returns a client of the containerd at a unix socket. The address may start with unix://, as that of ctr may.
// containerd need not run yet: the first call connects, and fails at once if it cannot. After the connection was lost,
// later calls connect again.
func Dial(address string) (*Client, error) {
	path := strings.TrimPrefix(address, "unix://")
	retry := backoff.DefaultConfig
	retry.MaxDelay = maxRetry
	dial := func(ctx context.Context, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}
	conn, err := grpc.NewClient("passthrough:///containerd", // the dialer has the path, which would have to be quoted here
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(dial),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: retry, MinConnectTimeout: maxRetry}),
		grpc.WithStaticStreamWindowSize(window),
		grpc.WithStaticConnWindowSize(window),
		grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(defaults.DefaultMaxRecvMsgSize),
			grpc.MaxCallSendMsgSize(defaults.DefaultMaxSendMsgSize)))
	if err != nil {
		return nil, fmt.Errorf("connect to containerd at %s: %w", address, err)
	}
	return &Client{conn}, nil
}

// Conn returns the connection, for use with containerd's own client packages. Close closes it.
func (c *Client) Conn() *grpc.ClientConn { return c.conn }

// Close closes the connection.
func (c *Client) Close() error { return c.conn.Close() }

// Content returns containerd's content store. Calls need a context with a namespace.
func (c *Client) Content() content.Store { return contentproxy.NewContentStore(c.conn) }

// Leases returns containerd's leases. Calls need a context with a namespace.
func (c *Client) Leases() leases.Manager {
	return leasesproxy.NewLeaseManager(leasesapi.NewLeasesClient(c.conn))
}

// Version returns the version that containerd reports; [ParseVersion] reads it.
func (c *Client) Version(ctx context.Context) (string, error) {
	resp, err := versionapi.NewVersionClient(c.conn).Version(ctx, &emptypb.Empty{})
	if err != nil {
		return "", fmt.Errorf("ask containerd for its version: %w", errgrpc.ToNative(err))
	}
	return resp.Version, nil
}

// StagesMounts reports whether containerd accepts read-only mounts for a layer that exists already. If containerd does
// not answer within two seconds, or has an unknown version, the result is false, and the layer is fetched, which is
// always correct.
func (c *Client) StagesMounts(ctx context.Context) bool {
	v, err := c.running(ctx)
	if err != nil {
		log.G(ctx).WithError(err).Warn("containerd's version is not known, the layer is fetched")
	}
	return v.StagesMounts()
}

// MapsMounts reports whether containerd can mount with the options uidmap and gidmap. If containerd does not answer
// within two seconds, or has an unknown version, the result is true: the mount fails if it cannot.
func (c *Client) MapsMounts(ctx context.Context) bool {
	v, err := c.running(ctx)
	return err != nil || v.MapsMounts()
}

// running returns the version of containerd, which may wait for the daemon meanwhile.
func (c *Client) running(ctx context.Context) (Version, error) {
	ctx, cancel := context.WithTimeout(ctx, questionTimeout)
	defer cancel()
	text, err := c.Version(ctx)
	if err != nil {
		return Version{}, err
	}
	return ParseVersion(text)
}

// ContentRoot returns the directory of containerd's content store, or [ErrNoContentRoot].
func (c *Client) ContentRoot(ctx context.Context) (string, error) {
	list, err := c.plugins(ctx, "io.containerd.content.v1", "content")
	if err != nil {
		return "", fmt.Errorf("ask containerd for its content store: %w", err)
	}
	for _, p := range list {
		if root := p.Exports["root"]; root != "" {
			return root, nil
		}
	}
	return "", ErrNoContentRoot
}

// CheckPlugin checks that containerd has loaded a plugin. A plugin that is not configured is a [NoPluginError].
func (c *Client) CheckPlugin(ctx context.Context, kind, id string) error {
	list, err := c.plugins(ctx, kind, id)
	switch {
	case err != nil:
		return fmt.Errorf("ask containerd for its plugins: %w", err)
	case len(list) == 0:
		return &NoPluginError{ID: id}
	case list[0].InitErr != nil:
		return fmt.Errorf("containerd could not load %s: %s", id, list[0].InitErr.Message)
	}
	return nil
}

// A NoPluginError reports that containerd is not configured to load a plugin.
type NoPluginError struct{ ID string }

func (e *NoPluginError) Error() string { return "containerd has no plugin " + e.ID }

func (c *Client) plugins(ctx context.Context, kind, id string) ([]*introspectionapi.Plugin, error) {
	resp, err := introspectionapi.NewIntrospectionClient(c.conn).Plugins(ctx,
		&introspectionapi.PluginsRequest{Filters: []string{"type==" + kind + ",id==" + id}})
	if err != nil {
		return nil, errgrpc.ToNative(err)
	}
	return resp.Plugins, nil
}

// Blobs provides the blobs of containerd's content store, from its files or else through containerd. Its methods may be
// called concurrently.
type Blobs struct {
	client *Client

	mu   sync.Mutex
	root blob.Files // "" while unknown
}

// Blobs returns a provider of containerd's blobs. contentRoot is the directory of the content store. If it is "", the
// provider asks containerd for it with the first blob, and again with each blob until containerd answers.
func (c *Client) Blobs(contentRoot string) *Blobs {
	return &Blobs{client: c, root: blob.Files(contentRoot)}
}

// ReaderAt opens a blob, and does not verify its content.
func (b *Blobs) ReaderAt(ctx context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	providers := make(blob.First, 0, 2)
	if root, err := b.contentRoot(ctx); err != nil {
		log.G(ctx).WithError(err).Debug("directory of containerd's content store is unknown, blobs are read through containerd")
	} else {
		providers = append(providers, root)
	}
	if ns, ok := namespaces.Namespace(ctx); ok {
		ctx = namespaces.WithNamespace(ctx, ns) // for the calls that follow
	}
	return append(providers, b.client.Content()).ReaderAt(ctx, desc)
}

// Info returns containerd's record of a blob in the namespace of ctx.
func (b *Blobs) Info(ctx context.Context, blob digest.Digest) (content.Info, error) {
	return b.client.Content().Info(ctx, blob)
}

func (b *Blobs) contentRoot(ctx context.Context) (blob.Files, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.root != "" {
		return b.root, nil
	}
	ctx, cancel := context.WithTimeout(ctx, questionTimeout)
	defer cancel()
	root, err := b.client.ContentRoot(ctx)
	if err != nil {
		return "", err
	}
	log.G(ctx).WithField("path", root).Info("found containerd's content store")
	b.root = blob.Files(root)
	return b.root, nil
}

// Silent returns a context in which containerd's packages do not log. Their errors have the same information.
func Silent(ctx context.Context) context.Context {
	logger := logrus.New()
	logger.SetOutput(io.Discard)
	return log.WithLogger(ctx, logrus.NewEntry(logger))
}
