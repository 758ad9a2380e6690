package containerd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	streamproxy "github.com/containerd/containerd/v2/core/streaming/proxy"
	"github.com/containerd/containerd/v2/core/transfer"
	transferimage "github.com/containerd/containerd/v2/core/transfer/image"
	transferproxy "github.com/containerd/containerd/v2/core/transfer/proxy"
	"github.com/containerd/containerd/v2/core/transfer/registry"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// leaseLife is how long containerd keeps pulled blobs if this process dies before it can release them.
const leaseLife = 24 * time.Hour

// DefaultHostsDir is the directory that describes registries, unless containerd's configuration names another one.
const DefaultHostsDir = "/etc/containerd/certs.d"

// A Registry has the options for access to registries.
type Registry struct {
	HostsDir  string // directory that describes registries
	PlainHTTP bool   // do without TLS
	User      string // USER:PASSWORD, "" for none

	// Credentials returns those of a registry, if User is "" and it is not nil; "" and "" for none.
	Credentials func(host string) (user, secret string, err error)
}

// A RegistryError reports that a registry cannot be reached, or does not have an image.
type RegistryError struct {
	Op, Ref     string
	Snapshotter string // that a pull unpacks with
	Err         error
}

func (e *RegistryError) Error() string { return e.Op + " " + e.Ref + ": " + e.Err.Error() }
func (e *RegistryError) Unwrap() error { return e.Err }

// GetCredentials returns the credentials for a registry that demands them.
func (r *Registry) GetCredentials(_ context.Context, _, host string) (registry.Credentials, error) {
	if r.User == "" {
		name, secret, err := r.Credentials(host)
		return registry.Credentials{Host: host, Username: name, Secret: secret}, err
	}
	name, secret, _ := strings.Cut(r.User, ":")
	return registry.Credentials{Host: host, Username: name, Secret: secret}, nil
}

func (r *Registry) open(ctx context.Context, ref, hostsDir string) (*registry.OCIRegistry, error) {
	opts := []registry.Opt{registry.WithHostDir(hostsDir)}
	if r.PlainHTTP {
		opts = append(opts, registry.WithDefaultScheme("http"))
	}
	if r.User != "" || r.Credentials != nil {
		opts = append(opts, registry.WithCredentials(r))
	}
	return registry.NewOCIRegistry(ctx, ref, opts...)
}

// Manifest asks a registry for the current manifest of a reference for this platform, and returns its digest. It
// downloads at most an index. HostsDir defaults to [DefaultHostsDir] if that exists. All errors are a [RegistryError].
func (r *Registry) Manifest(ctx context.Context, ref string) (digest.Digest, error) {
	manifest, _, err := r.Target(ctx, ref)
	return manifest, err
}

// Target is [Registry.Manifest], and returns also the digest that the reference itself has now: that of an index which
// names the manifest, or the same.
func (r *Registry) Target(ctx context.Context, ref string) (manifest, target digest.Digest, err error) {
	if manifest, target, err = r.target(Silent(ctx), ref); err != nil {
		return "", "", &RegistryError{Op: "ask the registry for", Ref: ref, Err: err}
	}
	return manifest, target, nil
}

func (r *Registry) target(ctx context.Context, ref string) (manifest, target digest.Digest, err error) {
	reg, err := r.open(ctx, ref, r.hostsDir())
	if err != nil {
		return "", "", err
	}
	name, desc, err := reg.Resolve(ctx)
	if err != nil || !images.IsIndexType(desc.MediaType) {
		return desc.Digest, desc.Digest, err
	}
	fetcher, err := reg.Fetcher(ctx, name)
	if err != nil {
		return "", "", err
	}
	children, err := images.Children(ctx, documents{fetched{fetcher}}, desc)
	if err != nil {
		return "", "", documentError(desc, err)
	}
	match := platforms.Default()
	sortByPlatform(children, match)
	for _, m := range children {
		if m.Platform != nil && images.IsManifestType(m.MediaType) && match.Match(*m.Platform) {
			return m.Digest, desc.Digest, nil
		}
	}
	return "", "", fmt.Errorf("no image for %s", platforms.FormatAll(platforms.DefaultSpec()))
}

// fetched provides documents from a registry.
type fetched struct{ transfer.Fetcher }

func (f fetched) ReaderAt(ctx context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	body, err := f.Fetch(ctx, desc)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(body, MaxDocument+1))
	if err = errors.Join(err, body.Close()); err != nil {
		return nil, err
	}
	return document{bytes.NewReader(data)}, nil
}

// Pull makes containerd pull an image into a namespace and unpack it with a snapshotter, like "ctr images pull
// --snapshotter". With pin it pulls what has that digest, whatever the name stands for meanwhile. HostsDir defaults to
// containerd's own. progress, which may be nil, is called with the KiB downloaded and the size of all known blobs in KiB.
// An error of the transfer is a [RegistryError], which is an errdefs.ErrNotImplemented for containerd before 2.0.
func (c *Client) Pull(
	ctx context.Context, namespace, snapshotter, ref string, pin digest.Digest, r *Registry, progress func(done, total int64),
) error {
	ctx = namespaces.WithNamespace(Silent(ctx), namespace)
	from := ref
	if pin != "" && !strings.Contains(ref, "@") {
		from += "@" + pin.String()
	}
	reg, err := r.open(ctx, from, r.HostsDir)
	if err != nil {
		return fmt.Errorf("pull %s: %w", ref, err)
	}
	lm := c.Leases()
	lease, err := lm.Create(ctx, leases.WithRandomID(), leases.WithExpiration(leaseLife))
	if err != nil {
		return fmt.Errorf("pull %s: %w", ref, err)
	}
	defer func() { _ = lm.Delete(context.WithoutCancel(ctx), lease) }() // otherwise it expires
	platform := platforms.DefaultSpec()
	dst := transferimage.NewStore(ref,
		transferimage.WithPlatforms(platform),
		transferimage.WithUnpack(platform, snapshotter),
		transferimage.WithAllMetadata)
	count := pullCount{blobs: make(map[string]transfer.Progress)}
	err = transferproxy.NewTransferrer(c.conn, streamproxy.NewStreamCreator(c.conn)).
		Transfer(leases.WithLease(ctx, lease.ID), reg, dst, transfer.WithProgress(func(p transfer.Progress) {
			if done, total := count.add(p); progress != nil {
				progress(done, total)
			}
		}))
	if err != nil {
		return &RegistryError{Op: "pull", Ref: ref, Snapshotter: snapshotter, Err: err}
	}
	return nil
}

// pullCount adds up the progress that containerd reports for each blob.
type pullCount struct {
	mu    sync.Mutex
	blobs map[string]transfer.Progress
}

// add adds a report, and returns the KiB downloaded and the size of all known blobs in KiB.
func (c *pullCount) add(p transfer.Progress) (done, total int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p.Name != "" && p.Total > 0 && p.Event != "extracting" && p.Event != "extracted" {
		c.blobs[p.Name] = p
	}
	for _, b := range c.blobs {
		done += b.Progress
		total += b.Total
	}
	return done >> 10, total >> 10
}
