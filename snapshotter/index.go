package snapshotter

import (
	"context"
	"sync"

	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// Live returns the layers that snapshots need. It takes no lock of the repository and does not read committed snapshots
// from the disk: pulls wait while a prune calls it the last time.
func (s *Snapshotter) Live(context.Context) (map[objectstore.Checksum]struct{}, error) {
	live := make(map[objectstore.Checksum]struct{})
	// Directories before rows: Commit moves layers from the former to the latter.
	applied, _, err := appliedLayers(s.snaps) // a damaged snapshot cannot be used
	if err != nil {
		return nil, err
	}
	for _, sum := range applied {
		live[sum] = struct{}{}
	}
	return live, s.committed.addTo(live)
}

// A layerIndex holds the layers of the committed snapshots, as recorded in their rows. A snapshot is added before its
// directory is removed, and dropped after its row is.
type layerIndex struct {
	mu    sync.Mutex
	byID  map[string]objectstore.Checksum // by snapshot ID: a name can be removed and reused at the same time
	count map[objectstore.Checksum]int
	bad   map[string]error // snapshots whose layers are unknown
}

func newLayerIndex() layerIndex {
	return layerIndex{
		byID:  make(map[string]objectstore.Checksum),
		count: make(map[objectstore.Checksum]int),
		bad:   make(map[string]error),
	}
}

// put adds a committed snapshot.
func (x *layerIndex) put(id string, info snapshots.Info) {
	c, err := contentOf(id, info)
	x.mu.Lock()
	defer x.mu.Unlock()
	if err != nil {
		x.bad[id] = err
		return
	}
	x.byID[id] = c.layer
	x.count[c.layer]++
}

// remove drops a snapshot.
func (x *layerIndex) remove(id string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.bad, id)
	sum, ok := x.byID[id]
	if !ok {
		return
	}
	delete(x.byID, id)
	if x.count[sum]--; x.count[sum] == 0 {
		delete(x.count, sum)
	}
}

// addTo adds the layers to live. It fails if the layer of a snapshot is unknown: nothing may be removed then.
func (x *layerIndex) addTo(live map[objectstore.Checksum]struct{}) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, err := range x.bad {
		return err
	}
	for sum := range x.count {
		live[sum] = struct{}{}
	}
	return nil
}

// refIndex holds the committed snapshots that containerd may find by chain ID and parent. It has only those whose chain
// ID this program computed: a name alone proves nothing about the content.
type refIndex struct {
	mu     sync.Mutex
	byName map[string]refKey
	count  map[refKey]int
}

type refKey struct{ ref, parent string }

// put adds a snapshot, or updates its labels.
func (x *refIndex) put(info snapshots.Info) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.drop(info.Name)
	ref := info.Labels[snapshots.LabelSnapshotRef]
	if info.Kind != snapshots.KindCommitted || ref == "" || ref != info.Labels[LabelChainID] {
		return
	}
	if x.byName == nil {
		x.byName = make(map[string]refKey)
		x.count = make(map[refKey]int)
	}
	k := refKey{ref, info.Parent}
	x.byName[info.Name] = k
	x.count[k]++
}

func (x *refIndex) remove(name string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.drop(name)
}

func (x *refIndex) drop(name string) {
	k, ok := x.byName[name]
	if !ok {
		return
	}
	delete(x.byName, name)
	if x.count[k]--; x.count[k] == 0 {
		delete(x.count, k)
	}
}

// has reports whether a snapshot has this reference and parent.
func (x *refIndex) has(ref, parent string) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.count[refKey{ref, parent}] > 0
}
