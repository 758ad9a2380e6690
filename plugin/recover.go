package plugin

import (
	"context"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/names"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/blob"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/fsck"
)

// Recover repairs layers after a crash or a power failure, and logs the damage. It imports damaged layers again from
// their blobs: from the file that the layer was first read from, or from source, which may be nil. After a clean stop
// it only syncs the store.
func (s *Store) Recover(ctx context.Context, source content.Provider) error {
	start := time.Now()
	r, err := s.Layers.Recover(ctx, func(ctx context.Context, lost layer.LostLayer) error {
		return fsck.Remake(ctx, s.Layers, blobSource(lost, source), lost.ID, []digest.Digest{lost.Blob}, nil)
	})
	if err != nil || r.Entries == 0 {
		return err
	}
	logRecovery(log.G(ctx).WithField("duration", time.Since(start)), r)
	return nil
}

// logRecovery logs one line for the whole recovery and one for lost layers, each with counts and a few names.
func logRecovery(logger *log.Entry, r *layer.Recovery) {
	summary := logger.WithFields(log.Fields{
		"entries": r.Entries, "objects": r.Objects, "damaged": len(r.Damaged), "checkouts": r.Checkouts, "rootfses": r.Rootfses,
		"remade": len(r.Remade), "lost": len(r.Lost),
	})
	if r.Left != nil {
		logger.WithError(r.Left).Warn("damaged files cannot be removed: the next start tries again")
	}
	if len(r.Damaged)+len(r.Lost)+len(r.Remade) == 0 {
		summary.Info("store was not stopped cleanly, nothing is damaged")
		return
	}
	if len(r.Damaged) > 0 {
		summary = summary.WithField("removed", names.Few(r.Damaged, objectstore.ObjectName.String))
	}
	if len(r.Remade) > 0 {
		summary = summary.WithField("rebuilt", names.Few(r.Remade, objectstore.Checksum.String))
	}
	summary.Warn("store was damaged when it was last stopped")
	if len(r.Lost) > 0 {
		layers := names.Few(r.Lost, func(l layer.LostLayer) string { return l.ID.String() })
		withoutBlob := 0
		for _, l := range r.Lost {
			if l.Blob == "" {
				withoutBlob++
			}
		}
		logger = logger.WithError(r.Lost[0].Cause).WithField("lost", len(r.Lost)).WithField("layers", layers)
		if withoutBlob > 0 {
			logger = logger.WithField("without_blob", withoutBlob)
		}
		logger.Error(`layers are lost: "ostree-snapshotter fsck" names the images, and with --repair looks for blobs of theirs; ` +
			`an image without blobs has to be removed, and built or loaded again`)
	}
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
