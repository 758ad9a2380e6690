package fsck

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/containerd/containerd/v2/core/content"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/inspect"
)

// CheckAndRepair checks the store, repairs it, and checks it again. It returns the report of the last check, whose
// Repaired lists the problems that are solved. If snapshots cannot be listed it repairs nothing, and the report has an
// Unread.
//
// blobs is called once, if the store has problems. It returns nil if blobs cannot be read. failed is called with the error
// of each failed repair; it may be nil.
func CheckAndRepair(ctx context.Context, s *inspect.Store, o Options, blobs func(context.Context) content.Provider, failed func(error)) (*Report, error) {
	removed, err := RemoveDamagedRefs(ctx, s)
	if err != nil {
		return nil, err
	}
	report, err := Check(ctx, s, o)
	if err != nil {
		return nil, err
	}
	report.Problems = append(removed, report.Problems...)
	if report.Unread != nil || len(report.Problems) == 0 {
		return report, nil //nolint:nilerr // the report has the error
	}
	from := blobs(ctx)
	found, known := report.Problems, make(map[string]bool)
	// A running pull may copy a damaged file, where it cannot link to it, before the file is repaired. So problems that
	// appear during a repair are repaired too.
	//
	// The loop ends: each round needs a problem that no earlier check found. A repair causes none, since it verifies
	// everything that it writes. Only a pull does, by copying an object that is still damaged. Objects that can be
	// repaired are whole after the first round, so the second finds the last copies of them. Only an object that cannot
	// be repaired for want of a blob may be copied later, and only by pulls of layers that have it: these download
	// the blob.
	for more := true; more && report.Unread == nil; {
		for _, p := range report.Problems {
			known[p.id()] = true
		}
		if err := Repair(ctx, s, report, from, o, failed); err != nil {
			return nil, err
		}
		if report, err = Check(ctx, s, o); err != nil {
			return nil, err
		}
		more = false
		for _, p := range report.Problems {
			if !known[p.id()] {
				found, more = append(found, p), true
			}
		}
	}
	left := make(map[string]bool)
	for _, p := range report.Problems {
		left[p.id()] = true
	}
	for _, p := range found {
		if !left[p.id()] {
			report.Repaired = append(report.Repaired, p)
		}
	}
	return report, nil
}

// RemoveDamagedRefs removes refs of layers that cannot be read, and returns them as problems. Repair restores them.
func RemoveDamagedRefs(ctx context.Context, s *inspect.Store) ([]Problem, error) {
	refs, err := s.Layers.RemoveDamagedRefs(ctx)
	removed := make([]Problem, 0, len(refs))
	for _, re := range refs {
		removed = append(removed, Problem{Kind: KindRef, Name: re.Ref, Err: re.Err})
	}
	return removed, err
}

// Repair repairs the problems of a report of the same store as far as possible. It imports damaged and missing layers
// from their blobs, unless from is nil, restores refs, and then repairs checkouts and rootfs images in place, even under
// running containers. When it returns everything is on the disk. Run Check to find out what was repaired.
//
// A failed repair is not an error; failed, which may be nil, is called with it. After an error or a crash the store has
// no additional damage, and another Repair continues.
func Repair(ctx context.Context, s *inspect.Store, report *Report, from content.Provider, o Options, failed func(error)) error {
	list, err := s.Snapshots(ctx)
	if err != nil {
		return err
	}
	if failed == nil {
		failed = func(error) {}
	}
	r := &repairer{
		store:    s,
		from:     from,
		bad:      make(map[objectstore.ObjectName]struct{}),
		layers:   make(map[objectstore.Checksum]struct{}),
		affected: make(map[objectstore.Checksum]struct{}),
		rootfses: make(map[string]struct{}),
		failed:   failed,
	}
	var images []inspect.Image
	if o.Images != nil {
		images = o.Images(ctx)
	}
	if r.blobs, err = blobsOf(s, list, images); err != nil {
		return err
	}
	r.collect(report)
	for id := range r.layers {
		if err := r.layer(ctx, id); err != nil {
			if ctx.Err() != nil {
				return err
			}
			failed(fmt.Errorf("layer %s cannot be rebuilt: %w", id, err))
		}
	}
	if _, err := s.Layers.RestoreRefs(ctx, unpackedFrom(list)); err != nil {
		failed(fmt.Errorf("refs cannot be restored: %w", err))
	}
	if err := r.checkouts(ctx, list); err != nil {
		return err
	}
	return s.Layers.Sync(ctx)
}

// unpackedFrom returns the layers of snapshots and the blobs that they were unpacked from.
func unpackedFrom(list []inspect.Snapshot) map[objectstore.Checksum][]digest.Digest {
	blobs := make(map[objectstore.Checksum][]digest.Digest)
	for _, sn := range list {
		if !sn.Layer.IsZero() {
			blobs[sn.Layer] = append(blobs[sn.Layer], sn.Blob)
		}
	}
	return blobs
}

