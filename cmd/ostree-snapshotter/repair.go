package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/plugin"
	"github.com/ostree-snapshotter/ostree-snapshotter/plugin/containerd"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/blob"
)

// fsckRepair checks the store, repairs what it can, and checks again: what it reports as repaired was found to be right.
func (c *cli) fsckRepair(ctx context.Context, opts fsckOptions) (err error) {
	s, err := c.openStore()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	before, unread, err := c.checkRefsFirst(ctx, s, opts)
	if err != nil {
		return err
	}
	if unread != nil {
		return withStatus(exitPartly, fmt.Errorf("snapshots cannot be read, so that nothing is repaired: %w", unread))
	}
	if len(before.Problems) == 0 {
		return c.showFsck(before)
	}
	id := func(p fsckProblem) string { return p.Kind + " " + p.Name }
	found, known := before.Problems, make(map[string]bool)
	after := before
	// A pull that runs meanwhile may copy a damaged file, where it cannot link to it, before that is repaired. What comes up
	// so is repaired too.
	for more := true; more && unread == nil; {
		for _, p := range after.Problems {
			known[id(p)] = true
		}
		if err := c.repair(ctx, s, after, opts.contentRoot); err != nil {
			return err
		}
		if after, unread, err = c.check(ctx, s, opts); err != nil {
			return err
		}
		more = false
		for _, p := range after.Problems {
			if !known[id(p)] {
				found, more = append(found, p), true
			}
		}
	}
	left := make(map[string]bool)
	for _, p := range after.Problems {
		left[id(p)] = true
	}
	for _, p := range found {
		if !left[id(p)] {
			after.Repaired = append(after.Repaired, p)
		}
	}
	if err := c.showFsck(after); err != nil {
		return err
	}
	switch {
	case len(after.Problems) == 0:
		return unread
	case len(after.Repaired) > 0:
		return withStatus(exitPartly, fmt.Errorf("problems that could not be repaired: %d", len(after.Problems)))
	}
	return withHint(withStatus(exitCorrupt, fmt.Errorf("problems that could not be repaired: %d", len(after.Problems))),
		"remove every image and snapshot that is named, so that what is damaged is pruned, and pull the images again")
}

// checkRefsFirst is check, after it has removed refs of ours that cannot be read: with one of them refs cannot be listed,
// and they say nothing that is lost by that.
func (c *cli) checkRefsFirst(ctx context.Context, s *store, opts fsckOptions) (_ *fsckReport, unread, err error) {
	removed, err := s.removeDamagedRefs(ctx)
	if err != nil {
		return nil, nil, err
	}
	report, unread, err := c.check(ctx, s, opts)
	if err == nil {
		report.Problems = append(removed, report.Problems...)
	}
	return report, unread, err
}

func (s *store) removeDamagedRefs(ctx context.Context) (removed []fsckProblem, err error) {
	for {
		_, err := s.repo.Refs(layerRefs)
		var re *objectstore.RefError
		if !errors.As(err, &re) || !errors.Is(err, objectstore.ErrCorrupt) || !strings.HasPrefix(re.Ref, layerRefs+"/") {
			return removed, err
		}
		if err := s.repo.DeleteRefs(ctx, re.Ref); err != nil {
			return removed, err
		}
		removed = append(removed, fsckProblem{Kind: kindRef, Name: re.Ref, Error: re.Err.Error()})
	}
}

// A repairer makes layers again.
type repairer struct {
	store    *store
	source   content.Provider // nil if blobs cannot be read
	gzip     *blob.Decompressor
	blobs    map[objectstore.Checksum][]digest.Digest // that a layer may be unpacked from
	bad      map[objectstore.ObjectName]struct{}      // damaged or missing
	layers   map[objectstore.Checksum]struct{}        // that lack something
	affected map[objectstore.Checksum]struct{}        // whose checkouts may be wrong
	rootfses map[string]struct{}                      // that are wrong
	note     func(format string, args ...any)
}

