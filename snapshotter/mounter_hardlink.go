package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/panics"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
)

// hardlinkMounter mounts snapshots over hard-link checkouts: one directory per layer, created at Commit.
type hardlinkMounter struct {
	mountTree
	mapped func(context.Context) bool // of WithMappedMounts, or nil
}

func newHardlinkMounter(t mountTree, mapped func(context.Context) bool) *hardlinkMounter {
	return &hardlinkMounter{t, mapped}
}

// start rebuilds missing checkouts, such as those that a recovery removed, and logs how many. A checkout that cannot be
// rebuilt, for want of its layer, does not stop it: Mounts reports it too.
func (m *hardlinkMounter) start(ctx context.Context, existing []snapshot) error {
	missing, err := m.missing(existing)
	if err != nil || len(missing) == 0 {
		return err
	}
	var mu sync.Mutex
	var failed []error
	group := panics.NewGroup()
	group.SetLimit(runtime.GOMAXPROCS(0))
	for _, chain := range missing {
		group.Go(func() error {
			if _, _, err := m.layers.Checkout(ctx, chain); err != nil {
				mu.Lock()
				defer mu.Unlock()
				failed = append(failed, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil { // a panic
		failed = append(failed, err)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	logger := log.G(ctx).WithField("checkouts", len(missing))
	if len(failed) > 0 {
		logger = logger.WithField("failed", len(failed)).WithError(failed[0])
	}
	logger.Warn("checkouts of layers were missing and are rebuilt")
	return nil
}

// missing returns the chains, lowest layer first, of missing checkouts. Chains that cannot be read are left out: their
// snapshots cannot be used.
func (m *hardlinkMounter) missing(existing []snapshot) (chains [][]objectstore.Checksum, err error) {
	rows := make(map[string]snapshot)
	for _, s := range existing {
		rows[s.Name] = s
	}
	seen := make(map[string]struct{})
	for _, s := range existing {
		name := s.Labels[LabelCheckout]
		if _, ok := seen[name]; ok || s.Kind != snapshots.KindCommitted || name == "" {
			continue
		}
		seen[name] = struct{}{}
		if ok, err := m.layers.HasCheckout(name); err != nil {
			return nil, err
		} else if ok {
			continue
		}
		chain, err := chainBy(s.Name, func(name string) (snapshot, error) { return rows[name], nil })
		if err == nil {
			chains = append(chains, layerIDs(chain))
		}
	}
	return chains, nil
}

func (m *hardlinkMounter) mount(ctx context.Context, r mountRequest) ([]mount.Mount, error) {
	if r.dir.staged && r.created { // staged snapshots are not mounted
		return r.stack.mount(), nil
	}
	if !r.ids.IsZero() && m.mapped != nil && !m.mapped(ctx) {
		return nil, fmt.Errorf("mount snapshot %q for a user namespace: this containerd maps no owners of hard-link checkouts; "+
			"2.0 or later or checkout = \"composefs\" is needed: %w", r.key, errdefs.ErrFailedPrecondition)
	}
	for i, hidden := 0, false; i < len(r.chain) && !hidden; i++ {
		name, err := m.checkoutOf(ctx, r.chain[i:])
		if err != nil {
			return nil, err
		}
		r.stack.lowers = append(r.stack.lowers, m.abs(name))
		if hidden, err = m.layers.HidesBelow(name); err != nil {
			return nil, err
		}
	}
	if !r.ids.IsZero() {
		// The upper directory has the mapped owner; containerd maps the directories below when it mounts them.
		r.stack.mapped = []string{"uidmap=" + r.ids.UID, "gidmap=" + r.ids.GID}
	}
	return r.stack.mount(), nil
}

// checkoutOf returns the name of the checkout of a chain's topmost layer, and rebuilds it if it is missing.
func (m *hardlinkMounter) checkoutOf(ctx context.Context, chain []content) (string, error) {
	top := chain[0]
	if top.checkout != "" {
		ok, err := m.layers.HasCheckout(top.checkout)
		if err != nil || ok {
			return top.checkout, err
		}
		log.G(ctx).WithField("snapshot", top.name).WithField("layer", top.layer.String()).Info("checkout is missing, rebuilding it")
	}
	name, added, err := m.layers.Checkout(ctx, layerIDs(chain))
	if added != (layer.Usage{}) {
		m.changed()
	}
	return name, lost(top, err)
}

func (*hardlinkMounter) unmount(string) error { return nil }

func (m *hardlinkMounter) checkoutAlone(ctx context.Context, top *layer.Layer) (layer.Usage, error) {
	depends, err := m.layers.DependsOnBelow(top)
	if err != nil || depends {
		return layer.Usage{}, err
	}
	_, added, err := m.layers.Checkout(ctx, layerIDs(nil, top.ID))
	return added, err
}

func (m *hardlinkMounter) checkout(ctx context.Context, top *layer.Layer, below []content) (string, layer.Usage, error) {
	return m.layers.Checkout(ctx, layerIDs(below, top.ID))
}

func (*hardlinkMounter) openMerged(context.Context, *atfs.Dir, []content) (*atfs.Dir, error) {
	return nil, nil
}

func (m *hardlinkMounter) openLower(_ context.Context, _ string, lower, mounts mount.Mount) (lowers []*atfs.Dir, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, atfs.CloseAll(lowers))
			lowers = nil
		}
	}()
	below := mountOption(mounts, lowerOption)
	if below == "" || below != lowerOf(lower) {
		return nil, errNotOverLower
	}
	for dir := range strings.SplitSeq(below, ":") {
		if dir == m.abs(EmptyDir) {
			continue
		}
		name, err := filepath.Rel(m.path, dir)
		if err != nil || !strings.HasPrefix(name, layer.LayersDir+"/") {
			return lowers, fmt.Errorf("lower directory %s is not of the snapshotter: %w", dir, errdefs.ErrNotImplemented)
		}
		opened, err := m.root.OpenDir(name)
		if err != nil {
			return lowers, err
		}
		lowers = append(lowers, opened)
	}
	return lowers, nil
}

// lowerOf returns the lower directories of a mount without an upper directory, in the form of the option lowerdir.
func lowerOf(m mount.Mount) string {
	if mountOption(m, "upperdir=") != "" {
		return ""
	}
	return mountOption(m, lowerOption)
}

// sweep removes everything that a daemon with composefs mounted and built: no snapshot uses it now. Checkouts are
// pruned with their layers.
func (m *hardlinkMounter) sweep(context.Context, lockedSnapshots) error {
	found, err := m.find()
	if err != nil {
		return err
	}
	discarded, err := m.execute(planMountSweep(found, liveMounts{}))
	return errors.Join(err, discarded.run())
}