// blobsOf returns the blobs of layers that refs, snapshots and the manifests of images name. The diff ID is the digest
// of the blob of a layer that is not compressed.
func blobsOf(s *inspect.Store, list []inspect.Snapshot, images []inspect.Image) (map[objectstore.Checksum][]digest.Digest, error) {
	refs, _, err := s.Repo.ReadableRefs(layer.RefPrefix)
	if err != nil {
		return nil, err
	}
	blobs := make(map[objectstore.Checksum][]digest.Digest)
	add := func(id objectstore.Checksum, blob digest.Digest) {
		if blob.Validate() == nil && !slices.Contains(blobs[id], blob) {
			blobs[id] = append(blobs[id], blob)
		}
	}
	for ref, id := range refs {
		diffID, blob := layer.ParseRef(ref)
		add(id, diffID)
		add(id, blob)
	}
	for _, sn := range list {
		add(sn.Layer, sn.Blob)
		for _, img := range images {
			add(sn.Layer, img.Blobs[sn.Chain])
		}
	}
	return blobs, nil
}

// A repairer is one call of Repair.
type repairer struct {
	store    *inspect.Store
	from     content.Provider                         // of blobs; nil if they cannot be read
	blobs    map[objectstore.Checksum][]digest.Digest // that a layer may be unpacked from
	bad      map[objectstore.ObjectName]struct{}      // damaged or missing
	layers   map[objectstore.Checksum]struct{}        // that lack something
	affected map[objectstore.Checksum]struct{}        // whose checkouts may be wrong
	rootfses map[string]struct{}                      // that are wrong
	failed   func(error)
}

// collect reads the damage from the report.
func (r *repairer) collect(report *Report) {
	for _, p := range report.Problems {
		if name, err := objectstore.ParseObjectName(p.Name); p.Kind == KindObject && err == nil {
			r.bad[name] = struct{}{}
		}
		for _, id := range p.Layers {
			r.affected[id] = struct{}{}
			if p.Kind == KindRootfs {
				r.rootfses[p.Name] = struct{}{}
			}
			if p.Kind != KindCheckout && p.Kind != KindRef && p.Kind != KindRootfs {
				r.layers[id] = struct{}{}
			}
		}
	}
}

// layer rebuilds a layer unless it is whole by now.
func (r *repairer) layer(ctx context.Context, id objectstore.Checksum) error {
	if r.whole(id) {
		return nil
	}
	if err := Remake(ctx, r.store.Layers, r.from, id, r.blobs[id], r.bad); err != nil {
		return err
	}
	objects, err := r.store.Layers.Closure(id)
	for _, o := range objects {
		delete(r.bad, o)
	}
	return err
}

// whole reports whether all objects of a layer exist and none is bad.
func (r *repairer) whole(id objectstore.Checksum) bool {
	objects, err := r.store.Layers.Closure(id)
	if err != nil {
		return false
	}
	for _, o := range objects {
		if _, bad := r.bad[o]; bad {
			return false
		}
	}
	return r.store.Layers.Whole(id) == nil
}

// checkouts puts the affected checkouts of committed snapshots right, as far as their layers are whole.
func (r *repairer) checkouts(ctx context.Context, list []inspect.Snapshot) (err error) {
	// Against a prune of the layers that are read.
	lock, err := r.store.Repo.Lock(ctx, objectstore.LockShared)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Unlock()) }()
	chains := inspect.Chains(list)
	done := make(map[string]bool)
	for _, sn := range list {
		chain := chains[sn.Key]
		if len(chain) == 0 {
			continue
		}
		if err := r.rootfs(ctx, chain); err != nil {
			return err
		}
		if !r.isAffected(ctx, chain) || !r.whole(sn.Layer) {
			continue
		}
		name := sn.Checkout
		if name == "" { // it exists only if the store had checkouts before
			if name, err = r.store.Layers.CheckoutName(ctx, chain); err != nil {
				continue
			}
			if ok, err := r.store.Layers.HasCheckout(name); err != nil || !ok {
				continue
			}
		}
		if done[name] {
			continue
		}
		done[name] = true
		if _, err := r.store.Layers.RefreshCheckout(ctx, chain); err != nil {
			if ctx.Err() != nil {
				return err
			}
			r.failed(fmt.Errorf("checkout %s cannot be repaired: %w", name, err))
		}
	}
	return nil
}

// rootfs rebuilds the rootfs image of a chain if it is wrong. Existing mounts keep the old image.
func (r *repairer) rootfs(ctx context.Context, chain []objectstore.Checksum) error {
	name := r.store.Layers.RootfsName(chain)
	if _, ok := r.rootfses[name]; !ok {
		return nil
	}
	delete(r.rootfses, name)
	if err := r.store.Layers.RemakeRootfs(ctx, chain); err != nil {
		if ctx.Err() != nil {
			return err
		}
		r.failed(fmt.Errorf("%s cannot be repaired: %w", name, err))
	}
	return nil
}

// isAffected reports whether the checkout of the last layer of a chain may be wrong: because that layer was, or one
// below that it takes something from.
func (r *repairer) isAffected(ctx context.Context, chain []objectstore.Checksum) bool {
	top := chain[len(chain)-1]
	if _, ok := r.affected[top]; ok {
		return true
	}
	l, err := r.store.Layers.Layer(ctx, top)
	if err != nil || l.Unresolved == 0 {
		return false
	}
	return slices.ContainsFunc(chain, func(id objectstore.Checksum) bool {
		_, ok := r.affected[id]
		return ok
	})
}
