package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/go-digest"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/plugin/containerd"
)

// layerUse is what one layer takes.
type layerUse struct {
	layer.Layer
	objects []objectstore.ObjectName // what it keeps in the repository, no object twice
	own     int64                    // bytes that are its alone by nature: refs, and checkouts without the inodes that are objects
}

// owner says who needs something.
type owner int

const (
	nobody owner = -1
	many   owner = -2
)

// with is the owner of what both a and b need.
func (a owner) with(b owner) owner {
	switch {
	case a == nobody || a == b:
		return b
	case b == nobody:
		return a
	}
	return many
}

// account shares the bytes of layers out among their owners. Layers and owners are known by their place in a list.
type account struct {
	layers    []layerUse
	bytes     map[objectstore.ObjectName]int64
	elsewhere map[objectstore.ObjectName]struct{} // objects that somebody outside the store has too
	owners    []owner                             // of each layer
}

// objectOwners returns the owner of every object: that of the only layer that has it, or of all that have it if that
// is the same one.
func (a *account) objectOwners() map[objectstore.ObjectName]owner {
	owners := make(map[objectstore.ObjectName]owner)
	for i, l := range a.layers {
		for _, obj := range l.objects {
			if prev, ok := owners[obj]; ok {
				owners[obj] = prev.with(a.owners[i])
			} else {
				owners[obj] = a.owners[i]
			}
		}
	}
	return owners
}

// unique returns the bytes that each of n owners alone needs, and those that nobody needs. What somebody outside the store
// has too is neither.
func (a *account) unique(n int) (each []int64, unneeded int64) {
	each = make([]int64, n)
	add := func(o owner, bytes int64) {
		switch {
		case o >= 0:
			each[o] += bytes
		case o == nobody:
			unneeded += bytes
		}
	}
	for obj, o := range a.objectOwners() {
		if _, ok := a.elsewhere[obj]; !ok {
			add(o, a.bytes[obj])
		}
	}
	for i, l := range a.layers {
		add(a.owners[i], l.own)
	}
	return each, unneeded
}

// stored returns the bytes that a set of layers takes, nothing counted twice, and how many of them somebody outside the
// store has too.
func (a *account) stored(layers []int) (sum, elsewhere int64) {
	seen := make(map[objectstore.ObjectName]struct{})
	for _, i := range layers {
		sum += a.layers[i].own
		for _, obj := range a.layers[i].objects {
			if _, ok := seen[obj]; !ok {
				seen[obj] = struct{}{}
				sum += a.bytes[obj]
				if _, ok := a.elsewhere[obj]; ok {
					elsewhere += a.bytes[obj]
				}
			}
		}
	}
	return sum, elsewhere
}

// A group is an image, or where containerd cannot say what that is, the snapshots of one chain: a set of layers that
// comes and goes as one.
type group struct {
	target digest.Digest          // of the image's manifest or index; "" for snapshots that belong to no image
	names  []containerd.ImageName // empty for snapshots that belong to no image
	chain  digest.Digest          // chain ID of the uppermost snapshot
	keys   map[string]bool        // its committed snapshots
	layers []int                  // places in the list of layers, no layer twice
	size   int64                  // bytes of its layers' regular files
	active int                    // active snapshots and views that rest on its snapshots
}

// groupRows sorts committed snapshots into the images they belong to. Snapshots that belong to none become groups of
// their own, one for each chain that nothing committed rests on. An image of which nothing is unpacked here is left
// out.
func groupRows(rows []row, images []containerd.Image) []group {
	byKey := make(map[string]*row, len(rows))
	byChain := make(map[digest.Digest][]*row)
	hasChild := make(map[string]bool)
	for i := range rows {
		r := &rows[i]
		byKey[r.key] = r
		if r.kind != snapshots.KindCommitted {
			continue
		}
		hasChild[r.parent] = true
		if r.chain != "" {
			byChain[r.chain] = append(byChain[r.chain], r)
		}
	}

	var groups []group
	inImage := make(map[string]bool)
	for _, img := range images {
		g := group{target: img.Target, names: img.Names, keys: make(map[string]bool)}
		for _, chain := range img.Chains {
			for _, r := range byChain[chain] {
				g.chain = chain
				g.keys[r.key] = true
				inImage[r.key] = true
			}
		}
		if len(g.keys) > 0 {
			groups = append(groups, g)
		}
	}
	for i := range rows {
		r := &rows[i]
		if r.kind != snapshots.KindCommitted || inImage[r.key] || hasChild[r.key] {
			continue
		}
		g := group{chain: r.chain, keys: make(map[string]bool)}
		for ; r != nil && !g.keys[r.key]; r = byKey[r.parent] {
			g.keys[r.key] = true
		}
		groups = append(groups, g)
	}
	for i := range rows {
		if rows[i].kind == snapshots.KindCommitted {
			continue
		}
		for j := range groups {
			if groups[j].keys[rows[i].parent] {
				groups[j].active++
			}
		}
	}
	return groups
}

// place fills in the layers of each group and returns the owner of every layer.
func place(groups []group, rows []row, layers []layerUse) []owner {
	at := make(map[objectstore.Checksum]int, len(layers))
	owners := make([]owner, len(layers))
	for i, l := range layers {
		at[l.ID] = i
		owners[i] = nobody
	}
	for g := range groups {
		for _, r := range rows {
			i, ok := at[r.layer]
			if !ok || !groups[g].keys[r.key] || slices.Contains(groups[g].layers, i) {
				continue
			}
			groups[g].layers = append(groups[g].layers, i)
			groups[g].size += layers[i].Size
			owners[i] = owners[i].with(owner(g))
		}
	}
	return owners
}

// layerRefs is the directory of the refs that name layers; see package layer.
const layerRefs = "oci"

// allLayers describes the layers that refs name and those that rows do, by ID. Damaged ones are left out and named in
// the error, beside the rest.
func (s *store) allLayers(ctx context.Context, rows []row) ([]layer.Layer, error) {
	list, err := s.layers.Layers(ctx)
	errs := []error{err}
	known := make(map[objectstore.Checksum]struct{}, len(list))
	for _, l := range list {
		known[l.ID] = struct{}{}
	}
	for _, r := range rows {
		if _, ok := known[r.layer]; ok || r.layer.IsZero() {
			continue
		}
		known[r.layer] = struct{}{}
		l, err := s.layers.Layer(ctx, r.layer)
		if err == nil {
			list = append(list, *l)
		} else {
			errs = append(errs, fmt.Errorf("snapshot %q: %w", r.key, err))
		}
	}
	slices.SortFunc(list, func(a, b layer.Layer) int { return bytes.Compare(a.ID[:], b.ID[:]) })
	return list, errors.Join(errs...)
}

// layerUses says what each of a list of layers takes. Damaged ones are left out and named in the error, beside the
// rest.
func (s *store) layerUses(list []layer.Layer, use *diskUsage) ([]layerUse, error) {
	refs, err := s.repo.Refs(layerRefs)
	if err != nil {
		return nil, err
	}
	refBytes := make(map[objectstore.Checksum]int64)
	for name, id := range refs {
		refBytes[id] += use.refBytes[name]
	}
	var errs []error
	uses := make([]layerUse, 0, len(list))
	for _, l := range list {
		objs, err := s.layers.Closure(l.ID)
		if err != nil {
			errs = append(errs, fmt.Errorf("layer %s: %w", l.ID, err))
			continue
		}
		uses = append(uses, layerUse{Layer: l, objects: objs, own: refBytes[l.ID] + use.checkoutBytes[checkoutDir(l.ID)]})
	}
	return uses, errors.Join(errs...)
}
