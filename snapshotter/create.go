package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/composefsmount"
)

// Prepare creates an active snapshot.
//
// Read-only mounts mean that the layer exists and is not to be applied; see [WithStaging]. With [WithSharedNamespaces]
// and the label containerd.io/snapshot.ref, the error is errdefs.ErrAlreadyExists if a committed snapshot with this
// label and this parent exists, under any name: containerd then uses that one, also from another namespace.
func (s *Snapshotter) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return s.create(ctx, snapshots.KindActive, key, parent, opts)
}

// View creates a read-only snapshot.
func (s *Snapshotter) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return s.create(ctx, snapshots.KindView, key, parent, opts)
}

func (s *Snapshotter) create(ctx context.Context, kind snapshots.Kind, key, parent string, opts []snapshots.Opt) (_ []mount.Mount, err error) {
	if err := validKey(key); err != nil {
		return nil, fmt.Errorf("create snapshot: %w", err)
	}
	asked, err := applyOpts(opts)
	if err != nil {
		return nil, err
	}
	labels := publicLabels(asked.Labels)
	ref := labels[snapshots.LabelSnapshotRef]
	if s.opts.shared && kind == snapshots.KindActive && s.refs.has(ref, parent) {
		return nil, fmt.Errorf("snapshot %q on %q: %w", ref, parent, errdefs.ErrAlreadyExists)
	}
	ids, err := mappingOf(labels)
	if err != nil {
		return nil, fmt.Errorf("create snapshot %q: %w", key, err)
	}
	below, err := s.chainOf(ctx, parent)
	if err != nil {
		return nil, err
	}
	staged, err := s.stage(ctx, kind, key, labels)
	if err != nil {
		return nil, err
	}
	if staged != nil {
		// The file layer keeps the layer alive once the directory is in place.
		defer func() { err = errors.Join(err, staged.Release()) }()
	}
	dir := newDirectory{kind: kind, parent: len(below) > 0, staged: staged}
	if dir.uid, dir.gid, err = s.rootOwner(ctx, below, ids); err != nil {
		return nil, err
	}
	id, err := s.insert(ctx, dir, below, kind, key, parent, append(opts, onlyLabels(labels)))
	if err != nil {
		return nil, err
	}
	if kind == snapshots.KindActive && isUnpackKey(key) {
		s.prebuilder.cancelPrebuild(parent)
	}
	// The row exists by now and keeps the layers below.
	mounts, err := s.mount(ctx, mountRequest{
		id: id, key: key, kind: kind, parent: below, ids: ids, created: true, dir: dir.directory(id),
	})
	if err != nil {
		return nil, errors.Join(err, s.Remove(context.WithoutCancel(ctx), key))
	}
	return mounts, nil
}

// validKey refuses keys that metadata.db cannot store.
func validKey(key string) error {
	if key == "" || len(key) > bolt.MaxKeySize {
		return fmt.Errorf("key of %d bytes, want 1 to %d: %w", len(key), bolt.MaxKeySize, errdefs.ErrInvalidArgument)
	}
	return nil
}

// rootOwner returns the owner for the upper directory of a snapshot, which becomes the owner of the root of the
// container's file system: the owner of the parent's root, mapped to the host.
func (s *Snapshotter) rootOwner(ctx context.Context, below []content, ids composefsmount.Mapping) (uid, gid uint32, err error) {
	if len(below) > 0 {
		if uid, gid, err = s.layers.RootOwner(ctx, below[0].layer); err != nil {
			return 0, 0, lost(below[0], err)
		}
	}
	if ids.IsZero() {
		return uid, gid, nil
	}
	if uid, gid, err = ids.Host(uid, gid); err != nil {
		return 0, 0, fmt.Errorf("map owner of the parent's root, which containerd has mapped already if its configuration "+
			"lacks the capability remap-ids: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	return uid, gid, nil
}

// insert creates the row and the directory of a new snapshot, both or neither.
func (s *Snapshotter) insert(ctx context.Context, dir newDirectory, below []content, kind snapshots.Kind, key, parent string, opts []snapshots.Opt) (id string, err error) {
	tmp, err := s.makeDirectory(dir)
	if err != nil {
		return "", fmt.Errorf("make directory of snapshot %q: %w", key, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.sweepNew(tmp))
		}
	}()
	renamed := false
	err = s.write(ctx, func(ctx context.Context) error {
		snap, err := storage.CreateSnapshot(ctx, kind, key, parent, opts...)
		if err != nil {
			return fmt.Errorf("create snapshot: %w", err)
		}
		if !slices.EqualFunc(snap.ParentIDs, below, func(id string, c content) bool { return id == c.id }) {
			return fmt.Errorf("create snapshot %q: parent %q was replaced meanwhile: %w", key, parent, errdefs.ErrUnavailable)
		}
		id = snap.ID
		if dir.empty() {
			return nil
		}
		if err := s.tmp.Rename(tmp, s.snaps, id, 0); err != nil {
			return err
		}
		renamed = true
		return nil
	})
	if err != nil && renamed {
		err = errors.Join(err, s.snaps.Rename(id, s.tmp, tmp, 0))
	}
	return id, err
}

func applyOpts(opts []snapshots.Opt) (snapshots.Info, error) {
	var info snapshots.Info
	for _, o := range opts {
		if err := o(&info); err != nil {
			return info, err
		}
	}
	return info, validLabels(info.Labels)
}

// onlyLabels replaces the labels that other options set; snapshots.WithLabels adds to them.
func onlyLabels(labels map[string]string) snapshots.Opt {
	return func(info *snapshots.Info) error {
		info.Labels = labels
		return nil
	}
}

// stage returns, held, the layer with which a new snapshot can be staged, nil if there is none. A label names the layer
// that the caller is about to fetch and apply.
func (s *Snapshotter) stage(ctx context.Context, kind snapshots.Kind, key string, labels map[string]string) (*layer.Held, error) {
	label := labels[snapshots.LabelSnapshotDiffID]
	if s.opts.staging == nil || kind != snapshots.KindActive || label == "" || !isUnpackKey(key) {
		return nil, nil
	}
	diffID, err := digest.Parse(label)
	if err != nil {
		return nil, nil //nolint:nilerr // containerd reports it when it applies the layer
	}
	held, err := s.layers.Acquire(ctx, diffID)
	if err != nil {
		if !errdefs.IsNotFound(err) {
			log.G(ctx).WithError(err).WithField("diffID", diffID).Warn("known layer cannot be used, fetching it")
		}
		return nil, nil
	}
	if !s.opts.staging(ctx) {
		return nil, held.Release()
	}
	log.G(ctx).WithFields(log.Fields{"layer": held.ID.String(), "diffID": diffID, "by": "diff"}).Info("layer known")
	return held, nil
}
