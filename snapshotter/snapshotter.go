package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/internal/keylock"
)

// Snapshotter implements containerd's snapshots.Snapshotter and snapshots.Cleaner. Its methods may be called
// concurrently, except Close. No other process may use the root meanwhile.
type Snapshotter struct {
	root   *atfs.Dir
	snaps  *atfs.Dir
	tmp    *atfs.Dir
	path   string // of root, absolute and without symbolic links; part of every mount
	ms     *storage.MetaStore
	layers *layer.Store
	opts   options

	mounter    mounter
	prebuilder *prebuilder // nil if mounter has nothing to build
	copies     *worker     // copies metadata.db
	refs       refIndex
	committed  layerIndex
	shares     shareIndex
	locks      keylock.Map   // by ID: changes to the directory of an active snapshot
	cleaning   chan struct{} // holds an element while a cleanup runs
	garbage    atomic.Bool   // there may be unneeded layers or objects, apart from rest
	rest       *rest         // nil without background removal
	idle       atomic.Bool   // there may be unneeded mounts, images or checkouts
	sweeping   sync.Mutex    // held while these are removed
	work       sync.WaitGroup
	close      func() error
}

var (
	_ snapshots.Snapshotter = (*Snapshotter)(nil)
	_ snapshots.Cleaner     = (*Snapshotter)(nil)
)

// New opens the snapshots below root, whose layers are in store, and repairs what a crash left. The snapshotter opens
// its own handle of root; store remains the caller's and must outlive the snapshotter.
//
// Snapshots whose layers are missing from the store are logged by name; using one returns a [LostLayerError]. If
// metadata.db is missing or damaged, its last copy replaces it; that, and everything else lost or rebuilt, is logged.
func New(ctx context.Context, root *atfs.Dir, store *layer.Store, opts ...Option) (_ *Snapshotter, err error) {
	s := &Snapshotter{layers: store, cleaning: make(chan struct{}, 1), committed: newLayerIndex()}
	s.shares.busy = make(chan struct{}, 1)
	s.shares.stale.Store(true) // what the last process found out is lost
	s.copies = newWorker(s.copyMetadata, copyAfterLast, copyAfterFirst)
	s.close = sync.OnceValue(s.closeAll)
	s.opts.overlay = overlayOptions(overlayParameters)
	for _, o := range opts {
		o(&s.opts)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("open snapshots: %w", err), s.Close())
		}
	}()
	if s.root, err = root.OpenDir("."); err != nil {
		return nil, err
	}
	if s.path, err = mountablePath(s.root.Path()); err != nil {
		return nil, err
	}
	for name, dir := range map[string]**atfs.Dir{SnapshotsDir: &s.snaps, layer.TmpDir: &s.tmp} {
		if err := s.root.MkdirAll(name, dirMode); err != nil {
			return nil, err
		}
		if *dir, err = s.root.OpenDir(name); err != nil {
			return nil, err
		}
	}
	if err := s.root.MkdirAll(EmptyDir, dirMode); err != nil {
		return nil, err
	}
	if err := s.openMounter(); err != nil {
		return nil, err
	}
	lost, err := s.restoreMetadata(ctx)
	if err != nil {
		return nil, err
	}
	if s.ms, err = openMetadata(filepath.Join(s.path, MetadataFile)); err != nil {
		return nil, err
	}
	if s.opts.background > 0 {
		s.rest = newRest(ctx, s.removeRest)
	}
	s.copies.failed = func(err error) { log.G(ctx).WithError(err).Error("metadata.db not copied, will retry") }
	if err := s.recover(ctx); err != nil {
		return nil, err
	}
	// A pull finds the layers whose rows were lost. Only the next removal marks them as garbage.
	s.garbage.Store(!lost)
	if ok, err := s.root.Exists(MetadataCopy); err != nil || ok {
		return s, err
	}
	s.copies.trigger()
	return s, nil
}

// openMounter chooses the way to mount snapshots. Leftovers of a daemon that used the other one count as idle.
func (s *Snapshotter) openMounter() error {
	tree := mountTree{root: s.root, snaps: s.snaps, path: s.path, layers: s.layers}
	tree.changed = func() { s.shares.stale.Store(true) }
	s.idle.Store(true)
	if s.opts.composefs == nil {
		s.mounter = newHardlinkMounter(tree, s.opts.mapped)
		return nil
	}
	m, err := newComposefsMounter(tree, *s.opts.composefs, s.parentOf)
	if err != nil {
		return err
	}
	s.mounter = m
	s.prebuilder = newPrebuilder(func(ctx context.Context, name string, chain []objectstore.Checksum) error {
		return s.prebuild(ctx, name, chain, m.build)
	})
	return nil
}

