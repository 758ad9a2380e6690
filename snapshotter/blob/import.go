package blob

import (
	"context"
	"errors"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
)

// Import unpacks a blob into a layer of the store, and returns the layer held. It opens the blob as [Open] does, and
// accepts the layer only if the blob has the descriptor's digest. Objects of the layer that are in distrust are
// replaced.
func Import(ctx context.Context, layers *layer.Store, provider content.Provider, desc ocispec.Descriptor, distrust map[objectstore.ObjectName]struct{}) (_ *layer.Held, err error) {
	start := time.Now()
	tar, err := Open(ctx, provider, desc)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, tar.Close()) }()
	options := layer.ImportOptions{
		// The tar was read to its end, so decompression has succeeded.
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
		"added": held.Added.Bytes, "compression": tar.stream.format, "duration": time.Since(start),
	}).Info("layer imported")
	return held, nil
}
