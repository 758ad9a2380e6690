package snapshotter

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/composefsmount"
)

const (
	// Directories of a rootfs: where its image is mounted, and, read-only, what image and objects show together. With "-" and a
	// hash, the same with owners mapped.
	imageMount = "fs"
	viewMount  = "view"
)

// rootfses are checkouts that are composefs images: one for a chain, whatever its length, mounted over the repository's
// objects.
//
// Snapshots are mounted here, and what containerd gets is a bind mount of that: since 2.4 its client opens the directories of
// an overlay's option lowerdir itself, to look for users, and finds no content in an image. See ADR 0008.
//
// What is mounted is seen from the directory itself, and what has to be from the rows: nothing is kept in memory, so that a
// daemon which has just started knows as much as one that has not.
type rootfses struct {
	s       *Snapshotter
	support composefsmount.Support
	objects string // absolute
	ahead   ahead
}

func newRootfses(s *Snapshotter, support composefsmount.Support) (*rootfses, error) {
	objects, err := mountablePath(s.layers.Repo().ObjectsDir().Path())
	if err != nil {
		return nil, err
	}
	if err := s.root.MkdirAll(MountsDir, dirMode); err != nil {
		return nil, err
	}
	r := &rootfses{s: s, support: support, objects: objects}
	r.ahead.make = r.makeAhead
	return r, nil
}

// makeAhead makes the image of a committed snapshot's chain, unless it is one of an image's lower layers.
func (r *rootfses) makeAhead(ctx context.Context, name string, chain []objectstore.Checksum) error {
	if lower, err := r.s.isLower(ctx, name); err != nil || lower {
		return err
	}
	image, _, err := r.s.layers.OpenRootfs(ctx, chain)
	if err != nil {
		return err
	}
	if err := image.Close(); err != nil {
		return err
	}
	if _, err := r.s.Stat(ctx, name); !errdefs.IsNotFound(err) {
		return err
	}
	// It was removed meanwhile: a Cleanup that has seen no image leaves none.
	r.s.idle.Store(true)
	return r.s.sweepRootfses(ctx)
}

// labelParentChain is by which containerd says of a layer that is unpacked, before there is a snapshot for it to be on, what that
// will be.
const labelParentChain = "containerd.io/snapshot/parent-chain-id"

// isLower reports whether a layer is being unpacked that is to be committed on a snapshot.
func (s *Snapshotter) isLower(ctx context.Context, name string) (lower bool, err error) {
	chainID := clientName(name)
	err = s.read(ctx, func(ctx context.Context) error {
		return walk(ctx, func(_ context.Context, info snapshots.Info) error {
			lower = lower || info.Kind == snapshots.KindActive && isUnpackKey(info.Name) && info.Labels[labelParentChain] == chainID
			return nil
		})
	})
	return lower, err
}

func (r *rootfses) mounts(ctx context.Context, st stack, chain []content, m made) ([]mount.Mount, error) {
	if len(chain) == 0 || m.staged && m.new { // nobody mounts what is staged
		return st.mounts(), nil
	}
	name := r.s.layers.RootfsName(layerIDs(chain))
	if r.isUnpack(m) {
		// Our differ does not look at what is below, and a chain is not yet what a container runs on. Where somebody mounts
		// it all the same, there is no such directory.
		st.lowers = []string{filepath.Join(r.s.path, name, imageMount)}
		return st.mounts(), nil
	}
	if !m.ids.IsZero() && !r.support.IDMap {
		return nil, fmt.Errorf("kernel cannot map the owners of a composefs image: %w", errdefs.ErrNotImplemented)
	}
	if err := r.mountImage(ctx, chain, m.ids); err != nil {
		return nil, lost(chain[0], err)
	}
	o := r.overlay(name, m.ids)
	o.Options = st.options
	target, access := path.Join(name, viewMount+suffix(m.ids)), "ro"
	if !st.readOnly {
		target, access = path.Join(MountsDir, m.id), "rw"
		o.Upper, o.Work = st.upper, st.work
	}
	if err := r.mountOverlay(ctx, target, o); err != nil {
		return nil, err
	}
	return bind(filepath.Join(r.s.path, target), access), nil
}

// isUnpack reports whether a snapshot was made to unpack a layer to, by a client that lets our differ do it: it did so for
// the layers below.
func (r *rootfses) isUnpack(m made) bool {
	return m.new && m.kind == snapshots.KindActive && isUnpackKey(m.key) && len(m.below) > 0 && m.below[0].chainID != ""
}