// mountablePath returns an absolute path without symbolic links. It refuses characters that have a meaning in mount
// options.
func mountablePath(name string) (string, error) {
	abs, err := mount.CanonicalizePath(name)
	if err != nil {
		return "", err
	}
	if i := strings.IndexAny(abs, `,:\`); i >= 0 {
		return "", fmt.Errorf("path %q has a %q, which overlay mounts do not take: choose another root", abs, abs[i])
	}
	return abs, nil
}

// Close copies metadata.db if it has changed, and closes the metadata store and the snapshotter's directories. Calls
// still running fail. A second call returns the result of the first.
func (s *Snapshotter) Close() error { return s.close() }

func (s *Snapshotter) closeAll() error {
	s.prebuilder.close()
	s.rest.close()
	s.work.Wait()
	var err error
	if s.copies != nil {
		s.copies.stop()
		err = s.copies.flush()
	}
	if s.ms != nil {
		err = errors.Join(err, s.ms.Close())
	}
	for _, d := range []*atfs.Dir{s.root, s.snaps, s.tmp} {
		if d != nil {
			err = errors.Join(err, d.Close())
		}
	}
	return err
}

// Layers returns the layer store that was passed to New.
func (s *Snapshotter) Layers() *layer.Store { return s.layers }

func (s *Snapshotter) read(ctx context.Context, f func(ctx context.Context) error) error {
	return s.ms.WithTransaction(ctx, false, f)
}

func (s *Snapshotter) write(ctx context.Context, f func(ctx context.Context) error) error {
	err := s.ms.WithTransaction(ctx, true, f)
	if err == nil {
		s.copies.trigger()
	}
	return err
}

// Stat returns the description of a snapshot.
func (s *Snapshotter) Stat(ctx context.Context, key string) (info snapshots.Info, err error) {
	err = s.read(ctx, func(ctx context.Context) error {
		_, info, _, err = storage.GetInfo(ctx, key)
		return err
	})
	return info, err
}

// Update changes labels of a snapshot. It ignores changes to the labels that describe the content of a committed
// snapshot, and leaves these out of its result.
func (s *Snapshotter) Update(ctx context.Context, info snapshots.Info, fieldpaths ...string) (updated snapshots.Info, err error) {
	if err := validLabels(info.Labels); err != nil {
		return snapshots.Info{}, fmt.Errorf("update snapshot %q: %w", info.Name, err)
	}
	if slices.Contains(fieldpaths, "labels.") {
		return snapshots.Info{}, fmt.Errorf("update snapshot %q: label without name: %w", info.Name, errdefs.ErrInvalidArgument)
	}
	err = s.write(ctx, func(ctx context.Context) error {
		_, old, _, err := storage.GetInfo(ctx, info.Name)
		if err != nil {
			return err
		}
		private := privateLabels(old.Labels)
		info.Labels = publicLabels(info.Labels)
		if old.Kind == snapshots.KindCommitted {
			info.Labels = committedLabels(info.Name, info.Labels, private)
		}
		public := publicPaths(fieldpaths)
		if len(public) == 0 && len(fieldpaths) > 0 { // no path at all would select everything
			info.Labels = old.Labels
		}
		if updated, err = storage.UpdateInfo(ctx, info, public...); err == nil {
			s.refs.put(updated) // before it can be removed
		}
		return err
	})
	if err != nil {
		return snapshots.Info{}, err
	}
	updated.Labels = publicLabels(updated.Labels)
	return updated, nil
}

// Walk calls f for each snapshot that one of the filters matches, as of the call to Walk. f may call every other
// method, since no transaction is open then. Inside one, a method called by f would wait for a writer that waits for
// all transactions to end, in order to enlarge the database.
func (s *Snapshotter) Walk(ctx context.Context, f snapshots.WalkFunc, filters ...string) error {
	var found []snapshots.Info
	err := s.read(ctx, func(ctx context.Context) error {
		return walk(ctx, func(_ context.Context, info snapshots.Info) error {
			found = append(found, info)
			return nil
		}, filters...)
	})
	if err != nil {
		return err
	}
	for _, info := range found {
		if err := f(ctx, info); err != nil {
			return err
		}
	}
	return nil
}

// Mounts returns the mounts of an active snapshot or a view. They belong to the host: no process has to keep running
// for them. With composefs, the file systems below them are mounted by this call, and stay mounted until the last
// snapshot that needs them is removed, or the host restarts.
func (s *Snapshotter) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	r := mountRequest{key: key}
	err := s.read(ctx, func(ctx context.Context) error {
		snap, err := storage.GetSnapshot(ctx, key)
		if err != nil {
			return fmt.Errorf("snapshot %q: %w", key, err)
		}
		r.id, r.kind = snap.ID, snap.Kind
		_, info, _, err := storage.GetInfo(ctx, key)
		if err != nil {
			return err
		}
		if r.ids, err = mappingOf(info.Labels); err != nil {
			return fmt.Errorf("snapshot %q: %w", key, err)
		}
		r.parent, err = chainIn(ctx, info.Parent)
		return err
	})
	if err != nil {
		return nil, err
	}
	if r.kind == snapshots.KindActive {
		if r.dir, err = s.readDirectory(r.id); err != nil {
			return nil, fmt.Errorf("snapshot %q: %w", key, err)
		}
	}
	return s.mount(ctx, r)
}

// mount completes a request and passes it to the mounter.
func (s *Snapshotter) mount(ctx context.Context, r mountRequest) (_ []mount.Mount, err error) {
	r.stack = stack{
		upper:    filepath.Join(s.path, SnapshotsDir, r.id, upperDir),
		work:     filepath.Join(s.path, SnapshotsDir, r.id, workDir),
		empty:    filepath.Join(s.path, EmptyDir),
		readOnly: r.kind == snapshots.KindView || r.dir.staged,
		unpack:   isUnpackKey(r.key),
		options:  s.opts.overlay,
	}
	r.chain = r.parent
	if !r.dir.layer.IsZero() {
		if r.chain, err = s.withLayer(ctx, r.dir, r.parent); err != nil {
			return nil, fmt.Errorf("snapshot %q: %w", r.key, err)
		}
	}
	return s.mounter.mount(ctx, r)
}

// withLayer returns the chain of an active snapshot that has a layer. A staged layer with entries that only the layers
// below can resolve is left out until Commit, which knows the parent.
func (s *Snapshotter) withLayer(ctx context.Context, d directory, below []content) ([]content, error) {
	l, err := s.layers.Layer(ctx, d.layer)
	if err != nil {
		return nil, lost(content{layer: d.layer}, err)
	}
	if d.staged && l.Unresolved > 0 && len(below) == 0 {
		return below, nil
	}
	return append([]content{{layer: d.layer}}, below...), nil
}

// Remove removes a snapshot without children. Cleanup frees its space.
func (s *Snapshotter) Remove(ctx context.Context, key string) error {
	var id string
	var info snapshots.Info
	err := s.write(ctx, func(ctx context.Context) (err error) {
		if id, info, _, err = storage.GetInfo(ctx, key); err != nil {
			return err
		}
		if _, _, err = storage.Remove(ctx, key); err == nil {
			s.refs.remove(key) // before the name can be used again
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("remove snapshot %q: %w", key, err)
	}
	s.committed.remove(id)
	s.prebuilder.cancelPrebuild(key)
	s.idle.Store(true)
	if info.Kind == snapshots.KindCommitted {
		s.garbage.Store(true)
		s.shares.stale.Store(true)
		return nil
	}
	if ok, err := s.snaps.Exists(path.Join(id, AppliedFile)); err != nil || ok {
		s.garbage.Store(true)
		s.shares.stale.Store(true)
	}
	// The row is deleted: whatever remains is an orphan, which Cleanup finds.
	if err := s.mounter.unmount(id); err != nil {
		log.G(ctx).WithError(err).WithField("snapshot", key).Warn("mount of removed snapshot stays until cleanup")
	}
	if err := s.discard(id); err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.G(ctx).WithError(err).WithField("snapshot", key).Warn("directory of removed snapshot stays until cleanup")
	}
	return nil
}
