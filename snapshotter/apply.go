package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
)

const lowerOption = "lowerdir="

// Locate finds the owner of mounts that this snapshotter returned: the ID of an active snapshot or, if the snapshot is
// staged, its layer. Other mounts are an errdefs.ErrNotImplemented.
func (s *Snapshotter) Locate(_ context.Context, mounts []mount.Mount) (id string, staged objectstore.Checksum, err error) {
	notOurs := fmt.Errorf("mounts are not of a snapshot below %s: %w", s.path, errdefs.ErrNotImplemented)
	if len(mounts) != 1 {
		return "", staged, notOurs
	}
	m := mounts[0]
	source := m.Source
	if m.Type == "overlay" {
		if source = mountOption(m, "upperdir="); source == "" {
			source, _, _ = strings.Cut(mountOption(m, lowerOption), ":")
		}
	} else if m.Type != "bind" {
		return "", staged, notOurs
	}
	name, err := filepath.Rel(s.path, source)
	if err != nil || path.Clean(source) != source {
		return "", staged, notOurs
	}
	parts := strings.Split(name, "/")
	if len(parts) == 3 && parts[0] == SnapshotsDir && parts[2] == upperDir {
		if _, err := strconv.ParseUint(parts[1], 10, 64); err == nil {
			return s.locateUpper(parts[1], notOurs)
		}
	}
	if len(parts) == 2 && parts[0] == MountsDir && m.Type == "bind" {
		return s.locateUpper(parts[1], notOurs)
	}
	if m.ReadOnly() && len(parts) == 3 && parts[0] == layer.LayersDir {
		staged, err := s.layers.CheckoutOwner(parts[1])
		return "", staged, err
	}
	return "", staged, notOurs
}

// locateUpper is Locate for mounts of a snapshot's upper directory.
func (s *Snapshotter) locateUpper(id string, notOurs error) (string, objectstore.Checksum, error) {
	d, err := s.readDirectory(id)
	switch {
	case errdefs.IsDataLoss(err): // a view, or a snapshot that was removed meanwhile
		return "", objectstore.Checksum{}, notOurs
	case err != nil:
		return "", objectstore.Checksum{}, err
	case d.staged:
		return "", d.layer, nil
	}
	return id, objectstore.Checksum{}, nil
}

func mountOption(m mount.Mount, prefix string) string {
	i := slices.IndexFunc(m.Options, func(o string) bool { return strings.HasPrefix(o, prefix) })
	if i < 0 {
		return ""
	}
	return m.Options[i][len(prefix):]
}

// Namespace returns the namespace that an active snapshot, which [Snapshotter.Locate] found, was created in; "" if its
// key has none, because no metadata service of containerd created it.
func (s *Snapshotter) Namespace(ctx context.Context, id string) (namespace string, err error) {
	err = s.read(ctx, func(ctx context.Context) error {
		sn, err := rowIn(ctx, id)
		namespace = namespaceOf(sn.Name)
		return err
	})
	return namespace, err
}

// AddLayer applies a layer to an active snapshot that [Snapshotter.Locate] found, over any layer applied before. Once
// it returns, the snapshot keeps the layer alive and the caller may release it. With sync, or WithSync, everything is
// on the disk by then.
//
// A snapshot that was written to through its mounts is an errdefs.ErrNotImplemented: another differ can apply the layer
// there, file by file.
func (s *Snapshotter) AddLayer(ctx context.Context, id string, held *layer.Held, sync bool) error {
	if err := s.addLayer(ctx, id, held); err != nil {
		return fmt.Errorf("add layer %s to snapshot %s: %w", held.ID, id, err)
	}
	if !sync && !s.opts.sync {
		return nil
	}
	return s.layers.Sync(ctx)
}

func (s *Snapshotter) addLayer(ctx context.Context, id string, held *layer.Held) (err error) {
	unlock, err := s.locks.Lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	d, err := s.readDirectory(id)
	if err != nil {
		return err
	}
	pristine, err := s.isPristine(id)
	switch {
	case err != nil:
		return err
	case !pristine && !d.layer.IsZero():
		return fmt.Errorf("snapshot has a layer and was written to since: %w", errdefs.ErrFailedPrecondition)
	case !pristine:
		return fmt.Errorf("snapshot was written to: %w", errdefs.ErrNotImplemented)
	}
	// The snapshot is mounted again later, over this layer too.
	if err := s.mounter.unmount(id); err != nil {
		return err
	}
	top := held
	usage := layer.Usage{Bytes: d.usage.Bytes + held.Added.Bytes, Inodes: d.usage.Inodes + held.Added.Inodes}
	if !d.layer.IsZero() && d.layer != held.ID {
		if top, err = s.layers.Merge(ctx, d.layer, held.ID, id); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, top.Release()) }()
		usage.Bytes += top.Added.Bytes
		usage.Inodes += top.Added.Inodes
		s.garbage.Store(true)
	}
	if err := s.writeLayer(id, top, usage); err != nil {
		return err
	}
	start := time.Now()
	added, err := s.mounter.checkoutAlone(ctx, &top.Layer) // if not, Commit knows the layers below
	if err != nil {
		return err
	}
	if added == (layer.Usage{}) {
		return nil
	}
	log.G(ctx).WithFields(log.Fields{
		"layer": top.ID.String(), "added": added.Bytes, "inodes": added.Inodes, "duration": time.Since(start),
	}).Info("layer checked out")
	usage.Bytes += added.Bytes
	usage.Inodes += added.Inodes
	return s.writeLayer(id, top, usage)
}

// MarkGarbage records that the store has something that no snapshot may need: the next Cleanup prunes.
func (s *Snapshotter) MarkGarbage() { s.garbage.Store(true) }

// OpenUpper returns the upper directory of the active snapshot that mounts belong to, and the directories below it,
// topmost first, provided that lower mounts exactly the latter. The caller closes them. Otherwise, and for mounts of
// another snapshotter, the error is an errdefs.ErrNotImplemented.
func (s *Snapshotter) OpenUpper(ctx context.Context, lower, mounts []mount.Mount) (upper *atfs.Dir, lowers []*atfs.Dir, err error) {
	id, _, err := s.Locate(ctx, mounts)
	if err != nil {
		return nil, nil, err
	}
	if id == "" || len(lower) != 1 {
		return nil, nil, errNotOverLower
	}
	if lowers, err = s.mounter.openLower(ctx, id, lower[0], mounts[0]); err != nil {
		return nil, nil, err
	}
	if upper, err = s.snaps.OpenDir(path.Join(id, upperDir)); err != nil {
		return nil, nil, errors.Join(err, atfs.CloseAll(lowers))
	}
	return upper, lowers, nil
}