func (r *rootfses) overlay(name string, ids composefsmount.Mapping) composefsmount.Overlay {
	return composefsmount.Overlay{Image: filepath.Join(r.s.path, name, imageMount+suffix(ids)), Objects: r.objects}
}

// mountOverlay sees to it that an overlay is mounted.
func (r *rootfses) mountOverlay(ctx context.Context, target string, o composefsmount.Overlay) error {
	unlock, err := r.s.locks.Lock(ctx, target)
	if err != nil {
		return err
	}
	defer unlock()
	if ok, err := r.is(target, composefsmount.IsOverlay); err != nil || ok {
		return err
	}
	if err := r.mkdir(target); err != nil {
		return err
	}
	return o.Mount(filepath.Join(r.s.path, target), r.support)
}

func (r *rootfses) release(id string) error {
	name := path.Join(MountsDir, id)
	if ok, err := r.s.root.Exists(name); err != nil || !ok {
		return atfs.IgnoreNotExist(err)
	}
	return r.s.unmount(name)
}

// suffix is what the names of directories end in on which something is mounted with its owners mapped.
func suffix(ids composefsmount.Mapping) string {
	if ids.IsZero() {
		return ""
	}
	sum := sha256.Sum256([]byte(ids.UID + " " + ids.GID))
	return "-" + hex.EncodeToString(sum[:8])
}

// mountImage sees to it that the image of a chain is mounted.
func (r *rootfses) mountImage(ctx context.Context, chain []content, ids composefsmount.Mapping) error {
	layers := layerIDs(chain)
	name := r.s.layers.RootfsName(layers)
	unlock, err := r.s.locks.Lock(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	if ok, err := r.is(path.Join(name, imageMount+suffix(ids)), composefsmount.IsMounted); err != nil || ok {
		return err
	}
	start := time.Now()
	image, added, err := r.s.layers.OpenRootfs(ctx, layers)
	if err != nil {
		return err
	}
	err = r.mountOn(name, image, ids)
	if err = errors.Join(err, image.Close()); err != nil {
		return err
	}
	log.G(ctx).WithFields(log.Fields{"rootfs": path.Base(name), "added": added.Bytes, "duration": time.Since(start)}).Info("rootfs mounted")
	return nil
}

// is asks about a directory, which need not be there.
func (r *rootfses) is(name string, mounted func(*atfs.Dir) (bool, error)) (bool, error) {
	dir, err := r.openPath(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	ok, err := mounted(dir)
	return ok, errors.Join(err, dir.Close())
}

// openPath opens a directory below the root by the path at which the host has it: what is mounted there is not seen by way of
// a mount of this process's own.
func (r *rootfses) openPath(name string) (*atfs.Dir, error) {
	return atfs.Open(filepath.Join(r.s.path, name))
}

func (r *rootfses) mountOn(name string, image *atfs.File, ids composefsmount.Mapping) (err error) {
	plain, err := r.target(path.Join(name, imageMount))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, plain.Close()) }()
	if ids.IsZero() {
		return composefsmount.Mount(image, plain, r.support)
	}
	// The mount with mapped owners is a copy of one without.
	ok, err := composefsmount.IsMounted(plain)
	if err != nil {
		return err
	}
	if !ok {
		if err := composefsmount.Mount(image, plain, r.support); err != nil {
			return err
		}
	}
	mounted, err := r.openPath(path.Join(name, imageMount))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, mounted.Close()) }()
	mapped, err := r.target(path.Join(name, imageMount+suffix(ids)))
	if err != nil {
		return err
	}
	return errors.Join(composefsmount.MountMapped(mounted, mapped, ids), mapped.Close())
}

// target opens a directory to mount on, which it makes.
func (r *rootfses) target(name string) (*atfs.Dir, error) {
	if err := r.mkdir(name); err != nil {
		return nil, err
	}
	return r.openPath(name)
}

