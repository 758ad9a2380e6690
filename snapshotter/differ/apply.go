package differ

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/blob"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/internal/keylock"
)

// Snapshots is the part of the snapshotter that the differ needs.
type Snapshots interface {
	// Locate returns the active snapshot that mounts belong to. If the snapshot was created with its layer, Locate
	// returns that layer instead. Mounts of another snapshotter are an errdefs.ErrNotImplemented.
	Locate(ctx context.Context, mounts []mount.Mount) (id string, staged objectstore.Checksum, err error)
	// AddLayer puts a layer on top of an active snapshot. The layer may be released when AddLayer returns. With sync,
	// everything has reached the disk by then.
	AddLayer(ctx context.Context, id string, held *layer.Held, sync bool) error
	// Namespace returns the namespace of an active snapshot; "" if it has none.
	Namespace(ctx context.Context, id string) (string, error)
	// OpenUpper returns the upper directory of the active snapshot that mounts belong to, and the directories below it,
	// topmost first. The upper directory must be the only difference between the snapshot and lower. Otherwise the error
	// is an errdefs.ErrNotImplemented.
	OpenUpper(ctx context.Context, lower, mounts []mount.Mount) (upper *atfs.Dir, lowers []*atfs.Dir, err error)
	// MarkGarbage is called after objects were stored that nothing will need.
	MarkGarbage()
}

// Content is containerd's content store.
type Content interface {
	content.Provider
	// Info fails with an errdefs.ErrNotFound unless the blob exists in the namespace of the context.
	content.InfoProvider
}

// Differ implements containerd's diff.Applier and diff.Comparer. Its methods may be called by many goroutines at once.
type Differ struct {
	snapshots Snapshots
	layers    *layer.Store
	content   Content
	target    Target
	blobs     keylock.Map // by digest; held while a blob is unpacked
}

var (
	_ diff.Applier  = (*Differ)(nil)
	_ diff.Comparer = (*Differ)(nil)
)

// New returns a differ that unpacks blobs of source into layers, and writes the blobs of Compare to target.
func New(snapshots Snapshots, layers *layer.Store, source Content, target Target) *Differ {
	return &Differ{snapshots: snapshots, layers: layers, content: source, target: target}
}

// Apply applies the layer that desc describes to the active snapshot that mounts belong to, and returns a descriptor of
// the uncompressed tar. Concurrent calls for one blob unpack it once, and a known blob is not read at all.
//
// The snapshot's namespace must have the blob, known or not: the error is an errdefs.ErrNotFound otherwise. Whoever can
// only name a layer of another namespace does not get it. A layer of a type that cannot be unpacked is an
// errdefs.ErrInvalidArgument, or an errdefs.ErrNotImplemented if the caller sends payloads for stream processors.
func (d *Differ) Apply(ctx context.Context, desc ocispec.Descriptor, mounts []mount.Mount, opts ...diff.ApplyOpt) (ocispec.Descriptor, error) {
	var config diff.ApplyConfig
	for _, o := range opts {
		if err := o(ctx, desc, &config); err != nil {
			return ocispec.Descriptor{}, fmt.Errorf("apply layer %s: %w", desc.Digest, err)
		}
	}
	applied, err := d.apply(ctx, desc, mounts, config)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("apply layer %s: %w", desc.Digest, err)
	}
	return applied, nil
}

func (d *Differ) apply(ctx context.Context, desc ocispec.Descriptor, mounts []mount.Mount, config diff.ApplyConfig) (_ ocispec.Descriptor, err error) {
	id, staged, err := d.snapshots.Locate(ctx, mounts)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if err := desc.Digest.Validate(); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	if id == "" {
		l, err := d.layers.Layer(ctx, staged)
		if err != nil {
			return ocispec.Descriptor{}, err
		}
		return tarDescriptor(l)
	}
	if err := checkType(desc.MediaType, config); err != nil {
		return ocispec.Descriptor{}, err
	}
	if ctx, err = d.checkOwned(ctx, id, desc.Digest); err != nil {
		return ocispec.Descriptor{}, err
	}
	held, err := d.obtain(ctx, desc)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer func() { err = errors.Join(err, held.Release()) }()
	if err := d.snapshots.AddLayer(ctx, id, held, config.SyncFs); err != nil {
		d.snapshots.MarkGarbage()
		return ocispec.Descriptor{}, err
	}
	return tarDescriptor(&held.Layer)
}

