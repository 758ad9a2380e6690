package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/composefsmount"
)

// A mounter provides the layers of a chain as directories over which a snapshot can be mounted. Chains are topmost
// first. Its methods may be called concurrently, except start and sweep, which run one at a time.
type mounter interface {
	// start is called once, before all other methods, with the snapshots that exist.
	start(ctx context.Context, existing []snapshot) error
	// mount returns the mounts of a snapshot whose row exists.
	mount(ctx context.Context, r mountRequest) ([]mount.Mount, error)
	// unmount releases the directories of an active snapshot that was removed or will be mounted over other layers.
	unmount(id string) error
	// checkoutAlone prepares a layer whose chain is not known yet, if that is possible, and returns the space this added.
	checkoutAlone(ctx context.Context, top *layer.Layer) (added layer.Usage, err error)
	// checkout prepares a layer for mounts over the chain below it. It returns the name of its checkout, "" if it needs
	// none, and the space this added to the store. If the layer cannot lie on this chain, it returns an error.
	checkout(ctx context.Context, top *layer.Layer, below []content) (name string, added layer.Usage, err error)
	// openMerged opens the merged view of an upper directory and the chain below it. It returns nil if the upper
	// directory is complete by itself.
	openMerged(ctx context.Context, upper *atfs.Dir, chain []content) (*atfs.Dir, error)
	// openLower opens the directories below an active snapshot, topmost first, if these are what lower mounts; its
	// upper directory is complete by itself then. Otherwise the error is an errdefs.ErrNotImplemented.
	openLower(ctx context.Context, id string, lower, mounts mount.Mount) ([]*atfs.Dir, error)
	// sweep unmounts and removes everything that no snapshot needs, including leftovers of the other mounter.
	sweep(ctx context.Context, locked lockedSnapshots) error
}

// A mountRequest describes an active snapshot or a view to be mounted.
type mountRequest struct {
	id, key string
	kind    snapshots.Kind
	parent  []content // chain of the parent
	ids     composefsmount.Mapping
	created bool      // by the call that requests the mounts
	dir     directory // of an active snapshot

	chain []content // mounted below: the parent's chain, under the layer that was applied
	stack stack     // the mounter adds lower directories
}

// isUnpack reports whether the snapshot was created for unpacking a layer, by a client that uses our differ, as the
// layers below show.
func (r *mountRequest) isUnpack() bool {
	return r.created && r.kind == snapshots.KindActive && isUnpackKey(r.key) && len(r.parent) > 0 && r.parent[0].chainID != ""
}

// errNotOverLower is the error of openLower for mounts that do not lie over lower.
var errNotOverLower = fmt.Errorf("mounts are not a snapshot and what is below it: %w", errdefs.ErrNotImplemented)

// lockedSnapshots calls f with every snapshot while none is created, committed or removed.
type lockedSnapshots func(ctx context.Context, f func(all []snapshot) error) error

// mappingOf returns the user namespace that a snapshot's labels request.
func mappingOf(labels map[string]string) (composefsmount.Mapping, error) {
	m := composefsmount.Mapping{UID: labels[snapshots.LabelSnapshotUIDMapping], GID: labels[snapshots.LabelSnapshotGIDMapping]}
	if m.IsZero() {
		return m, nil
	}
	if _, _, err := m.Host(0, 0); err != nil {
		return m, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	return m, nil
}

// A mountTree is the part of a root in which snapshots are mounted.
type mountTree struct {
	root, snaps *atfs.Dir // snaps is SnapshotsDir
	path        string    // of root, absolute and without symbolic links
	layers      *layer.Store
	changed     func() // called when checkouts were made or discarded that no commit accounts for
}

// abs returns the absolute path of a name below the root.
func (t *mountTree) abs(name string) string { return filepath.Join(t.path, name) }

// unmount unmounts a directory below the root and removes it. A removal and a sweep may do so at the same time.
func (t *mountTree) unmount(name string) error {
	if err := atfs.IgnoreNotExist(composefsmount.Unmount(t.abs(name))); err != nil {
		return err
	}
	return t.root.RemoveAll(name)
}

// names returns the names in a directory below the root, none if it does not exist.
func (t *mountTree) names(dir string) ([]string, error) {
	d, err := t.root.OpenDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	names, err := d.ReadNames()
	return names, errors.Join(err, d.Close())
}