// mkdir makes a directory to mount on. The one that it is in is there, unless nobody needs it any more.
func (r *rootfses) mkdir(name string) error {
	err := r.s.root.Mkdir(name, 0o700)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

// commit makes nothing: the image of a chain is made when a snapshot runs on it.
func (r *rootfses) commit(ctx context.Context, below []content, top *layer.Layer) (string, layer.Usage, error) {
	if top.Unresolved == 0 {
		return "", layer.Usage{}, nil
	}
	return "", layer.Usage{}, r.s.layers.Resolve(ctx, layerIDs(below, top.ID))
}

func (r *rootfses) applied(context.Context, *layer.Layer) (layer.Usage, error) {
	return layer.Usage{}, nil
}

func (r *rootfses) committed(name, parent string, chain []content) {
	r.ahead.committed(name, parent, layerIDs(chain))
}

func (r *rootfses) notRun(name string) { r.ahead.forget(name) }
func (r *rootfses) close()             { r.ahead.close() }

func (r *rootfses) merged(ctx context.Context, chain []content, upper *atfs.Dir) (*atfs.Dir, error) {
	if !r.support.Metacopy || len(chain) == 0 {
		return nil, nil
	}
	if err := r.mountImage(ctx, chain, composefsmount.Mapping{}); err != nil {
		return nil, err
	}
	return r.open(r.s.layers.RootfsName(layerIDs(chain)), upper)
}

// openLower knows an active snapshot by its number and what is below one by the view of it.
func (r *rootfses) openLower(ctx context.Context, id string, lower, _ mount.Mount) ([]*atfs.Dir, error) {
	notOurs := fmt.Errorf("mounts are not a snapshot and what is below it: %w", errdefs.ErrNotImplemented)
	if r.support.Metacopy || lower.Type != "bind" {
		return nil, notOurs
	}
	var chain []content
	err := r.s.read(ctx, func(ctx context.Context) error {
		return walk(ctx, func(ctx context.Context, info snapshots.Info) error {
			number, info, _, err := storage.GetInfo(ctx, info.Name)
			if err != nil || number != id {
				return err
			}
			chain, err = chainIn(ctx, info.Parent)
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	name := r.s.layers.RootfsName(layerIDs(chain))
	if len(chain) == 0 || lower.Source != filepath.Join(r.s.path, name, viewMount) {
		return nil, notOurs
	}
	dir, err := r.open(name)
	if err != nil {
		return nil, err
	}
	return []*atfs.Dir{dir}, nil
}

// open opens what the image of a rootfs, which is mounted, shows over the objects, below other directories, topmost first.
func (r *rootfses) open(name string, above ...*atfs.Dir) (_ *atfs.Dir, err error) {
	i, err := r.openPath(path.Join(name, imageMount))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, i.Close()) }()
	o, err := atfs.Open(r.objects)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, o.Close()) }()
	return composefsmount.OpenOverlay(i, o, r.support, above...)
}

// sweepRootfses unmounts snapshots that are no more, and images on which none runs, and removes the images of chains that no
// committed snapshot has.
func (s *Snapshotter) sweepRootfses(ctx context.Context) (err error) {
	s.sweeping.Lock() // what another sweep has listed is gone when its turn comes
	defer s.sweeping.Unlock()
	if !s.idle.Swap(false) {
		return nil
	}
	defer func() {
		if err != nil {
			s.idle.Store(true)
		}
	}()
	names, err := s.layers.RootfsNames()
	if err != nil {
		return err
	}
	mounted, err := s.namesIn(MountsDir)
	if err != nil {
		return err
	}
	checkouts, err := s.namesIn(layer.LayersDir)
	if err != nil || len(names) == 0 && len(mounted) == 0 && len(checkouts) == 0 {
		return err
	}
	var removals []func() error
	// In a write transaction no snapshot is being made; one that is there already has what it needs mounted after its row.
	err = s.ms.WithTransaction(ctx, true, func(ctx context.Context) error { // it changes no row
		needed, err := s.neededMounts(ctx)
		if err != nil {
			return err
		}
		for _, id := range mounted {
			if _, ok := needed.active[id]; ok {
				continue
			}
			if err := s.unmount(path.Join(MountsDir, id)); err != nil {
				return err
			}
		}
		for _, name := range names {
			mounts, kept := needed.rootfses[name]
			if err := s.unmountRootfs(name, mounts); err != nil {
				return err
			}
			if kept {
				continue
			}
			remove, err := s.layers.DiscardRootfs(name)
			if err != nil {
				return err
			}
			removals = append(removals, remove)
		}
		remove, err := s.discardCheckouts(needed)
		if remove != nil {
			removals = append(removals, remove)
		}
		return err
	})
	for _, remove := range removals {
		err = errors.Join(err, remove())
	}
	return err
}

// discardCheckouts takes away the checkouts of hard links that only a daemon without composefs has used, and nothing that was
// there when this one started. What containers run on whose rows were lost is not known.
func (s *Snapshotter) discardCheckouts(n needed) (remove func() error, err error) {
	if _, ok := s.checkouts.(*rootfses); !ok {
		return nil, nil
	}
	if lost, err := s.namesIn(LostDir); err != nil || len(lost) > 0 {
		return nil, err
	}
	return s.layers.DiscardCheckouts(n.checkouts)
}

// namesIn returns what is in a directory below the root, nothing if it is not there.
func (s *Snapshotter) namesIn(name string) ([]string, error) {
	dir, err := s.root.OpenDir(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	names, err := dir.ReadNames()
	return names, errors.Join(err, dir.Close())
}

// needed is what the rows need.
type needed struct {
	active   map[string]struct{}            // numbers of active snapshots
	rootfses map[string]map[string]struct{} // rootfs images, and the suffixes of the mounts of each on which a snapshot runs

	checkouts map[objectstore.Checksum]struct{} // layers whose checkouts may be below a container of an earlier daemon
}

// neededMounts returns what the rows need of what is mounted. Without composefs they need nothing.
func (s *Snapshotter) neededMounts(ctx context.Context) (needed, error) {
	n := needed{
		active: make(map[string]struct{}), rootfses: make(map[string]map[string]struct{}),
		checkouts: make(map[objectstore.Checksum]struct{}),
	}
	if _, ok := s.checkouts.(*rootfses); !ok {
		return n, nil
	}
	rows := make(map[string]snapshots.Info)
	numbers := make(map[string]string)
	err := walk(ctx, func(ctx context.Context, info snapshots.Info) (err error) {
		numbers[info.Name], rows[info.Name], _, err = storage.GetInfo(ctx, info.Name)
		return err
	})
	if err != nil {
		return n, err
	}
	for name, info := range rows {
		top := info.Parent
		if info.Kind == snapshots.KindCommitted {
			top = name
		}
		layers, ok := layersIn(rows, top)
		if !ok {
			continue // a snapshot that cannot be used needs nothing
		}
		s.needRootfs(n, layers)
		if info.Kind == snapshots.KindCommitted {
			continue
		}
		id := numbers[name]
		n.active[id] = struct{}{}
		if sum, err := readApplied(s.snaps, id); err == nil && !sum.IsZero() {
			layers = append(layers, sum)
		}
		if ids, err := mappingOf(info.Labels); err == nil {
			s.needRootfs(n, layers, "", suffix(ids))
		}
		if _, ok := s.before[id]; ok {
			for _, id := range layers {
				n.checkouts[id] = struct{}{}
			}
		}
	}
	return n, nil
}

// layersIn returns the layers of a committed snapshot and those below it, lowest first. No name is no layers.
func layersIn(rows map[string]snapshots.Info, name string) (layers []objectstore.Checksum, ok bool) {
	for name != "" {
		c, err := contentOf("", rows[name])
		if err != nil {
			return nil, false
		}
		layers = append(layers, c.layer)
		name = rows[name].Parent
	}
	slices.Reverse(layers)
	return layers, true
}

// needRootfs takes notice that the image of a chain is needed, and some mounts of it.
func (s *Snapshotter) needRootfs(n needed, layers []objectstore.Checksum, suffixes ...string) {
	if len(layers) == 0 {
		return
	}
	name := s.layers.RootfsName(layers)
	if n.rootfses[name] == nil {
		n.rootfses[name] = make(map[string]struct{})
	}
	for _, suffix := range suffixes {
		n.rootfses[name][suffix] = struct{}{}
	}
}

// unmountRootfs unmounts what is mounted of a rootfs, but for what is needed.
func (s *Snapshotter) unmountRootfs(name string, needed map[string]struct{}) error {
	names, err := s.namesIn(name)
	if err != nil {
		return err
	}
	for _, prefix := range []string{viewMount, imageMount} { // the one is over the other
		for _, m := range names {
			suffix, ok := strings.CutPrefix(m, prefix)
			if _, kept := needed[suffix]; !ok || kept {
				continue
			}
			if err := s.unmount(path.Join(name, m)); err != nil {
				return err
			}
		}
	}
	return nil
}

// unmount unmounts a directory and removes it, unless somebody else just has: a removal and a sweep may do the same.
func (s *Snapshotter) unmount(name string) error {
	if err := atfs.IgnoreNotExist(composefsmount.Unmount(filepath.Join(s.path, name))); err != nil {
		return err
	}
	return s.root.RemoveAll(name)
}
