package snapshotter

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/composefsmount"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/internal/keylock"
)

// composefsMounter mounts snapshots over composefs images: one per chain, whatever its length, mounted over the
// repository's objects.
//
// It mounts the snapshot itself and gives containerd a bind mount of that: since 2.4 containerd's client opens the
// directories of an overlay's lowerdir option, to look up users, and finds no content in an image. See ADR 0008.
//
// The mount points show the current mounts, and the rows show the needed ones. Neither is kept in memory, so a daemon
// that has just started knows as much as one that has been running.
type composefsMounter struct {
	mountTree
	support    composefsmount.Support
	objects    string // absolute
	parentOf   func(ctx context.Context, id string) ([]content, error)
	locks      keylock.Map         // by name below the root: mounting there
	fromBefore map[string]struct{} // IDs of the active snapshots and views that existed at start
}

// newComposefsMounter returns a mounter for a root. parentOf returns the parent's chain of an active snapshot, topmost
// first.
func newComposefsMounter(t mountTree, support composefsmount.Support, parentOf func(ctx context.Context, id string) ([]content, error)) (*composefsMounter, error) {
	objects, err := mountablePath(t.layers.Repo().ObjectsDir().Path())
	if err != nil {
		return nil, err
	}
	if err := t.root.MkdirAll(MountsDir, dirMode); err != nil {
		return nil, err
	}
	return &composefsMounter{mountTree: t, support: support, objects: objects, parentOf: parentOf}, nil
}

// start remembers which snapshots may run on the checkouts of an earlier daemon.
func (m *composefsMounter) start(_ context.Context, existing []snapshot) error {
	m.fromBefore = make(map[string]struct{})
	for _, s := range existing {
		if s.Kind != snapshots.KindCommitted {
			m.fromBefore[s.id] = struct{}{}
		}
	}
	return nil
}

// build builds the image of a chain, lowest layer first, if it is missing.
func (m *composefsMounter) build(ctx context.Context, chain []objectstore.Checksum) error {
	image, _, err := m.layers.OpenRootfs(ctx, chain)
	if err != nil {
		return err
	}
	return image.Close()
}

func (m *composefsMounter) mount(ctx context.Context, r mountRequest) ([]mount.Mount, error) {
	if len(r.chain) == 0 || r.dir.staged && r.created { // staged snapshots are not mounted
		return r.stack.mount(), nil
	}
	name := m.layers.RootfsName(layerIDs(r.chain))
	if r.isUnpack() {
		// Our differ ignores the lower directory, and containers do not run on this chain yet. For anyone who mounts it
		// all the same, the directory does not exist.
		r.stack.lowers = []string{m.abs(path.Join(name, imageMount))}
		return r.stack.mount(), nil
	}
	if !r.ids.IsZero() && !m.support.IDMap {
		return nil, fmt.Errorf("kernel cannot map the owners of a composefs image: %w", errdefs.ErrNotImplemented)
	}
	if err := m.mountImage(ctx, r.chain, r.ids); err != nil {
		return nil, lost(r.chain[0], err)
	}
	o := composefsmount.Overlay{
		Image: m.abs(path.Join(name, imageMount+suffix(r.ids))), Objects: m.objects, Options: r.stack.options,
	}
	target, access := path.Join(name, viewMount+suffix(r.ids)), "ro"
	if !r.stack.readOnly {
		target, access = path.Join(MountsDir, r.id), "rw"
		o.Upper, o.Work = r.stack.upper, r.stack.work
	}
	if err := m.mountOverlay(ctx, target, o); err != nil {
		return nil, err
	}
	return bind(m.abs(target), access), nil
}

// mountOverlay mounts an overlay unless it is mounted.
func (m *composefsMounter) mountOverlay(ctx context.Context, target string, o composefsmount.Overlay) error {
	unlock, err := m.locks.Lock(ctx, target)
	if err != nil {
		return err
	}
	defer unlock()
	if ok, err := m.is(target, composefsmount.IsOverlay); err != nil || ok {
		return err
	}
	if err := m.mkdir(target); err != nil {
		return err
	}
	return o.Mount(m.abs(target), m.support)
}

func (m *composefsMounter) unmount(id string) error {
	name := path.Join(MountsDir, id)
	if ok, err := m.root.Exists(name); err != nil || !ok {
		return atfs.IgnoreNotExist(err)
	}
	return m.mountTree.unmount(name)
}

