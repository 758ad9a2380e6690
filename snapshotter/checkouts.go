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
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/composefsmount"
)

// checkouts make the layers of a chain appear as directories over which a snapshot can be mounted.
type checkouts interface {
	// mounts returns the mounts of a snapshot, of whose stack it fills in what is below: a chain, topmost first, with the layer
	// that the snapshot itself was given. The snapshot's row is there.
	mounts(ctx context.Context, st stack, chain []content, m made) ([]mount.Mount, error)
	// commit does for a layer, over the chain below it, topmost first, what is done when a snapshot is committed, and returns
	// the name of its checkout, if there is one, and what that added to the store. A layer that cannot be shown over this
	// chain is an error.
	commit(ctx context.Context, below []content, top *layer.Layer) (checkout string, added layer.Usage, err error)
	// applied is commit for a layer that was applied to a snapshot whose parent need not be known yet.
	applied(ctx context.Context, top *layer.Layer) (added layer.Usage, err error)
	// merged opens what an upper directory and the chain below it show together, if the upper directory is not complete by
	// itself; else it is nil.
	merged(ctx context.Context, chain []content, upper *atfs.Dir) (*atfs.Dir, error)
	// release lets go of the directories of an active snapshot, which was removed or is being committed.
	release(id string) error
	// openLower opens what is below an active snapshot, as directories, topmost first, if that is what lower mounts. The
	// upper directory is complete by itself then. Otherwise the error is an errdefs.ErrNotImplemented.
	openLower(ctx context.Context, id string, lower, mounts mount.Mount) ([]*atfs.Dir, error)
	// committed takes notice of a snapshot that was committed, with its chain, topmost first.
	committed(name, parent string, chain []content)
	// notRun takes notice that a committed snapshot is not one to run anything on: a layer is being unpacked on it, or it was
	// removed.
	notRun(name string)
	close()
}

// links are checkouts made of hard links: a directory for each layer.
type links struct{ s *Snapshotter }

func (k *links) mounts(ctx context.Context, st stack, chain []content, m made) ([]mount.Mount, error) {
	for i, c := range chain {
		name, err := k.checkout(ctx, chain[i:], c)
		if err != nil {
			return nil, err
		}
		st.lowers = append(st.lowers, filepath.Join(k.s.path, name))
	}
	if !m.ids.IsZero() {
		// The upper directory is theirs already; containerd maps the directories below when it mounts.
		st.mapped = []string{"uidmap=" + m.ids.UID, "gidmap=" + m.ids.GID}
	}
	return st.mounts(), nil
}

// checkout returns the name of the checkout of a chain's topmost layer. One that is missing is made.
func (k *links) checkout(ctx context.Context, chain []content, c content) (string, error) {
	if c.checkout != "" {
		ok, err := k.s.layers.HasCheckout(c.checkout)
		if err != nil || ok {
			return c.checkout, err
		}
		log.G(ctx).WithField("snapshot", c.name).WithField("layer", c.layer.String()).Info("checkout is missing, making it again")
	}
	name, _, err := k.s.layers.Checkout(ctx, layerIDs(chain))
	return name, lost(c, err)
}

func (k *links) commit(ctx context.Context, below []content, top *layer.Layer) (string, layer.Usage, error) {
	return k.s.layers.Checkout(ctx, layerIDs(below, top.ID))
}

func (k *links) applied(ctx context.Context, top *layer.Layer) (layer.Usage, error) {
	if top.Unresolved > 0 {
		return layer.Usage{}, nil // the layers below are known at Commit
	}
	_, added, err := k.s.layers.Checkout(ctx, []objectstore.Checksum{top.ID})
	return added, err
}

func (*links) merged(context.Context, []content, *atfs.Dir) (*atfs.Dir, error) { return nil, nil }

func (*links) release(string) error { return nil }

func (k *links) openLower(_ context.Context, _ string, lower, mounts mount.Mount) (lowers []*atfs.Dir, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, atfs.CloseAll(lowers))
			lowers = nil
		}
	}()
	below := mountOption(mounts, lowerOption)
	if below == "" || below != lowerOf(lower) {
		return nil, fmt.Errorf("mounts are not a snapshot and what is below it: %w", errdefs.ErrNotImplemented)
	}
	for dir := range strings.SplitSeq(below, ":") {
		name, err := filepath.Rel(k.s.path, dir)
		if err != nil || !strings.HasPrefix(name, layer.LayersDir+"/") {
			return lowers, fmt.Errorf("lower directory %s is not of the snapshotter: %w", dir, errdefs.ErrNotImplemented)
		}
		opened, err := k.s.root.OpenDir(name)
		if err != nil {
			return lowers, err
		}
		lowers = append(lowers, opened)
	}
	return lowers, nil
}

// lowerOf returns what is below in a mount without an upper directory, as the option lowerdir has it.
func lowerOf(m mount.Mount) string {
	if m.Type == "bind" {
		return m.Source
	}
	if mountOption(m, "upperdir=") != "" {
		return ""
	}
	return mountOption(m, lowerOption)
}

func (*links) committed(string, string, []content) {}
func (*links) notRun(string)                       {}
func (*links) close()                              {}

// mappingOf returns what the labels of a snapshot say about the user namespace that it is for.
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
