package inspect

import "github.com/ostree-snapshotter/ostree-snapshotter/objectstore"

// A claim names the owner of something, by index, if it has exactly one.
type claim int

const (
	none   claim = -1
	shared claim = -2
)

// with returns the claim to something that both a and b claim.
func (a claim) with(b claim) claim {
	switch {
	case a == none || a == b:
		return b
	case b == none:
		return a
	}
	return shared
}

// An account shares the bytes of layers out among their owners. Layers and groups are known by their index.
type account struct {
	layers []layerUse
	disk   *diskUsage
	at     map[objectstore.Checksum]int // index of each layer
	groups [][]int                      // layers of each group, no layer twice
	claims []claim                      // of groups, by layer
}

// newAccount finds the layers of groups. It takes time linear in the snapshots of the groups.
func newAccount(groups []Group, m *measurement) *account {
	a := &account{
		layers: m.layers,
		disk:   m.disk,
		at:     make(map[objectstore.Checksum]int, len(m.layers)),
		groups: make([][]int, len(groups)),
		claims: make([]claim, len(m.layers)),
	}
	for i, l := range m.layers {
		a.at[l.ID] = i
		a.claims[i] = none
	}
	type member struct{ group, layer int }
	seen := make(map[member]struct{})
	with := groupsOf(groups)
	for _, sn := range m.snapshots {
		i, ok := a.at[sn.Layer]
		if !ok {
			continue
		}
		for _, g := range with[sn.Key] {
			if _, ok := seen[member{g, i}]; ok {
				continue
			}
			seen[member{g, i}] = struct{}{}
			a.groups[g] = append(a.groups[g], i)
			a.claims[i] = a.claims[i].with(claim(g))
		}
	}
	return a
}

// objectClaims returns the claim to each object of a layer: that of the layers that have it.
func (a *account) objectClaims() map[objectstore.ObjectName]claim {
	claims := make(map[objectstore.ObjectName]claim)
	for i, l := range a.layers {
		for _, object := range l.objects {
			if prev, ok := claims[object]; ok {
				claims[object] = prev.with(a.claims[i])
			} else {
				claims[object] = a.claims[i]
			}
		}
	}
	return claims
}

// unique returns the unshared bytes of each of n owners, and the unclaimed bytes. Inodes with names outside the store
// count as neither.
func (a *account) unique(n int) (each []int64, unclaimed int64) {
	each = make([]int64, n)
	add := func(c claim, bytes int64) {
		switch {
		case c >= 0:
			each[c] += bytes
		case c == none:
			unclaimed += bytes
		}
	}
	for object, c := range a.objectClaims() {
		if _, ok := a.disk.elsewhere[object]; !ok {
			add(c, a.disk.objectBytes[object])
		}
	}
	for i, l := range a.layers {
		add(a.claims[i], l.own)
	}
	return each, unclaimed
}

// stored returns the bytes of a set of layers, each object counted once, and the part of them whose inodes have names
// outside the store.
func (a *account) stored(layers []int) (sum, elsewhere int64) {
	seen := make(map[objectstore.ObjectName]struct{})
	for _, i := range layers {
		sum += a.layers[i].own
		for _, object := range a.layers[i].objects {
			if _, ok := seen[object]; ok {
				continue
			}
			seen[object] = struct{}{}
			sum += a.disk.objectBytes[object]
			if _, ok := a.disk.elsewhere[object]; ok {
				elsewhere += a.disk.objectBytes[object]
			}
		}
	}
	return sum, elsewhere
}
