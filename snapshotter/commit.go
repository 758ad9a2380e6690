package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/panics"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
)

// Commit turns an active snapshot into a committed one called name. If a layer was applied to the snapshot, this takes
// one transaction. Files written through the mounts become a layer first; nothing may write there any more.
//
// snapshots.WithParent gives a parent to a snapshot without one. After an error the active snapshot is unchanged, and
// Commit may be called again.
func (s *Snapshotter) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	if err := s.commit(ctx, name, key, opts); err != nil {
		return fmt.Errorf("commit snapshot %q as %q: %w", key, name, err)
	}
	return nil
}

func (s *Snapshotter) commit(ctx context.Context, name, key string, opts []snapshots.Opt) (err error) {
	start := time.Now()
	if err := validKey(name); err != nil {
		return err
	}
	asked, err := applyOpts(opts)
	if err != nil {
		return err
	}
	id, below, err := s.canCommit(ctx, name, key, asked.Parent)
	if err != nil {
		return err
	}
	unlock, err := s.locks.Lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()

	if err := s.mounter.unmount(id); err != nil {
		return err
	}
	top, err := s.layerOf(ctx, id, below)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil && top.imported {
			s.garbage.Store(true)
		}
		err = errors.Join(err, top.release())
	}()
	checkout, added, err := s.mounter.checkout(ctx, &top.Layer, below)
	if err != nil {
		return lost(content{name: name, layer: top.ID}, err)
	}
	if s.opts.sync {
		if err := s.layers.Sync(ctx); err != nil {
			return err
		}
	}
	c := content{name: name, id: id, layer: top.ID, checkout: checkout, chainID: chainID(below, top.DiffID), blob: top.blob}
	usage := snapshots.Usage{Size: top.usage.Bytes + added.Bytes, Inodes: top.usage.Inodes + added.Inodes}
	labels := onlyLabels(committedLabels(name, asked.Labels, c.labels()))
	parent, err := s.commitRow(ctx, id, name, key, usage, append(opts, labels))
	if err != nil {
		return err
	}
	if s.garbage.Load() || s.rest.left() || s.shares.unsure.Load() {
		s.shares.stale.Store(true) // the layer may have objects that were nobody's
	}
	s.idle.Store(true) // the mounts below the active snapshot
	s.prebuilder.committed(name, parent, layerIDs(append([]content{c}, below...)))
	s.sweepCommitted(ctx, id, top.imported)
	log.G(ctx).WithFields(log.Fields{
		"snapshot": name, "layer": top.ID.String(), "added": usage.Size, "duration": time.Since(start),
	}).Debug("snapshot committed")
	return nil
}

// canCommit finds, before any work is done, what the transaction would refuse. It returns the ID of the active snapshot
// and the chain it will lie on.
func (s *Snapshotter) canCommit(ctx context.Context, name, key, asked string) (id string, below []content, err error) {
	err = s.read(ctx, func(ctx context.Context) error {
		var info snapshots.Info
		if id, info, _, err = storage.GetInfo(ctx, key); err != nil {
			return err
		}
		if info.Kind != snapshots.KindActive {
			return fmt.Errorf("not an active snapshot: %w", errdefs.ErrFailedPrecondition)
		}
		if _, _, _, err := storage.GetInfo(ctx, name); err == nil {
			return fmt.Errorf("snapshot %q: %w", name, errdefs.ErrAlreadyExists)
		}
		parent := info.Parent
		switch {
		case parent == "":
			parent = asked
		case asked != "" && asked != parent:
			return fmt.Errorf("parent is %q and cannot become %q: %w", parent, asked, errdefs.ErrInvalidArgument)
		}
		below, err = chainIn(ctx, parent)
		return err
	})
	return id, below, err
}

// commitRow turns the row of an active snapshot into that of a committed one, adds it to the indexes, and returns its
// parent.
func (s *Snapshotter) commitRow(ctx context.Context, id, name, key string, usage snapshots.Usage, opts []snapshots.Opt) (parent string, err error) {
	indexed := false
	err = s.write(ctx, func(ctx context.Context) error {
		if _, err := storage.CommitActive(ctx, key, name, usage, opts...); err != nil {
			return err
		}
		_, info, _, err := storage.GetInfo(ctx, name)
		if err != nil {
			return err
		}
		s.refs.put(info) // before it can be removed
		s.committed.put(id, info)
		indexed, parent = true, info.Parent
		return nil
	})
	if err != nil && indexed {
		s.refs.remove(name)
		s.committed.remove(id)
	}
	return parent, err
}

// topLayer is the layer with which a snapshot is committed.
type topLayer struct {
	layer.Layer
	blob     digest.Digest // that it was unpacked from; "" if unknown
	usage    layer.Usage   // that it added to the store
	imported bool          // the upper directory has content
	held     *layer.Held   // nil: the file layer keeps it
}

func (t *topLayer) release() error {
	if t.held == nil {
		return nil
	}
	return t.held.Release()
}

