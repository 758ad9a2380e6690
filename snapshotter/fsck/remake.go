package fsck

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/blob"
)

// Remake rebuilds a layer from the first of blobs that can be read from a provider and unpacks to it. It replaces those
// objects of the layer that are in distrust. If every blob fails, the error has the reason for each.
func Remake(ctx context.Context, layers *layer.Store, from content.Provider, id objectstore.Checksum, blobs []digest.Digest, distrust map[objectstore.ObjectName]struct{}) error {
	if from == nil {
		return errors.New("no blobs")
	}
	if len(blobs) == 0 {
		return errors.New("its blob is not known")
	}
	var errs []error
	for _, d := range blobs {
		held, err := blob.Import(ctx, layers, from, ocispec.Descriptor{Digest: d}, distrust)
		if err != nil {
			errs = append(errs, fmt.Errorf("import blob %s: %w", d, err))
			continue
		}
		made := held.ID
		if err := held.Release(); err != nil {
			return err
		}
		if made == id {
			return nil
		}
		errs = append(errs, fmt.Errorf("blob %s is that of layer %s", d, made))
	}
	return errors.Join(errs...)
}