// checkOwned checks that the namespace of a snapshot has a blob, and returns a context for reading it there. The store
// finds blobs and layers of every namespace, so this is all that keeps them apart.
func (d *Differ) checkOwned(ctx context.Context, id string, blob digest.Digest) (context.Context, error) {
	ctx, ns, err := d.within(ctx, id)
	if err != nil || ns == "" { // no metadata service, and so no namespaces
		return ctx, err
	}
	if _, err := d.content.Info(ctx, blob); err != nil {
		return nil, fmt.Errorf("find blob in namespace %q: %w", ns, err)
	}
	return ctx, nil
}

// within returns a context for calls to containerd in the namespace of a snapshot, and the namespace; "" if there is
// none.
func (d *Differ) within(ctx context.Context, id string) (_ context.Context, namespace string, err error) {
	namespace, ok := namespaces.Namespace(ctx)
	if !ok { // not every build of containerd passes it on
		if namespace, err = d.snapshots.Namespace(ctx, id); err != nil || namespace == "" {
			return ctx, "", err
		}
	}
	return namespaces.WithNamespace(ctx, namespace), namespace, nil
}

// checkType checks the media type of a layer for one of our snapshots. An errdefs.ErrNotImplemented would make containerd
// try another differ; its transfer service has no other, and reports only that the transfer is not implemented. So the
// differ steps back only if the caller sends payloads, such as keys: they are for containerd's stream processors, which
// only the walking differ uses.
func checkType(mediaType string, config diff.ApplyConfig) error {
	err := blob.CheckType(mediaType)
	if err == nil || len(config.ProcessorPayloads) > 0 {
		return err
	}
	return fmt.Errorf("media type %q is of no layer that can be unpacked: %w", mediaType, errdefs.ErrInvalidArgument)
}

func tarDescriptor(l *layer.Layer) (ocispec.Descriptor, error) {
	if l.DiffID == "" {
		return ocispec.Descriptor{}, fmt.Errorf("layer %s was not made of a tar: %w", l.ID, errdefs.ErrFailedPrecondition)
	}
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Size: l.TarSize, Digest: l.DiffID}, nil
}

// obtain returns the layer of a blob, held. It unpacks the blob if the layer is not known.
func (d *Differ) obtain(ctx context.Context, desc ocispec.Descriptor) (*layer.Held, error) {
	if held, err := d.known(ctx, desc); held != nil || err != nil {
		return held, err
	}
	unlock, err := d.blobs.Lock(ctx, desc.Digest.String())
	if err != nil {
		return nil, err
	}
	defer unlock()
	if held, err := d.known(ctx, desc); held != nil || err != nil {
		return held, err // another call has unpacked it meanwhile
	}
	return d.unpack(ctx, desc)
}

// known returns the layer of a blob, held, or nil if the blob was not unpacked before.
func (d *Differ) known(ctx context.Context, desc ocispec.Descriptor) (*layer.Held, error) {
	if desc.Digest.Algorithm() != digest.SHA256 {
		return nil, nil
	}
	held, err := d.layers.AcquireBlob(ctx, desc.Digest)
	if errdefs.IsNotFound(err) && blob.IsTar(desc.MediaType) {
		held, err = d.layers.Acquire(ctx, desc.Digest)
	}
	switch {
	case errdefs.IsNotFound(err), errors.Is(err, objectstore.ErrCorrupt):
		return nil, nil
	case err != nil:
		return nil, err
	}
	log.G(ctx).WithFields(log.Fields{
		"layer": held.ID.String(), "diffID": held.DiffID, "blob": desc.Digest, "by": "blob",
	}).Info("layer known")
	return held, nil
}

// unpack imports the layer of a blob.
func (d *Differ) unpack(ctx context.Context, desc ocispec.Descriptor) (_ *layer.Held, err error) {
	defer func() {
		if err != nil {
			d.snapshots.MarkGarbage()
		}
	}()
	return blob.Import(ctx, d.layers, d.content, desc, nil)
}
