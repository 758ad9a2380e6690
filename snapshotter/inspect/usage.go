package inspect

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
)

// Usage is the disk space of a store. All figures but the numbers of snapshots and layers are bytes.
type Usage struct {
	Snapshots int   // number of committed snapshots
	Logical   int64 // sum of the regular files of each committed snapshot

	// Allocated bytes, each inode counted once.
	Objects   int64
	Checkouts int64 // without the inodes that are objects
	Active    int64 // directories of active snapshots, without the inodes that are objects
	Metadata  int64 // everything else

	Elsewhere    int64 // objects that are also on the disk for others: repositories and deployments
	Unneeded     int64 // layers that no snapshot needs
	Unreferenced int64 // objects that no layer has
	ToFree       int64 // what a prune frees, and the background if images were removed; Unknown if damage hides it

	Groups []GroupUsage // those with most unique bytes first
}

// Unknown stands for a figure that cannot be calculated.
const Unknown = -1

// Stored returns the allocated bytes of the whole store.
func (u *Usage) Stored() int64 { return u.Objects + u.Checkouts + u.Active + u.Metadata }

// Ratio returns the logical bytes divided by the stored bytes that do not belong to active snapshots; 0 for an empty
// store.
func (u *Usage) Ratio() float64 {
	if stored := u.Stored() - u.Active; u.Logical > 0 && stored > 0 {
		return float64(u.Logical) / float64(stored)
	}
	return 0
}

// GroupUsage is the disk space of the layers of a group.
type GroupUsage struct {
	Group
	Layers    int   // number of distinct layers
	Size      int64 // regular files of the layers
	Unique    int64 // freed if only this group went
	Shared    int64 // allocated, and needed by others too
	Elsewhere int64 // part of Shared that is on the disk for others too
}

// LayerUsage is the disk space of a layer.
type LayerUsage struct {
	layer.Layer
	Snapshots int   // number of snapshots, committed or not, that have the layer
	Unique    int64 // freed if only this layer went
}

// Usage measures the store and shares its layers out among images. progress is called with the number of files met so
// far.
//
// Damaged layers are left out, and the error names them: it can come with a result.
func (s *Store) Usage(ctx context.Context, images []Image, progress func(files int64)) (*Usage, error) {
	m, damage := s.measure(ctx, progress)
	if m == nil {
		return nil, damage
	}
	groups := Groups(m.snapshots, images)
	a := newAccount(groups, m)
	for _, id := range m.staged { // needed, though by nothing that has a name yet
		if i, ok := a.at[id]; ok && a.claims[i] == none {
			a.claims[i] = shared
		}
	}
	u := newUsage(a, groups, m)
	garbage, err := s.Layers.Garbage(ctx, s.Live())
	u.ToFree = garbage.Bytes
	if err != nil {
		u.ToFree = Unknown
		// A power cut can leave a damaged ref. What it named has another, or is not needed.
		if damage == nil && !errors.Is(err, objectstore.ErrCorrupt) {
			damage = err
		}
	}
	return u, damage
}

// LayerUsage measures each layer of the store. Its progress and error are those of [Store.Usage].
func (s *Store) LayerUsage(ctx context.Context, progress func(files int64)) ([]LayerUsage, error) {
	m, damage := s.measure(ctx, progress)
	if m == nil {
		return nil, damage
	}
	a := newAccount(nil, m)
	for i := range a.claims {
		a.claims[i] = claim(i)
	}
	unique, _ := a.unique(len(m.layers))
	count := make(map[objectstore.Checksum]int)
	for _, sn := range m.snapshots {
		count[sn.Layer]++
	}
	for _, id := range m.staged {
		count[id]++
	}
	list := make([]LayerUsage, len(m.layers))
	for i, l := range m.layers {
		list[i] = LayerUsage{Layer: l.Layer, Snapshots: count[l.ID], Unique: unique[i]}
	}
	return list, damage
}

// measurement holds the contents of a store and their sizes.
type measurement struct {
	staged    map[string]objectstore.Checksum
	snapshots []Snapshot
	disk      *diskUsage
	layers    []layerUse
}

// layerUse is a layer with its files on the disk.
type layerUse struct {
	layer.Layer
	objects []objectstore.ObjectName // in the repository, no object twice
	own     int64                    // bytes of its refs, and of its checkouts without the inodes that are objects
}

// measure returns nil only if nothing could be measured.
func (s *Store) measure(ctx context.Context, progress func(files int64)) (_ *measurement, err error) {
	m := &measurement{}
	if m.staged, err = s.Staged(); err != nil {
		return nil, err
	}
	if m.snapshots, err = s.Snapshots(ctx); err != nil {
		return nil, err
	}
	if m.disk, err = s.diskUsage(ctx, progress); err != nil {
		return nil, fmt.Errorf("measure store: %w", err)
	}
	list, lost := s.AllLayers(ctx, m.snapshots)
	var damage error
	m.layers, damage = s.layerUses(list, m.disk)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return m, errors.Join(lost, damage)
}

// layerUses leaves out damaged layers, and names them in the error.
func (s *Store) layerUses(list []layer.Layer, disk *diskUsage) ([]layerUse, error) {
	refs, _, err := s.Repo.ReadableRefs(layer.RefPrefix)
	if err != nil {
		return nil, err
	}
	refBytes := make(map[objectstore.Checksum]int64)
	for name, id := range refs {
		refBytes[id] += disk.refBytes[name]
	}
	var errs []error
	uses := make([]layerUse, 0, len(list))
	for _, l := range list {
		objects, err := s.Layers.Closure(l.ID)
		if err != nil {
			errs = append(errs, fmt.Errorf("layer %s: %w", l.ID, err))
			continue
		}
		uses = append(uses, layerUse{l, objects, refBytes[l.ID] + disk.checkoutBytes[layer.CheckoutDir(l.ID)]})
	}
	return uses, errors.Join(errs...)
}

func newUsage(a *account, groups []Group, m *measurement) *Usage {
	unique, unneeded := a.unique(len(groups))
	u := &Usage{
		Objects:      m.disk.objects,
		Checkouts:    m.disk.checkouts,
		Active:       m.disk.snapshots,
		Metadata:     m.disk.metadata,
		Unneeded:     unneeded,
		Unreferenced: m.disk.objects,
	}
	for object := range a.objectClaims() {
		u.Unreferenced -= m.disk.objectBytes[object]
	}
	for object := range m.disk.elsewhere {
		u.Elsewhere += m.disk.objectBytes[object]
	}
	for _, sn := range m.snapshots {
		if sn.Kind != snapshots.KindCommitted {
			continue
		}
		u.Snapshots++
		if i, ok := a.at[sn.Layer]; ok {
			u.Logical += m.layers[i].Size
		}
	}
	for i, g := range groups {
		stored, elsewhere := a.stored(a.groups[i])
		gu := GroupUsage{
			Group: g, Layers: len(a.groups[i]), Unique: unique[i], Shared: stored - unique[i], Elsewhere: elsewhere,
		}
		for _, l := range a.groups[i] {
			gu.Size += m.layers[l].Size
		}
		u.Groups = append(u.Groups, gu)
	}
	slices.SortStableFunc(u.Groups, func(a, b GroupUsage) int { return cmp.Compare(b.Unique, a.Unique) })
	return u
}