func (c *cli) repair(ctx context.Context, s *store, report *fsckReport, contentRoot string) error {
	// What the import of a blob logs is for the daemon.
	ctx = containerd.Silent(ctx)
	rows, err := s.rows(ctx, c.daemonAddress)
	if err != nil {
		return err
	}
	r := &repairer{
		store:    s,
		bad:      make(map[objectstore.ObjectName]struct{}),
		layers:   make(map[objectstore.Checksum]struct{}),
		affected: make(map[objectstore.Checksum]struct{}),
		rootfses: make(map[string]struct{}),
		note:     c.note,
	}
	if r.source, err = c.contentRoot(ctx, s.cfg, contentRoot); err != nil {
		c.note("blobs cannot be read, so that only checkouts and refs are repaired: %v", err)
	}
	if r.gzip, err = blob.NewDecompressor(ctx, s.cfg.Decompress.Gzip); err != nil {
		return err
	}
	images, _ := c.images(ctx, s.cfg)
	if r.blobs, err = s.blobsOf(rows, images); err != nil {
		return err
	}
	r.collect(report)
	for id := range r.layers {
		if err := r.layer(ctx, id); err != nil {
			if ctx.Err() != nil {
				return err
			}
			c.note("layer %s cannot be made again: %v", id, err)
		}
	}
	if _, err := s.layers.RestoreRefs(ctx, blobs(rows)); err != nil {
		c.note("refs cannot be restored: %v", err)
	}
	if err := r.checkouts(ctx, rows); err != nil {
		return err
	}
	return s.layers.Sync(ctx)
}

// blobs returns the layers of snapshots, and the blobs that they were unpacked from.
func blobs(rows []row) map[objectstore.Checksum][]digest.Digest {
	blobs := make(map[objectstore.Checksum][]digest.Digest)
	for _, r := range rows {
		if !r.layer.IsZero() {
			blobs[r.layer] = append(blobs[r.layer], r.blob)
		}
	}
	return blobs
}

// contentRoot returns the directory of containerd's content store: blobs of every namespace are there.
func (c *cli) contentRoot(ctx context.Context, cfg *plugin.Config, flag string) (content.Provider, error) {
	dir := cmp.Or(flag, cfg.Containerd.ContentRoot)
	if dir != "" {
		return blob.Files(dir), nil
	}
	client, err := c.dialContainerd(cfg)
	if err != nil {
		return nil, err
	}
	dir, err = client.ContentRoot(ctx)
	if errors.Is(err, containerd.ErrNoContentRoot) {
		err = fmt.Errorf("%w: --content-root does", err)
	}
	if err = errors.Join(err, client.Close()); err != nil {
		return nil, err
	}
	return blob.Files(dir), nil
}

// chainsOf returns the layers that each committed snapshot consists of.
func chainsOf(rows []row) map[string][]objectstore.Checksum {
	byKey := make(map[string]*row, len(rows))
	for i := range rows {
		byKey[rows[i].key] = &rows[i]
	}
	chains := make(map[string][]objectstore.Checksum)
	for _, r := range rows {
		if r.kind != snapshots.KindCommitted {
			continue
		}
		var chain []objectstore.Checksum
		for cur := &r; cur != nil && len(chain) <= len(rows); cur = byKey[cur.parent] {
			chain = append(chain, cur.layer)
		}
		slices.Reverse(chain)
		chains[r.key] = chain
	}
	return chains
}

// blobsOf finds the blobs of layers: those that refs say, those that snapshots say, and those that the manifests of images
// say. The diff ID is the digest of the blob of a layer that is not compressed.
func (s *store) blobsOf(rows []row, images []containerd.Image) (map[objectstore.Checksum][]digest.Digest, error) {
	refs, err := s.repo.Refs(layerRefs)
	if err != nil {
		return nil, err
	}
	blobs := make(map[objectstore.Checksum][]digest.Digest)
	add := func(id objectstore.Checksum, blob digest.Digest) {
		if blob.Validate() == nil && !slices.Contains(blobs[id], blob) {
			blobs[id] = append(blobs[id], blob)
		}
	}
	for name, id := range refs {
		if kind := path.Dir(name); kind == layerRefs+"/blob" || kind == layerRefs+"/diff" {
			add(id, digest.NewDigestFromEncoded(digest.SHA256, path.Base(name)))
		}
	}
	for _, r := range rows {
		add(r.layer, r.blob)
		for _, img := range images {
			add(r.layer, img.Blobs[r.chain])
		}
	}
	return blobs, nil
}

