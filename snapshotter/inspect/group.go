package inspect

import (
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/go-digest"
)

// An Image describes an image of containerd as far as the store is concerned.
type Image struct {
	Names  []string                        // each as NAMESPACE/NAME
	Chains []digest.Digest                 // chain IDs of the layers of its manifests, for all platforms, lowest first
	Blobs  map[digest.Digest]digest.Digest // blob of the uppermost layer, by chain ID
}

// A Group is the committed snapshots of an image or, without an image, of one chain: they come and go together.
type Group struct {
	Image  int                 // index in the list of images; -1 for none
	Chain  digest.Digest       // chain ID of the uppermost snapshot
	Keys   map[string]struct{} // keys of the snapshots
	Active int                 // number of active snapshots and views on top of them
}

// Groups assigns committed snapshots to the images that have their chain IDs. Those of no image form a group for each
// chain that no committed snapshot rests on. An image without snapshots has no group.
func Groups(list []Snapshot, images []Image) []Group {
	byKey := index(list)
	byChain := make(map[digest.Digest][]*Snapshot)
	hasChild := make(map[string]bool)
	for i := range list {
		s := &list[i]
		if s.Kind != snapshots.KindCommitted {
			continue
		}
		hasChild[s.Parent] = true
		if s.Chain != "" {
			byChain[s.Chain] = append(byChain[s.Chain], s)
		}
	}

	var groups []Group
	inImage := make(map[string]bool)
	for i, img := range images {
		g := Group{Image: i, Keys: make(map[string]struct{})}
		for _, chain := range img.Chains {
			for _, s := range byChain[chain] {
				g.Chain = chain
				g.Keys[s.Key] = struct{}{}
				inImage[s.Key] = true
			}
		}
		if len(g.Keys) > 0 {
			groups = append(groups, g)
		}
	}
	for i := range list {
		s := &list[i]
		if s.Kind != snapshots.KindCommitted || inImage[s.Key] || hasChild[s.Key] {
			continue
		}
		g := Group{Image: -1, Chain: s.Chain, Keys: make(map[string]struct{})}
		for ; s != nil; s = byKey[s.Parent] {
			if _, ok := g.Keys[s.Key]; ok { // parents in a circle
				break
			}
			g.Keys[s.Key] = struct{}{}
		}
		groups = append(groups, g)
	}
	with := groupsOf(groups)
	for i := range list {
		if list[i].Kind == snapshots.KindCommitted {
			continue
		}
		for _, g := range with[list[i].Parent] {
			groups[g].Active++
		}
	}
	return groups
}

// groupsOf returns the groups that have each key, by index.
func groupsOf(groups []Group) map[string][]int {
	with := make(map[string][]int)
	for i := range groups {
		for key := range groups[i].Keys {
			with[key] = append(with[key], i)
		}
	}
	return with
}
