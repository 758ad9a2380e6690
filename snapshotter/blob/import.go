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

// Import unpacks the blob that desc describes, opened as [Open] does, into a layer of the store and returns it held. The
// layer is accepted only if the blob has the descriptor's digest. Objects in distrust are replaced where the layer has
// them.
func Import(ctx context.Context, layers *layer.Store, provider content.Provider, d *Decompressor, desc ocispec.Descriptor, distrust map[objectstore.ObjectName]struct{}) (_ *layer.Held, err error) {
	start := time.Now()
	tar, err := Open(ctx, provider, d, desc)
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