// collect takes from the report what is to be made again.
func (r *repairer) collect(report *fsckReport) {
	for _, p := range report.Problems {
		if name, err := objectstore.ParseObjectName(p.Name); p.Kind == kindObject && err == nil {
			r.bad[name] = struct{}{}
		}
		for id := range p.layers {
			r.affected[id] = struct{}{}
			if p.Kind == kindRootfs {
				r.rootfses[p.Name] = struct{}{}
			}
			if p.Kind != kindCheckout && p.Kind != kindRef && p.Kind != kindRootfs {
				r.layers[id] = struct{}{}
			}
		}
	}
}

// layer unpacks a layer again if something of it is still bad.
func (r *repairer) layer(ctx context.Context, id objectstore.Checksum) error {
	if r.whole(id) {
		return nil
	}
	if r.source == nil {
		return errors.New("no blobs")
	}
	errs := []error{errors.New("its blob is not there")}
	for _, name := range r.blobs[id] {
		held, err := blob.Import(ctx, r.store.layers, r.source, r.gzip, ocispec.Descriptor{Digest: name}, r.bad)
		if err != nil {
			errs = append(errs, fmt.Errorf("import blob %s: %w", name, err))
			continue
		}
		made := held.ID
		if err := held.Release(); err != nil {
			return err
		}
		if made == id {
			return r.forget(id)
		}
		errs = append(errs, fmt.Errorf("blob %s is that of layer %s", name, made))
	}
	return errors.Join(errs...)
}

// whole reports whether all objects of a layer are there and right.
func (r *repairer) whole(id objectstore.Checksum) bool {
	objects, err := r.store.layers.Closure(id)
	if err != nil {
		return false
	}
	for _, o := range objects {
		if _, bad := r.bad[o]; bad {
			return false
		}
		if ok, err := r.store.repo.Has(o.Type, o.Checksum); err != nil || !ok {
			return false
		}
	}
	return true
}

// forget takes the objects of a layer that was made again off the list of bad ones.
func (r *repairer) forget(id objectstore.Checksum) error {
	objects, err := r.store.layers.Closure(id)
	for _, o := range objects {
		delete(r.bad, o)
	}
	return err
}

// checkouts puts the affected checkouts of committed snapshots right, as far as their layers are whole.
func (r *repairer) checkouts(ctx context.Context, rows []row) (err error) {
	// Nothing is pruned meanwhile: what is read of the layers stays.
	lock, err := r.store.repo.Lock(ctx, objectstore.LockShared)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Unlock()) }()
	chains := chainsOf(rows)
	done := make(map[string]bool)
	for _, row := range rows {
		chain := chains[row.key]
		if len(chain) == 0 {
			continue
		}
		if err := r.rootfs(ctx, chain); err != nil {
			return err
		}
		if !r.isAffected(ctx, chain) || !r.whole(row.layer) {
			continue
		}
		name := row.checkout
		if name == "" { // there is one only if the store had checkouts before
			if name, err = r.store.layers.CheckoutName(ctx, chain); err != nil {
				continue
			}
			if ok, err := r.store.layers.HasCheckout(name); err != nil || !ok {
				continue
			}
		}
		if done[name] {
			continue
		}
		done[name] = true
		if _, err := r.store.layers.RefreshCheckout(ctx, chain); err != nil {
			if ctx.Err() != nil {
				return err
			}
			r.note("checkout %s cannot be repaired: %v", name, err)
		}
	}
	return nil
}

// rootfs makes the rootfs image of a chain again if it is wrong. Where it is mounted it stays as it is until that is unmounted.
func (r *repairer) rootfs(ctx context.Context, chain []objectstore.Checksum) error {
	name := r.store.layers.RootfsName(chain)
	if _, ok := r.rootfses[name]; !ok {
		return nil
	}
	delete(r.rootfses, name)
	if err := r.store.layers.RemakeRootfs(ctx, chain); err != nil {
		if ctx.Err() != nil {
			return err
		}
		r.note("%s cannot be repaired: %v", name, err)
	}
	return nil
}

// isAffected reports whether the checkout of the last layer of a chain may be wrong: the layer was, or one below that it
// takes something from.
func (r *repairer) isAffected(ctx context.Context, chain []objectstore.Checksum) bool {
	top := chain[len(chain)-1]
	if _, ok := r.affected[top]; ok {
		return true
	}
	l, err := r.store.layers.Layer(ctx, top)
	if err != nil || l.Unresolved == 0 {
		return false
	}
	return slices.ContainsFunc(chain, func(id objectstore.Checksum) bool {
		_, ok := r.affected[id]
		return ok
	})
}
