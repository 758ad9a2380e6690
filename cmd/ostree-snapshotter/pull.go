package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"
	"time"

	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	leasesproxy "github.com/containerd/containerd/v2/core/leases/proxy"
	streamproxy "github.com/containerd/containerd/v2/core/streaming/proxy"
	"github.com/containerd/containerd/v2/core/transfer"
	transferimage "github.com/containerd/containerd/v2/core/transfer/image"
	transferproxy "github.com/containerd/containerd/v2/core/transfer/proxy"
	"github.com/containerd/containerd/v2/core/transfer/registry"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"
)

// leaseLife is how long containerd keeps what is pulled if this program does not come to say that it is done.
const leaseLife = 24 * time.Hour

// defaultHostsDir is where containerd's registries are described, unless its configuration says something else.
const defaultHostsDir = "/etc/containerd/certs.d"

// pullFlags are those of "ctr images pull" that say how to reach a registry.
type pullFlags struct {
	snapshotter string
	hostsDir    string
	plainHTTP   bool
	user        string
}

func (p *pullFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&p.snapshotter, "snapshotter", snapshotterID, "`NAME` of this snapshotter in containerd's configuration")
	f.StringVar(&p.hostsDir, "hosts-dir", "",
		"`DIR` that describes registries, instead of containerd's own; to compare digests alone, "+defaultHostsDir)
	f.BoolVar(&p.plainHTTP, "plain-http", false, "ask the registry without TLS")
	f.StringVarP(&p.user, "user", "u", "", "`USER:PASSWORD` for the registry")
}

// GetCredentials answers a registry that asks who is there.
func (p *pullFlags) GetCredentials(_ context.Context, _, host string) (registry.Credentials, error) {
	name, secret, _ := strings.Cut(p.user, ":")
	return registry.Credentials{Host: host, Username: name, Secret: secret}, nil
}

// registry is where an image comes from.
func (p *pullFlags) registry(ctx context.Context, ref, hostsDir string) (*registry.OCIRegistry, error) {
	opts := []registry.Opt{registry.WithHostDir(hostsDir)}
	if p.plainHTTP {
		opts = append(opts, registry.WithDefaultScheme("http"))
	}
	if p.user != "" {
		opts = append(opts, registry.WithCredentials(p))
	}
	return registry.NewOCIRegistry(ctx, ref, opts...)
}

// remoteManifest asks the registry for the digest of the manifest that a reference names now on this platform. Nothing is
// downloaded but an index, if it names one.
func (p *pullFlags) remoteManifest(ctx context.Context, ref string) (_ digest.Digest, err error) {
	defer func() {
		if err != nil {
			err = withHint(fmt.Errorf("ask the registry for %s: %w", ref, err), "%s", registryHint)
		}
	}()
	dir := cmp.Or(p.hostsDir, defaultHostsDir)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) && p.hostsDir == "" {
		dir = ""
	}
	ctx = silent(ctx)
	reg, err := p.registry(ctx, ref, dir)
	if err != nil {
		return "", err
	}
	name, desc, err := reg.Resolve(ctx)
	if err != nil || !images.IsIndexType(desc.MediaType) {
		return desc.Digest, err
	}
	fetcher, err := reg.Fetcher(ctx, name)
	if err != nil {
		return "", err
	}
	body, err := fetcher.Fetch(ctx, desc)
	if err != nil {
		return "", err
	}
	defer body.Close()
	data, err := io.ReadAll(io.LimitReader(body, maxManifest+1))
	if err != nil {
		return "", err
	}
	if got := digest.FromBytes(data); got != desc.Digest {
		return "", fmt.Errorf("index is %s, not %s", got, desc.Digest)
	}
	return platformManifest(data)
}

// silent has containerd's packages not log: what they have to say is in their errors.
func silent(ctx context.Context) context.Context {
	logger := logrus.New()
	logger.SetOutput(io.Discard)
	return log.WithLogger(ctx, logrus.NewEntry(logger))
}

// platformManifest returns the digest of the manifest of an index that containerd takes on this platform.
func platformManifest(data []byte) (digest.Digest, error) {
	var index ocispec.Index
	if err := json.Unmarshal(data, &index); err != nil {
		return "", fmt.Errorf("index: %w", err)
	}
	platform := platforms.Default()
	var best *ocispec.Descriptor
	for i := range index.Manifests {
		m := &index.Manifests[i]
		if m.Platform == nil || !images.IsManifestType(m.MediaType) || !platform.Match(*m.Platform) {
			continue
		}
		if best == nil || platform.Less(*m.Platform, *best.Platform) {
			best = m
		}
	}
	if best == nil {
		return "", fmt.Errorf("no image for %s", platforms.FormatAll(platforms.DefaultSpec()))
	}
	return best.Digest, nil
}

const registryHint = "--hosts-dir, --plain-http and --user say how to reach a registry, as with \"ctr images pull\""

// pull has containerd pull an image and unpack it with this snapshotter, as "ctr images pull --snapshotter" does.
func (c *cli) pull(ctx context.Context, conn grpc.ClientConnInterface, p *pullFlags, ref string) error {
	ctx = silent(ctx)
	reg, err := p.registry(ctx, ref, p.hostsDir)
	if err != nil {
		return fmt.Errorf("pull %s: %w", ref, err)
	}
	platform := platforms.DefaultSpec()
	dst := transferimage.NewStore(ref,
		transferimage.WithPlatforms(platform),
		transferimage.WithUnpack(platform, p.snapshotter),
		transferimage.WithAllMetadata)

	lm := leasesproxy.NewLeaseManager(leasesapi.NewLeasesClient(conn))
	lease, err := lm.Create(ctx, leases.WithRandomID(), leases.WithExpiration(leaseLife))
	if err != nil {
		return fmt.Errorf("pull %s: %w", ref, err)
	}
	defer func() { _ = lm.Delete(context.WithoutCancel(ctx), lease) }() // it would expire
	bar := c.newProgress("pulling " + ref + ", KiB")
	defer bar.stop()
	count := pullCount{blobs: make(map[string]transfer.Progress)}
	err = transferproxy.NewTransferrer(conn, streamproxy.NewStreamCreator(conn)).
		Transfer(leases.WithLease(ctx, lease.ID), reg, dst, transfer.WithProgress(func(p transfer.Progress) { bar.update(count.add(p)) }))
	switch {
	case err == nil:
		return nil
	case errdefs.IsNotImplemented(err):
		return withHint(fmt.Errorf("pull %s: %w", ref, err), "containerd 2.0 and later pull by themselves; "+
			"before that, \"ctr images pull --snapshotter %s %s\" and \"ostree-snapshotter deploy\" do the same", p.snapshotter, ref)
	}
	return withHint(fmt.Errorf("pull %s: %w", ref, err), "%s", registryHint)
}

// pullCount adds up what containerd says of the blobs that it downloads.
type pullCount struct {
	mu    sync.Mutex
	blobs map[string]transfer.Progress
}

// add takes in one report, and returns how many KiB are here, and how many all known blobs have.
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