// suffix returns the name suffix of ID-mapped mount points.
func suffix(ids composefsmount.Mapping) string {
	if ids.IsZero() {
		return ""
	}
	sum := sha256.Sum256([]byte(ids.UID + " " + ids.GID))
	return "-" + hex.EncodeToString(sum[:8])
}

// mountImage mounts the image of a chain unless it is mounted.
func (m *composefsMounter) mountImage(ctx context.Context, chain []content, ids composefsmount.Mapping) error {
	layers := layerIDs(chain)
	name := m.layers.RootfsName(layers)
	unlock, err := m.locks.Lock(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	if ok, err := m.is(path.Join(name, imageMount+suffix(ids)), composefsmount.IsMounted); err != nil || ok {
		return err
	}
	start := time.Now()
	image, added, err := m.layers.OpenRootfs(ctx, layers)
	if err != nil {
		return err
	}
	err = m.mountOn(name, image, ids)
	if err = errors.Join(err, image.Close()); err != nil {
		return err
	}
	log.G(ctx).WithFields(log.Fields{"rootfs": path.Base(name), "added": added.Bytes, "duration": time.Since(start)}).Info("rootfs mounted")
	return nil
}

// is applies a check to a directory; it is false if the directory does not exist.
func (m *composefsMounter) is(name string, mounted func(*atfs.Dir) (bool, error)) (bool, error) {
	dir, err := m.openPath(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	ok, err := mounted(dir)
	return ok, errors.Join(err, dir.Close())
}

// openPath opens a directory below the root by its path on the host: a handle that reaches the root through another
// mount would not see mounts made there.
func (m *composefsMounter) openPath(name string) (*atfs.Dir, error) {
	return atfs.Open(m.abs(name))
}

func (m *composefsMounter) mountOn(name string, image *atfs.File, ids composefsmount.Mapping) (err error) {
	plain, err := m.target(path.Join(name, imageMount))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, plain.Close()) }()
	if ids.IsZero() {
		return composefsmount.Mount(image, plain, m.support)
	}
	// The mount with mapped owners is a copy of one without.
	ok, err := composefsmount.IsMounted(plain)
	if err != nil {
		return err
	}
	if !ok {
		if err := composefsmount.Mount(image, plain, m.support); err != nil {
			return err
		}
	}
	mounted, err := m.openPath(path.Join(name, imageMount))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, mounted.Close()) }()
	mapped, err := m.target(path.Join(name, imageMount+suffix(ids)))
	if err != nil {
		return err
	}
	return errors.Join(composefsmount.MountMapped(mounted, mapped, ids), mapped.Close())
}

// target creates and opens a mount point.
func (m *composefsMounter) target(name string) (*atfs.Dir, error) {
	if err := m.mkdir(name); err != nil {
		return nil, err
	}
	return m.openPath(name)
}

// mkdir creates a mount point. Its parent exists unless no snapshot needs it any more.
func (m *composefsMounter) mkdir(name string) error {
	err := m.root.Mkdir(name, 0o700)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

func (*composefsMounter) checkoutAlone(context.Context, *layer.Layer) (layer.Usage, error) {
	return layer.Usage{}, nil
}

// checkout only resolves the layer: the image of a chain is built when a snapshot runs on it.
func (m *composefsMounter) checkout(ctx context.Context, top *layer.Layer, below []content) (string, layer.Usage, error) {
	if top.Unresolved == 0 {
		return "", layer.Usage{}, nil
	}
	return "", layer.Usage{}, m.layers.Resolve(ctx, layerIDs(below, top.ID))
}

func (m *composefsMounter) openMerged(ctx context.Context, upper *atfs.Dir, chain []content) (*atfs.Dir, error) {
	if !m.support.Metacopy || len(chain) == 0 {
		return nil, nil
	}
	if err := m.mountImage(ctx, chain, composefsmount.Mapping{}); err != nil {
		return nil, err
	}
	return m.open(m.layers.RootfsName(layerIDs(chain)), upper)
}

// openLower finds the snapshot by its ID and checks that lower is the view of its chain.
func (m *composefsMounter) openLower(ctx context.Context, id string, lower, _ mount.Mount) ([]*atfs.Dir, error) {
	if m.support.Metacopy || lower.Type != "bind" {
		return nil, errNotOverLower
	}
	chain, err := m.parentOf(ctx, id)
	if err != nil {
		return nil, err
	}
	name := m.layers.RootfsName(layerIDs(chain))
	if len(chain) == 0 || lower.Source != m.abs(path.Join(name, viewMount)) {
		return nil, errNotOverLower
	}
	dir, err := m.open(name)
	if err != nil {
		return nil, err
	}
	return []*atfs.Dir{dir}, nil
}

// open opens an overlay of a mounted rootfs image and the objects, below other directories, topmost first.
func (m *composefsMounter) open(name string, above ...*atfs.Dir) (_ *atfs.Dir, err error) {
	i, err := m.openPath(path.Join(name, imageMount))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, i.Close()) }()
	o, err := atfs.Open(m.objects)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, o.Close()) }()
	return composefsmount.OpenOverlay(i, o, m.support, above...)
}

