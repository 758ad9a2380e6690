package plugin

import (
	"context"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/blob"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/fsck"
)

// Recover repairs layers after a crash or a power failure, and logs the damage. It imports damaged layers again from
// their blobs: from the file that the layer was first read from, or from source, which may be nil. After a clean stop
// it does nothing.
func (s *Store) Recover(ctx context.Context, source content.Provider, d *blob.Decompressor) error {
	start := time.Now()
	r, err := s.Layers.Recover(ctx, func(ctx context.Context, lost layer.LostLayer) error {
		blobs := fsck.Blobs{Provider: blobSource(lost, source), Decompressor: d}
		return blobs.Remake(ctx, s.Layers, lost.ID, []digest.Digest{lost.Blob}, nil)
	})
	if err != nil || r.Entries == 0 {
		return err
	}
	logger := log.G(ctx).WithFields(log.Fields{
		"entries": r.Entries, "objects": r.Objects, "damaged": len(r.Damaged), "checkouts": r.Checkouts,
		"remade": len(r.Remade), "lost": len(r.Lost), "duration": time.Since(start),
	})
	if len(r.Damaged) > 0 || len(r.Lost) > 0 || len(r.Remade) > 0 {
		logger.Warn("store was damaged when it was last stopped")
	} else {
		logger.Info("store was not stopped cleanly, nothing is damaged")
	}
	for _, name := range r.Damaged {
		log.G(ctx).WithField("object", name.String()).Warn("damaged object removed")
	}
	for _, id := range r.Remade {
		log.G(ctx).WithField("layer", id.String()).Info("layer was damaged and is rebuilt")
	}
	for _, l := range r.Lost {
		log.G(ctx).WithError(l.Cause).WithField("layer", l.ID.String()).WithField("blob", l.Blob).Error("layer is lost")
	}
	return nil
}

// blobSource returns the places to look for the blob of a lost layer.
func blobSource(lost layer.LostLayer, source content.Provider) content.Provider {
	var sources blob.First
	if lost.BlobFile != "" {
		sources = append(sources, blob.File(lost.BlobFile))
	}
	if source != nil {
		sources = append(sources, source)
	}
	return sources
}
