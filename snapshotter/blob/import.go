package blob

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
)

// Import unpacks a blob of source into a layer of the store and returns it held. What the blob is compressed with is
// found out. Objects in distrust are replaced where the layer has them.
func Import(ctx context.Context, layers *layer.Store, source Source, d *Decompressor, blob digest.Digest, distrust map[objectstore.ObjectName]struct{}) (*layer.Held, error) {
	if err := blob.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	held, err := ImportBlob(ctx, layers, source, d, ocispec.Descriptor{Digest: blob}, true, distrust)
	if err != nil {
		return nil, fmt.Errorf("import blob %s: %w", blob, err)
	}
	return held, nil
}

// ImportBlob unpacks the blob that desc describes, which may be compressed or not, like [Import].
func ImportBlob(ctx context.Context, layers *layer.Store, source Source, d *Decompressor, desc ocispec.Descriptor, compressed bool, distrust map[objectstore.ObjectName]struct{}) (_ *layer.Held, err error) {
	start := time.Now()
	tar, err := openTar(ctx, source, d, desc, compressed)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, tar.Close()) }()
	options := layer.ImportOptions{
		// The stream has been read to its end, so the decompressor is content with the blob.
		Accept:   func(diffID digest.Digest, _ int64) error { return tar.Accept(diffID) },
		Distrust: distrust,
	}
	if f, ok := tar.blob.(*FileBlob); ok {
		options.BlobFile = f.Name()
	}
	if desc.Digest.Algorithm() == digest.SHA256 {
		options.Blob = desc.Digest
	}
	held, err := layers.Import(ctx, tar, options)
	if err != nil {
		return nil, err
	}
	log.G(ctx).WithFields(log.Fields{
		"layer": held.ID.String(), "diffID": held.DiffID, "blob": desc.Digest, "entries": held.Entries, "bytes": held.TarSize,
		"added": held.Added.Bytes, "decompressor": tar.stream.name, "duration": time.Since(start),
	}).Info("layer imported")
	return held, nil
}
