package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
)

// hardlinkMounter mounts snapshots over hard-link checkouts: one directory per layer, created at Commit.
type hardlinkMounter struct{ mountTree }

func newHardlinkMounter(t mountTree) *hardlinkMounter { return &hardlinkMounter{t} }

// start logs how many checkouts are missing.
func (m *hardlinkMounter) start(ctx context.Context, existing []snapshot) error {
	missing := 0
	seen := make(map[string]struct{})
	for _, s := range existing {
		name := s.Labels[LabelCheckout]
		if _, ok := seen[name]; ok || s.Kind != snapshots.KindCommitted || name == "" {
			continue
		}
		seen[name] = struct{}{}
		ok, err := m.layers.HasCheckout(name)
		if err != nil {
			return err
		}
		if !ok {
			missing++
		}
	}
	if missing > 0 {
		log.G(ctx).WithField("checkouts", missing).Warn("checkouts of layers are missing: they are rebuilt when used")
	}
	return nil
}

func (m *hardlinkMounter) mount(ctx context.Context, r mountRequest) ([]mount.Mount, error) {
	for i := range r.chain {
		name, err := m.checkoutOf(ctx, r.chain[i:])
		if err != nil {
			return nil, err
		}
		r.stack.lowers = append(r.stack.lowers, m.abs(name))
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
	name, _, err := m.layers.Checkout(ctx, layerIDs(chain))
	return name, lost(top, err)
}

func (*hardlinkMounter) unmount(string) error { return nil }

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