// layerOf returns the layer of an active snapshot: the applied one, one imported from its upper directory, or both
// merged.
func (s *Snapshotter) layerOf(ctx context.Context, id string, below []content) (_ *topLayer, err error) {
	d, err := s.readDirectory(id)
	if err != nil {
		return nil, err
	}
	if d.layer.IsZero() {
		return s.importUpper(ctx, id, below)
	}
	pristine, err := s.isPristine(id)
	if err != nil {
		return nil, err
	}
	if pristine {
		l, err := s.layers.Layer(ctx, d.layer)
		if err != nil {
			return nil, lost(content{layer: d.layer}, err)
		}
		return &topLayer{Layer: *l, blob: d.blob, usage: d.usage}, nil
	}
	upper, err := s.importUpper(ctx, id, append([]content{{layer: d.layer}}, below...))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, upper.release()) }()
	held, err := s.layers.Merge(ctx, d.layer, upper.ID, id)
	if err != nil {
		return nil, err
	}
	return &topLayer{
		Layer: held.Layer,
		usage: layer.Usage{
			Bytes:  d.usage.Bytes + upper.usage.Bytes + held.Added.Bytes,
			Inodes: d.usage.Inodes + upper.usage.Inodes + held.Added.Inodes,
		},
		imported: true,
		held:     held,
	}, nil
}

// importUpper imports the upper directory of an active snapshot, which lies over a chain, topmost first, as a layer.
func (s *Snapshotter) importUpper(ctx context.Context, id string, chain []content) (_ *topLayer, err error) {
	// The new objects are garbage if the layer is merged into another one. If it turns out to be unusable they are so
	// from then on: a prune that ran before has found nothing.
	s.garbage.Store(true)
	defer func() {
		if err != nil {
			s.garbage.Store(true)
		}
	}()
	dir, err := s.snaps.OpenDir(path.Join(id, upperDir))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	merged, err := s.mounter.openMerged(ctx, dir, chain)
	if err != nil {
		return nil, err
	}
	if merged != nil {
		defer func() { err = errors.Join(err, merged.Close()) }()
	}
	held, err := s.layers.ImportDir(ctx, dir, merged, id)
	if err != nil {
		return nil, err
	}
	return &topLayer{Layer: held.Layer, usage: held.Added, imported: true, held: held}, nil
}

// sweepCommitted removes the directory of a snapshot that was just committed. Removing one with content takes a while;
// Commit does not wait for it, since it runs inside containerd's own transaction.
func (s *Snapshotter) sweepCommitted(ctx context.Context, id string, full bool) {
	log := log.G(ctx).WithField("directory", path.Join(SnapshotsDir, id))
	tmp := oldPrefix + id
	if err := s.snaps.Rename(id, s.tmp, tmp, 0); err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			log.WithError(err).Warn("directory of committed snapshot stays until cleanup")
		}
		return
	}
	remove := func() {
		if err := panics.Call(func() error { return s.tmp.RemoveAll(tmp) }); err != nil {
			log.WithError(err).Warn("directory of committed snapshot stays until cleanup")
		}
	}
	if !full {
		remove()
		return
	}
	s.work.Go(remove)
}

// LostLayerError reports that a layer of a snapshot is missing from the store, or damaged. It is an
// errdefs.ErrDataLoss.
type LostLayerError struct {
	Snapshot string // name; "" for an active one
	Layer    objectstore.Checksum
	Blob     digest.Digest // that the layer was unpacked from; "" if none is known
	Cause    error
}

// Advice for a lost layer. A known blob may still be in containerd's content store, and its image came from somewhere. A
// layer that a builder made from a directory has no blob, unless its image was exported since; if it was not, there is
// nothing to pull either.
const (
	lostRemedy      = `run "ostree-snapshotter fsck --repair", or remove the image and pull or load it again`
	lostWithoutBlob = `no blob of it is known: unless "ostree-snapshotter fsck --repair" finds one by the image's ` +
		`manifest, remove the image and build or load it again, or pull it if a registry has it`
)

// Error returns a text that names the layer and the remedy.
func (e *LostLayerError) Error() string {
	remedy := lostRemedy
	if e.Blob == "" {
		remedy = lostWithoutBlob
	}
	text := fmt.Sprintf("layer %s is lost: %v; %s", e.Layer, e.Cause, remedy)
	if e.Snapshot == "" {
		return text
	}
	return fmt.Sprintf("snapshot %q: %s", e.Snapshot, text)
}

// DataLoss marks the error for errdefs. The cause is not unwrapped: containerd would take its "not found" for that of
// the snapshot.
func (*LostLayerError) DataLoss() {}

// lost turns an error of the layer store about a required layer into a LostLayerError.
func lost(c content, err error) error {
	if errdefs.IsNotFound(err) || errors.Is(err, objectstore.ErrCorrupt) {
		return &LostLayerError{Snapshot: c.name, Layer: c.layer, Blob: c.blob, Cause: err}
	}
	return err
}
