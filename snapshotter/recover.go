package snapshotter

import (
	"context"
	"errors"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/names"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
)

// recover reconciles metadata, directories and layers after a stop of any kind, and fills the indexes in memory.
func (s *Snapshotter) recover(ctx context.Context) error {
	for _, err := range []error{s.sweepUnfinished(), s.discardOrphans(ctx)} {
		switch {
		case errors.Is(err, objectstore.ErrNotRemoved): // no reason not to serve
			log.G(ctx).WithError(err).Warn("leftovers cannot be removed: the next start tries again")
		case err != nil:
			return err
		}
	}
	damaged, err := s.restoreRefs(ctx)
	if err != nil {
		return err
	}
	var existing []snapshot
	err = s.read(ctx, func(ctx context.Context) error {
		existing, err = allIn(ctx)
		return err
	})
	if err != nil {
		return err
	}
	var lost []*LostLayerError
	for _, sn := range existing {
		switch sn.Kind {
		case snapshots.KindCommitted:
			s.committed.put(sn.id, sn.Info)
			var l *LostLayerError
			if l, err = s.checkLayer(ctx, sn.Info, damaged); l != nil {
				lost = append(lost, l)
			}
		case snapshots.KindActive:
			err = s.checkDirectory(ctx, sn.id, sn.Info)
		default: // a view needs nothing of its own
		}
		if err != nil {
			return err
		}
	}
	logLost(ctx, lost)
	return s.mounter.start(ctx, existing)
}

// logLost logs one line about snapshots with lost layers, and one about those for which no blob is known.
func logLost(ctx context.Context, list []*LostLayerError) {
	for _, known := range []bool{true, false} {
		var some []*LostLayerError
		for _, l := range list {
			if known == (l.Blob != "") {
				some = append(some, l)
			}
		}
		if len(some) == 0 {
			continue
		}
		remedy := lostRemedy
		if !known {
			remedy = lostWithoutBlob
		}
		log.G(ctx).WithError(some[0].Cause).WithField("lost", len(some)).
			WithField("snapshots", names.Few(some, func(l *LostLayerError) string { return l.Snapshot })).
			WithField("layers", names.Few(some, func(l *LostLayerError) string { return l.Layer.String() })).
			Error("layers of snapshots are lost: " + remedy)
	}
}

// restoreRefs restores lost refs of the snapshots' layers, which keep them and find them. It returns the layers that
// lost more than that, each with its error. Unreadable refs are left to fsck and do not keep the store from being used.
func (s *Snapshotter) restoreRefs(ctx context.Context) (map[objectstore.Checksum]error, error) {
	r := layer.RestoredRefs{Damaged: make(map[objectstore.Checksum]error)}
	blobs, err := s.blobs(ctx)
	if err == nil {
		r, err = s.layers.RestoreRefs(ctx, blobs)
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err != nil {
		log.G(ctx).WithError(err).Error(`refs of layers cannot be restored: run "ostree-snapshotter fsck --repair"`)
	}
	if len(r.Removed) > 0 {
		log.G(ctx).WithError(r.Removed[0]).WithField("refs", len(r.Removed)).Warn("refs of layers were damaged and are removed")
	}
	if r.Refs > 0 {
		log.G(ctx).WithField("refs", r.Refs).Warn("refs of layers were lost and are restored")
	}
	return r.Damaged, nil
}

// blobs returns the layers that snapshots need, each with the blobs it is known to have been unpacked from. It skips
// snapshots that do not name their layer.
func (s *Snapshotter) blobs(ctx context.Context) (map[objectstore.Checksum][]digest.Digest, error) {
	blobs := make(map[objectstore.Checksum][]digest.Digest)
	err := s.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		if info.Kind != snapshots.KindCommitted {
			return nil
		}
		if c, err := contentOf("", info); err == nil {
			blobs[c.layer] = append(blobs[c.layer], c.blob)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	applied, _, err := appliedLayers(s.snaps)
	if err != nil {
		return nil, err
	}
	for id, sum := range applied {
		blob, err := s.readBlob(id, sum)
		if err != nil {
			return nil, err
		}
		blobs[sum] = append(blobs[sum], blob)
	}
	return blobs, nil
}

// checkLayer adds a committed snapshot to the index of chains. If its layer is lost it returns that instead: pulling the
// image again then restores the layer rather than finding this snapshot.
func (s *Snapshotter) checkLayer(
	ctx context.Context, info snapshots.Info, damaged map[objectstore.Checksum]error,
) (*LostLayerError, error) {
	c, err := contentOf("", info)
	if err != nil {
		log.G(ctx).WithError(err).Error("snapshot cannot be used: remove the image and pull it again")
		return nil, nil
	}
	cause, known := damaged[c.layer]
	if !known {
		ok, err := s.layers.Repo().Has(objectstore.TypeCommit, c.layer)
		if err != nil {
			return nil, err
		}
		if !ok {
			cause = layer.ErrNotExist
		}
		damaged[c.layer] = cause
	}
	if cause != nil {
		return &LostLayerError{Snapshot: info.Name, Layer: c.layer, Blob: c.blob, Cause: cause}, nil
	}
	s.refs.put(info)
	return nil, nil
}

// sweepUnfinished removes directories and copies of metadata.db that the last process did not finish.
func (s *Snapshotter) sweepUnfinished() error {
	return objectstore.NotRemoved(
		sweepNames(s.tmp, func(name string) bool { return strings.HasPrefix(name, newPrefix) }),
		sweepNames(s.root, func(name string) bool {
			return strings.HasPrefix(name, MetadataFile+".") && strings.Contains(name, ".tmp-")
		}))
}

func sweepNames(dir *atfs.Dir, match func(name string) bool) error {
	names, err := dir.ReadNames()
	for _, name := range names {
		if match(name) {
			err = errors.Join(err, dir.RemoveAll(name))
		}
	}
	return err
}

// checkDirectory logs a missing or damaged directory of an active snapshot. Mounts will report it too.
func (s *Snapshotter) checkDirectory(ctx context.Context, id string, info snapshots.Info) error {
	_, err := s.readDirectory(id)
	if errdefs.IsDataLoss(err) {
		log.G(ctx).WithError(err).WithField("snapshot", info.Name).Error("active snapshot cannot be used: remove the container")
		return nil
	}
	return err
}
