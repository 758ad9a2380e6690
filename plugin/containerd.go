package plugin

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	versionapi "github.com/containerd/containerd/api/services/version/v1"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/content/proxy"
	leasesproxy "github.com/containerd/containerd/v2/core/leases/proxy"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/blob"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/differ"
)

// questionTimeout bounds the small questions that containerd is asked while it waits for our answer.
const questionTimeout = 2 * time.Second

// A daemon is the containerd that this process serves. It need not run yet: it is connected to when it is needed.
type daemon struct {
	conn *grpc.ClientConn

	mu   sync.Mutex
	root blob.Files // of the content store, "" before it is known
}

// connect prepares the connection to containerd. contentRoot is the directory of its content store, "" to ask for it.
func connect(address, contentRoot string) (*daemon, error) {
	conn, err := grpc.NewClient("unix://"+address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(defaults.DefaultMaxRecvMsgSize),
			grpc.MaxCallSendMsgSize(defaults.DefaultMaxSendMsgSize)))
	if err != nil {
		return nil, fmt.Errorf("connect to containerd: %w", err)
	}
	return &daemon{conn: conn, root: blob.Files(contentRoot)}, nil
}

func (d *daemon) Close() error { return d.conn.Close() }

// ReaderAt opens a blob: the file in containerd's content store, or else the bytes that containerd sends.
func (d *daemon) ReaderAt(ctx context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	sources := make(blob.First, 0, 2)
	if root, err := d.contentRoot(ctx); err != nil {
		log.G(ctx).WithError(err).Debug("directory of containerd's content store is not known, blobs are read through containerd")
	} else {
		sources = append(sources, root)
	}
	if ns, ok := namespaces.Namespace(ctx); ok {
		ctx = namespaces.WithNamespace(ctx, ns) // onto the calls that follow
	}
	store := proxy.NewContentStore(contentapi.NewContentClient(d.conn))
	return append(sources, store).ReaderAt(ctx, desc)
}

// target is where containerd keeps blobs.
func (d *daemon) target() differ.Target {
	return differ.Target{
		Store:  proxy.NewContentStore(contentapi.NewContentClient(d.conn)),
		Leases: leasesproxy.NewLeaseManager(leasesapi.NewLeasesClient(d.conn)),
	}
}

// contentRoot asks containerd, once it can answer, where its content store is.
func (d *daemon) contentRoot(ctx context.Context) (blob.Files, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.root != "" {
		return d.root, nil
	}
	ctx, cancel := context.WithTimeout(ctx, questionTimeout)
	defer cancel()
	resp, err := introspectionapi.NewIntrospectionClient(d.conn).Plugins(ctx,
		&introspectionapi.PluginsRequest{Filters: []string{"type==io.containerd.content.v1,id==content"}})
	if err != nil {
		return "", errgrpc.ToNative(err)
	}
	for _, p := range resp.Plugins {
		if root := p.Exports["root"]; root != "" {
			d.root = blob.Files(root)
			log.G(ctx).WithField("path", root).Info("found containerd's content store")
			return d.root, nil
		}
	}
	return "", errors.New("containerd does not say where its content store is")
}

// stages reports whether containerd takes read-only mounts for a layer that is there: 2.4 and later do. Without an
// answer the layer is fetched, which is never wrong.
func (d *daemon) stages(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, questionTimeout)
	defer cancel()
	resp, err := versionapi.NewVersionClient(d.conn).Version(ctx, &emptypb.Empty{})
	if err != nil {
		log.G(ctx).WithError(errgrpc.ToNative(err)).Warn("containerd does not tell its version, the layer is fetched")
		return false
	}
	return stagingVersion(resp.Version)
}

// stagingVersion reports whether a version like "2.4.2" or "v2.5.0-rc.1" is at least 2.4.
func stagingVersion(version string) bool {
	parts := strings.SplitN(strings.TrimPrefix(version, "v"), ".", 3)
	if len(parts) < 3 {
		return false
	}
	major, err1 := strconv.Atoi(parts[0])
	minor, err2 := strconv.Atoi(parts[1])
	return err1 == nil && err2 == nil && (major > 2 || major == 2 && minor >= 4)
}
