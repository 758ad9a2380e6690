package inspect

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/go-digest"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter"
)

// A Store is a store to inspect. Its methods may be called by many goroutines at once.
type Store struct {
	Root   *atfs.Dir
	Repo   *objectstore.Repo
	Layers *layer.Store
	Daemon string // socket of the daemon that may use the store
}

// A Snapshot is a row of a store's metadata.
type Snapshot struct {
	ID       string // its directory's name; "" if the daemon listed it
	Key      string // containerd's key: namespace/number/name
	Parent   string // key; "" for none
	Kind     snapshots.Kind
	Chain    digest.Digest        // chain ID that a committed snapshot was made for; "" if unknown
	Layer    objectstore.Checksum // zero for an active snapshot, and if Damage is set
	Blob     digest.Digest        // that the layer was unpacked from; "" if unknown
	Checkout string               // path below the root; "" for none
	Damage   error                // why the layer of a committed snapshot is unknown
}

// A LostMetadataError reports that a store's metadata.db is missing although the store had one.
type LostMetadataError struct{ File string }

func (e *LostMetadataError) Error() string { return e.File + " is lost" }

// Snapshots lists the snapshots of the store. A store that never had one has none.
//
// If metadata.db is damaged the error is a [snapshotter.DamagedMetadataError], if it is lost a [LostMetadataError], and
// if it is locked and the daemon does not answer a [LockedError].
func (s *Store) Snapshots(ctx context.Context) ([]Snapshot, error) {
	list, err := s.snapshots(ctx)
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	return list, nil
}

func (s *Store) snapshots(ctx context.Context) (list []Snapshot, err error) {
	if exists, err := s.Root.Exists(snapshotter.MetadataFile); err != nil || !exists {
		return nil, errors.Join(err, s.checkNew())
	}
	err = snapshotter.WalkMetadata(ctx, s.Root, func(id string, info snapshots.Info) error {
		list = append(list, newSnapshot(id, info))
		return nil
	})
	if !errors.Is(err, bolterrors.ErrTimeout) {
		return list, err
	}
	list = nil
	err = s.askDaemon(ctx, func(sn snapshots.Snapshotter) error {
		return sn.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
			list = append(list, newSnapshot("", info))
			return nil
		})
	})
	return list, err
}

// checkNew returns an error if the store had a metadata.db once: nothing must be taken for garbage then.
func (s *Store) checkNew() error {
	lost, err := s.Root.Exists(snapshotter.MetadataCopy)
	if err != nil || !lost {
		return err
	}
	return &LostMetadataError{filepath.Join(s.Root.Path(), snapshotter.MetadataFile)}
}

func newSnapshot(id string, info snapshots.Info) Snapshot {
	s := Snapshot{
		ID: id, Key: info.Name, Parent: info.Parent, Kind: info.Kind,
		Blob: digest.Digest(info.Labels[snapshotter.LabelBlob]), Checkout: info.Labels[snapshotter.LabelCheckout],
	}
	if info.Kind != snapshots.KindCommitted {
		return s
	}
	s.Layer, s.Damage = snapshotter.LayerOf(info)
	// A client that unpacks by itself sets no label, but names the snapshot after its chain all the same.
	for _, text := range []string{info.Labels[snapshotter.LabelChainID], info.Labels[snapshots.LabelSnapshotRef], s.name()} {
		if d, err := digest.Parse(text); err == nil {
			s.Chain = d
			break
		}
	}
	return s
}

// name returns the part of the key that containerd's client chose.
func (s *Snapshot) name() string {
	parts := strings.SplitN(s.Key, "/", 3)
	return parts[len(parts)-1]
}

// Staged returns the layers of active snapshots that no row names yet, by snapshot ID. Snapshots with damage to the
// file that names the layer are left out: nothing can use them.
func (s *Store) Staged() (map[string]objectstore.Checksum, error) {
	staged, _, err := snapshotter.AppliedLayers(s.Root)
	return staged, err
}

// Live returns the function that tells a prune which layers are in use. Directories of snapshots with IDs in orphans do
// not count.
//
// It fails if the layer of a committed snapshot is unknown, as [snapshotter.Snapshotter.Live] does: nothing may be
// removed then.
func (s *Store) Live(orphans ...string) layer.Live {
	return func(ctx context.Context) (map[objectstore.Checksum]struct{}, error) {
		// Before the rows, always: a commit moves the layer from the directory to the row, so a layer that is in the
		// one no longer is in the other.
		staged, err := s.Staged()
		if err != nil {
			return nil, err
		}
		list, err := s.Snapshots(ctx)
		if err != nil {
			return nil, err
		}
		live := make(map[objectstore.Checksum]struct{})
		for id, sum := range staged {
			if !slices.Contains(orphans, id) {
				live[sum] = struct{}{}
			}
		}
		for _, sn := range list {
			if sn.Damage != nil {
				return nil, sn.Damage
			}
			if !sn.Layer.IsZero() {
				live[sn.Layer] = struct{}{}
			}
		}
		return live, nil
	}
}

// Chains returns the layers of each committed snapshot and those below it, lowest first, by key. A missing parent ends
// a chain.
func Chains(list []Snapshot) map[string][]objectstore.Checksum {
	byKey := index(list)
	chains := make(map[string][]objectstore.Checksum)
	for i := range list {
		if list[i].Kind == snapshots.KindCommitted {
			chains[list[i].Key] = chainOf(&list[i], byKey)
		}
	}
	return chains
}

// index returns the snapshots of a list by key.
func index(list []Snapshot) map[string]*Snapshot {
	byKey := make(map[string]*Snapshot, len(list))
	for i := range list {
		byKey[list[i].Key] = &list[i]
	}
	return byKey
}

// chainOf follows parents, at most once around a circle.
func chainOf(top *Snapshot, byKey map[string]*Snapshot) []objectstore.Checksum {
	var chain []objectstore.Checksum
	for s := top; s != nil && len(chain) <= len(byKey); s = byKey[s.Parent] {
		chain = append(chain, s.Layer)
	}
	slices.Reverse(chain)
	return chain
}
