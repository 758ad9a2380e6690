package differ

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/containerd/v2/pkg/epoch"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A Target is the content store to which Compare writes blobs, and the leases that keep them there.
type Target struct {
	Store  content.Store
	Leases leases.Manager
}

// leaseTime is how long containerd keeps an unreferenced blob. Clients that commit a container refer to it at once.
const leaseTime = 10 * time.Minute

// Compare writes a blob with the changes that an active snapshot makes to lower, and returns its descriptor. It reads
// the snapshot's upper directory and not the whole tree, so its duration depends on the changes alone. The blob is
// identical to that of containerd's walking differ. Mounts other than those of an active snapshot and its parent are an
// errdefs.ErrNotImplemented: the walking differ can compare them. So is a call without a namespace for a snapshot without
// one.
//
// containerd does not pass the caller's lease to a proxy. Without a lease the blob is kept for ten minutes.
func (d *Differ) Compare(ctx context.Context, lower, upper []mount.Mount, opts ...diff.Opt) (ocispec.Descriptor, error) {
	var config diff.Config
	for _, o := range opts {
		if err := o(&config); err != nil {
			return ocispec.Descriptor{}, fmt.Errorf("compare: %w", err)
		}
	}
	if config.SourceDateEpoch == nil {
		config.SourceDateEpoch = epoch.FromContext(ctx)
	}
	start := time.Now()
	desc, err := d.compare(ctx, lower, upper, config)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("compare: %w", err)
	}
	log.G(ctx).WithFields(log.Fields{"blob": desc.Digest, "bytes": desc.Size, "duration": time.Since(start)}).Info("changes written")
	return desc, nil
}

func (d *Differ) compare(ctx context.Context, lower, upper []mount.Mount, config diff.Config) (desc ocispec.Descriptor, err error) {
	compress, err := compressor(&config)
	if err != nil {
		return desc, err
	}
	dir, below, err := d.snapshots.OpenUpper(ctx, lower, upper)
	if err != nil {
		return desc, err
	}
	defer func() { err = errors.Join(err, dir.Close(), lowers(below).close()) }()
	id, _, err := d.snapshots.Locate(ctx, upper)
	if err != nil {
		return desc, err
	}
	ctx, ns, err := d.within(ctx, id)
	if err != nil {
		return desc, err
	}
	if ns == "" {
		return desc, fmt.Errorf("no namespace to write the blob to: %w", errdefs.ErrNotImplemented)
	}
	if ctx, err = d.lease(ctx); err != nil {
		return desc, err
	}
	return d.write(ctx, config, compress, func(w io.Writer) error {
		return writeChanges(ctx, w, below, dir, config.SourceDateEpoch)
	})
}

// compressor returns the compression of a blob with the requested media type.
func compressor(config *diff.Config) (compression.Compression, error) {
	if config.Compressor != nil {
		return 0, fmt.Errorf("compressor of the caller: %w", errdefs.ErrNotImplemented)
	}
	switch config.MediaType {
	case "":
		config.MediaType = ocispec.MediaTypeImageLayerGzip
		return compression.Gzip, nil
	case ocispec.MediaTypeImageLayer:
		return compression.Uncompressed, nil
	case ocispec.MediaTypeImageLayerGzip:
		return compression.Gzip, nil
	case ocispec.MediaTypeImageLayerZstd:
		return compression.Zstd, nil
	}
	return 0, fmt.Errorf("media type %q: %w", config.MediaType, errdefs.ErrNotImplemented)
}

// lease creates a lease that expires, unless the context has one.
func (d *Differ) lease(ctx context.Context) (context.Context, error) {
	if _, ok := leases.FromContext(ctx); ok {
		return ctx, nil
	}
	l, err := d.target.Leases.Create(ctx, leases.WithRandomID(), leases.WithExpiration(leaseTime))
	if err != nil {
		return nil, fmt.Errorf("make lease: %w", err)
	}
	return leases.WithLease(ctx, l.ID), nil
}

// write compresses the output of produce, and writes it as a blob to containerd's content store.
func (d *Differ) write(ctx context.Context, config diff.Config, c compression.Compression, produce func(io.Writer) error) (desc ocispec.Descriptor, err error) {
	ref := config.Reference
	if ref == "" {
		ref = "compare-" + rand.Text()
	}
	store := d.target.Store
	cw, err := store.Writer(ctx, content.WithRef(ref), content.WithDescriptor(ocispec.Descriptor{MediaType: config.MediaType}))
	if err != nil {
		return desc, fmt.Errorf("write blob: %w", err)
	}
	defer func() {
		err = errors.Join(err, cw.Close())
		if err != nil && config.Reference == "" {
			if aerr := store.Abort(context.WithoutCancel(ctx), ref); aerr != nil && !errdefs.IsNotFound(aerr) {
				log.G(ctx).WithError(aerr).WithField("ref", ref).Warn("unfinished blob was not removed")
			}
		}
	}()
	if config.Reference != "" {
		if err := cw.Truncate(0); err != nil {
			return desc, fmt.Errorf("write blob: %w", err)
		}
	}
	diffID := digest.SHA256.Digester()
	compressed, err := compression.CompressStream(cw, c)
	if err != nil {
		return desc, err
	}
	if err := errors.Join(produce(io.MultiWriter(compressed, diffID.Hash())), compressed.Close()); err != nil {
		return desc, err
	}
	labeled := map[string]string{labels.LabelUncompressed: diffID.Digest().String()}
	if c == compression.Uncompressed {
		labeled = make(map[string]string)
	}
	for k, v := range config.Labels {
		labeled[k] = v
	}
	blob := cw.Digest()
	if err := cw.Commit(ctx, 0, blob, content.WithLabels(labeled)); err != nil && !errdefs.IsAlreadyExists(err) {
		return desc, fmt.Errorf("write blob: %w", err)
	}
	info, err := store.Info(ctx, blob)
	if err != nil {
		return desc, err
	}
	if v, ok := labeled[labels.LabelUncompressed]; ok && info.Labels[labels.LabelUncompressed] == "" {
		// The blob existed before, without the label.
		info.Labels = map[string]string{labels.LabelUncompressed: v}
		if _, err := store.Update(ctx, info, "labels."+labels.LabelUncompressed); err != nil {
			return desc, fmt.Errorf("label blob: %w", err)
		}
	}
	return ocispec.Descriptor{MediaType: config.MediaType, Digest: blob, Size: info.Size}, nil
}