// sweep unmounts removed snapshots and images that no snapshot runs on. It removes images of chains without a committed
// snapshot, and checkouts that no container of an earlier daemon can run on.
func (m *composefsMounter) sweep(ctx context.Context, locked lockedSnapshots) error {
	if found, err := m.hasAny(MountsDir, layer.RootfsDir, layer.LayersDir); err != nil || !found {
		return err
	}
	var discarded removals
	// No snapshot is created meanwhile. Mounts are made after the row exists, so the rows name all that are needed.
	err := locked(ctx, func(all []snapshot) error {
		found, err := m.find()
		if err != nil {
			return err
		}
		live, checkouts := m.live(all)
		discarded, err = m.execute(planMountSweep(found, live))
		remove, cerr := m.discardCheckouts(checkouts)
		if remove != nil {
			discarded = append(discarded, remove)
		}
		return errors.Join(err, cerr)
	})
	return errors.Join(err, discarded.run())
}

// hasAny reports whether one of these directories below the root has any entry.
func (m *composefsMounter) hasAny(dirs ...string) (bool, error) {
	for _, dir := range dirs {
		if names, err := m.names(dir); err != nil || len(names) > 0 {
			return len(names) > 0, err
		}
	}
	return false, nil
}

// discardCheckouts discards hard-link checkouts that only an earlier daemon without composefs used. If rows were lost
// it keeps all, since containers of lost snapshots may run on any of them.
func (m *composefsMounter) discardCheckouts(live map[objectstore.Checksum]struct{}) (remove func() error, err error) {
	if lost, err := m.names(LostDir); err != nil || len(lost) > 0 {
		return nil, err
	}
	remove, err = m.layers.DiscardCheckouts(live)
	if remove != nil {
		m.changed()
	}
	return remove, err
}

// live returns the mounts that snapshots need, and the layers whose checkouts containers of an earlier daemon may run
// on.
func (m *composefsMounter) live(all []snapshot) (live liveMounts, checkouts map[objectstore.Checksum]struct{}) {
	live = liveMounts{active: make(map[string]struct{}), rootfses: make(map[string]map[string]struct{})}
	checkouts = make(map[objectstore.Checksum]struct{})
	byName := make(map[string]snapshot, len(all))
	for _, s := range all {
		byName[s.Name] = s
	}
	for _, s := range all {
		top := s.Parent
		if s.Kind == snapshots.KindCommitted {
			top = s.Name
		}
		layers, ok := layersIn(byName, top)
		if !ok {
			continue // an unusable snapshot needs nothing
		}
		m.addRootfs(live, layers)
		if s.Kind == snapshots.KindCommitted {
			continue
		}
		live.active[s.id] = struct{}{}
		if sum, err := readApplied(m.snaps, s.id); err == nil && !sum.IsZero() {
			layers = append(layers, sum)
		}
		if ids, err := mappingOf(s.Labels); err == nil {
			m.addRootfs(live, layers, "", suffix(ids))
		}
		if _, ok := m.fromBefore[s.id]; ok {
			for _, id := range layers {
				checkouts[id] = struct{}{}
			}
		}
	}
	return live, checkouts
}

// addRootfs records that the image of a chain is needed, and some mounts of it.
func (m *composefsMounter) addRootfs(live liveMounts, layers []objectstore.Checksum, suffixes ...string) {
	if len(layers) == 0 {
		return
	}
	name := m.layers.RootfsName(layers)
	if live.rootfses[name] == nil {
		live.rootfses[name] = make(map[string]struct{})
	}
	for _, suffix := range suffixes {
		live.rootfses[name][suffix] = struct{}{}
	}
}

// layersIn returns the layers of a committed snapshot and those below it, lowest first. An empty name has no layers.
func layersIn(byName map[string]snapshot, name string) (layers []objectstore.Checksum, ok bool) {
	for name != "" {
		s := byName[name]
		c, err := contentOf(s.id, s.Info)
		if err != nil {
			return nil, false
		}
		layers = append(layers, c.layer)
		name = s.Parent
	}
	slices.Reverse(layers)
	return layers, true
}
