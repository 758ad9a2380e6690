package fsck

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/panics"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/inspect"
)

// Options configure [Check] and [Repair]. The zero value is valid.
type Options struct {
	// Deep also proves each layer back to its diff ID.
	Deep bool
	// Composefs reports that the daemon runs containers on composefs images, so that snapshots need no checkouts.
	Composefs bool
	// Images returns the images whose names a report gives. It is called at most once by each Check, and only if there
	// is a problem. nil is no images.
	Images func(context.Context) []inspect.Image
	// Progress is told how many steps of a stage are done. Many goroutines may call it at once. nil is nobody.
	Progress func(stage Stage, done, total int64)
}

// Stage is a part of a check.
type Stage int

// Stages, in the order of a check.
const (
	StageObjects Stage = iota // hashing objects
	StageLayers               // checking, and with Options.Deep proving, layers
)

// Kind is the kind of thing that has a problem.
type Kind string

// Kinds of problems.
const (
	KindObject   Kind = "object"
	KindRef      Kind = "ref"
	KindLayer    Kind = "layer"
	KindSnapshot Kind = "snapshot"
	KindCheckout Kind = "checkout"
	KindRootfs   Kind = "rootfs"
)

// A Problem is something damaged or missing, and what it affects.
type Problem struct {
	Kind      Kind
	Name      string // of the object, ref, layer, snapshot, checkout or image
	Err       error
	Layers    []objectstore.Checksum // ordered; those that are damaged by it
	Snapshots []string               // keys, ordered; those that have one of the layers, or rest on one that has
	Images    []string               // names, ordered; those of the snapshots
}

// id identifies a problem in the reports of several checks.
func (p *Problem) id() string { return string(p.Kind) + " " + p.Name }

// A Report is the result of a check.
type Report struct {
	Objects   int // number of objects checked; so below
	Layers    int
	Snapshots int
	Partial   int       // commits that an interrupted pull of ostree's left incomplete; not a problem
	Deep      *Deep     // nil without Options.Deep
	Problems  []Problem // ordered by kind and name
	Repaired  []Problem // of the report that was repaired; see [CheckAndRepair]
	Unread    error     // why snapshots were not checked; nil if they were
}

// Deep is the result of proving layers back to their diff IDs.
type Deep struct {
	Proved      int
	ProvedBytes int64 // of their tars
	WithoutTar  int   // layers made of directories, which have no diff ID
}

// Check checks the whole store and changes nothing. Problems, and snapshots that cannot be listed, are in the report;
// the error is about Check itself.
func Check(ctx context.Context, s *inspect.Store, o Options) (*Report, error) {
	if o.Progress == nil {
		o.Progress = func(Stage, int64, int64) {}
	}
	objects, err := s.Repo.Fsck(ctx, objectstore.FsckOptions{
		Progress: func(done, total int64) { o.Progress(StageObjects, done, total) },
	})
	if err != nil {
		return nil, fmt.Errorf("check repository: %w", err)
	}
	k := &checker{store: s, composefs: o.Composefs, bad: make(map[objectstore.ObjectName]bool)}
	if o.Deep {
		k.deep = new(Deep)
	}
	k.objects(objects)

	list, unread := s.Snapshots(ctx)
	// The error names layers that are left out: the check of the repository, or that of the snapshots, names them too.
	layers, _ := s.AllLayers(ctx, list)
	err = k.layers(ctx, layers, list, func(done, total int64) { o.Progress(StageLayers, done, total) })
	if err != nil {
		return nil, err
	}
	if len(k.problems) > 0 {
		if err := k.forgetRemoved(ctx, unread == nil); err != nil {
			return nil, err
		}
	}
	var images []inspect.Image
	if len(k.problems) > 0 && o.Images != nil {
		images = o.Images(ctx)
	}
	return &Report{
		Objects:   objects.Objects,
		Layers:    len(layers),
		Snapshots: len(list),
		Partial:   objects.Partial,
		Deep:      k.deep,
		Problems:  k.blame(layers, list, images),
		Unread:    unread,
	}, nil
}

// checker collects problems.
type checker struct {
	store     *inspect.Store
	composefs bool

	bad map[objectstore.ObjectName]bool // objects that have a problem of their own

	mu       sync.Mutex
	problems []problem
	deep     *Deep // nil without Options.Deep
}

// problem is a Problem whose layers are being collected.
type problem struct {
	Problem
	layers map[objectstore.Checksum]struct{}
}

func (k *checker) add(kind Kind, name string, err error, layers ...objectstore.Checksum) {
	p := problem{Problem{Kind: kind, Name: name, Err: err}, make(map[objectstore.Checksum]struct{})}
	for _, id := range layers {
		if !id.IsZero() {
			p.layers[id] = struct{}{}
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.problems = append(k.problems, p)
}

// objects adds the problems that the repository's own check found.
func (k *checker) objects(r *objectstore.FsckReport) {
	for _, p := range r.Problems {
		if p.Ref != "" {
			k.add(KindRef, p.Ref, p.Err, p.Checksum)
			continue
		}
		name := objectstore.ObjectName{Type: p.Type, Checksum: p.Checksum}
		k.bad[name] = true
		k.add(KindObject, name.String(), p.Err)
	}
}

// layers checks each layer and then its checkouts. A snapshot whose layer does not exist is a problem of the snapshot.
func (k *checker) layers(ctx context.Context, layers []layer.Layer, list []inspect.Snapshot, tick func(done, total int64)) error {
	checkouts := make(map[objectstore.Checksum]map[string][]objectstore.Checksum)
	chains := inspect.Chains(list)
	known := make(map[objectstore.Checksum]struct{}, len(layers))
	for _, l := range layers {
		known[l.ID] = struct{}{}
	}
	for _, sn := range list {
		chain, ok := chains[sn.Key]
		switch {
		case !ok:
			continue
		case sn.Damage != nil:
			k.add(KindSnapshot, sn.Key, sn.Damage)
			continue
		}
		if _, ok := known[sn.Layer]; !ok {
			k.add(KindSnapshot, sn.Key, fmt.Errorf("layer %s: %w", sn.Layer, objectstore.ErrNotExist), sn.Layer)
		}
		name := k.checkoutOf(ctx, sn, chain)
		if name == "" {
			continue
		}
		if checkouts[sn.Layer] == nil {
			checkouts[sn.Layer] = make(map[string][]objectstore.Checksum)
		}
		checkouts[sn.Layer][name] = chain
	}

	if err := k.refs(layers); err != nil {
		return err
	}
	if err := k.directories(list); err != nil {
		return err
	}

	g, ctx := panics.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	var done atomic.Int64
	for _, l := range layers {
		g.Go(func() error {
			k.layer(ctx, l, checkouts[l.ID])
			tick(done.Add(1), int64(len(layers)))
			return ctx.Err()
		})
	}
	g.Go(func() error { return k.rootfses(ctx, chains) })
	return g.Wait()
}

// checkoutOf returns the name of a snapshot's checkout, "" if there need not be one.
func (k *checker) checkoutOf(ctx context.Context, sn inspect.Snapshot, chain []objectstore.Checksum) string {
	if sn.Checkout != "" && !k.composefs {
		return sn.Checkout
	}
	name, err := k.store.Layers.CheckoutName(ctx, chain)
	if err != nil {
		return "" // the layer has a problem
	}
	if ok, err := k.store.Layers.HasCheckout(name); err != nil || !ok {
		return ""
	}
	return name
}

// rootfses checks those rootfs images of chains that exist.
func (k *checker) rootfses(ctx context.Context, chains map[string][]objectstore.Checksum) error {
	names, err := k.store.Layers.RootfsNames()
	if err != nil || len(names) == 0 {
		return err
	}
	seen := make(map[string]bool)
	for _, chain := range chains {
		name := k.store.Layers.RootfsName(chain)
		if seen[name] || !slices.Contains(names, name) {
			continue
		}
		seen[name] = true
		err := k.store.Layers.VerifyRootfs(ctx, chain)
		if errors.Is(err, fs.ErrNotExist) && !errors.Is(err, objectstore.ErrNotExist) {
			continue // removed meanwhile, or the daemon was killed before it made it
		}
		if err != nil && !k.isKnown(err) {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			k.add(KindRootfs, name, err, chain[len(chain)-1])
		}
	}
	return nil
}

// refs checks that a ref keeps each layer, and that refs of diff IDs lead to the right layers.
func (k *checker) refs(layers []layer.Layer) error {
	refs, _, err := k.store.Repo.ReadableRefs(layer.RefPrefix) // unreadable refs are problems of the repository
	if err != nil {
		return err
	}
	kept := make(map[objectstore.Checksum]struct{})
	byID := make(map[objectstore.Checksum]layer.Layer)
	for _, l := range layers {
		byID[l.ID] = l
	}
	for ref, id := range refs {
		kept[id] = struct{}{}
		diffID, _ := layer.ParseRef(ref)
		l, ok := byID[id]
		switch {
		case !ok || diffID == "" || diffID == l.DiffID:
		case l.DiffID == "": // a layer of a directory
			k.add(KindRef, ref, fmt.Errorf("layer has no diff ID: %w", objectstore.ErrCorrupt), id)
		default:
			k.add(KindRef, ref, fmt.Errorf("layer has diff ID %s: %w", l.DiffID.Encoded(), objectstore.ErrCorrupt), id)
		}
	}
	for _, l := range layers {
		if _, ok := kept[l.ID]; !ok {
			k.add(KindLayer, l.ID.String(), errNoRef, l.ID)
		}
	}
	return nil
}

// errNoRef is the problem of a layer that a snapshot needs and that an ostree prune would remove.
var errNoRef = errors.New("no ref keeps it; \"ostree-snapshotter prune\" gives it one")

// directories checks that active snapshots have directories, and that these name their layers. The daemon, which does
// not tell the IDs of its snapshots, does so itself when it starts.
func (k *checker) directories(list []inspect.Snapshot) error {
	_, damaged, err := snapshotter.AppliedLayers(k.store.Root)
	if err != nil {
		return err
	}
	for _, sn := range list {
		if sn.Kind != snapshots.KindActive || sn.ID == "" {
			continue
		}
		name := path.Join(snapshotter.SnapshotsDir, sn.ID)
		ok, err := k.store.Root.Exists(name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if !ok {
			k.add(KindSnapshot, sn.Key, fmt.Errorf("directory %s: %w", name, objectstore.ErrNotExist))
		} else if err := damaged[sn.ID]; err != nil {
			k.add(KindSnapshot, sn.Key, err)
		}
	}
	return nil
}

// layer checks one layer and its checkouts. An object that is a problem by itself is not one of the layer's too.
func (k *checker) layer(ctx context.Context, l layer.Layer, checkouts map[string][]objectstore.Checksum) {
	if err := k.store.Layers.Verify(ctx, l.ID); err != nil {
		if !k.isKnown(err) {
			k.add(KindLayer, l.ID.String(), err, l.ID)
		}
		return
	}
	for name, chain := range checkouts {
		if err := k.store.Layers.VerifyCheckout(ctx, name, chain); err != nil && !k.isKnown(err) {
			k.add(KindCheckout, name, err, l.ID)
		}
	}
	if k.deep != nil {
		k.prove(ctx, l)
	}
}

// prove proves a layer that is whole.
func (k *checker) prove(ctx context.Context, l layer.Layer) {
	err := k.store.Layers.Prove(ctx, l.ID)
	if err != nil && !errors.Is(err, layer.ErrNoTar) {
		if !k.isKnown(err) && ctx.Err() == nil {
			k.add(KindLayer, l.ID.String(), err, l.ID)
		}
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if err != nil {
		k.deep.WithoutTar++
		return
	}
	k.deep.Proved++
	k.deep.ProvedBytes += l.TarSize
}

// isKnown reports whether an error is about an object that is a problem by itself.
func (k *checker) isKnown(err error) bool {
	var oe *objectstore.ObjectError
	return errors.As(err, &oe) && k.bad[objectstore.ObjectName{Type: oe.Type, Checksum: oe.Checksum}]
}

// forgetRemoved drops problems of layers and snapshots that the daemon removed during the check.
func (k *checker) forgetRemoved(ctx context.Context, haveSnapshots bool) error {
	refs, _, err := k.store.Repo.ReadableRefs(layer.RefPrefix)
	if err != nil {
		return err
	}
	layers := make(map[objectstore.Checksum]struct{})
	for _, id := range refs {
		layers[id] = struct{}{}
	}
	keys := make(map[string]struct{})
	if haveSnapshots {
		list, err := k.store.Snapshots(ctx)
		if err != nil {
			return err
		}
		for _, sn := range list {
			keys[sn.Key] = struct{}{}
			layers[sn.Layer] = struct{}{}
		}
	}
	k.problems = slices.DeleteFunc(k.problems, func(p problem) bool {
		switch p.Kind {
		case KindSnapshot:
			_, ok := keys[p.Name]
			return !ok
		case KindLayer, KindCheckout, KindRootfs:
			for id := range p.layers {
				if _, ok := layers[id]; ok {
					return false
				}
			}
			return true
		default: // an object or a ref that is damaged has not been removed
			return false
		}
	})
	return nil
}

// blame returns the problems in order, each with the layers, snapshots and images that it affects.
func (k *checker) blame(layers []layer.Layer, list []inspect.Snapshot, images []inspect.Image) []Problem {
	k.blameLayers(layers, list)
	groups := inspect.Groups(list, images)
	var problems []Problem
	for _, p := range k.problems {
		problems = append(problems, p.affects(list, groups, images))
	}
	slices.SortFunc(problems, func(a, b Problem) int { return strings.Compare(a.id(), b.id()) })
	return problems
}

// blameLayers adds the layers of damaged objects to their problems.
func (k *checker) blameLayers(layers []layer.Layer, list []inspect.Snapshot) {
	bad := make(map[string][]int) // problems of an object, by its name
	for i, p := range k.problems {
		if p.Kind == KindObject {
			bad[p.Name] = append(bad[p.Name], i)
		}
	}
	ids := make(map[objectstore.Checksum]struct{})
	for _, l := range layers {
		ids[l.ID] = struct{}{}
	}
	for _, sn := range list { // also layers that are too damaged to be listed
		if !sn.Layer.IsZero() {
			ids[sn.Layer] = struct{}{}
		}
	}
	for id := range ids {
		objects, err := k.store.Layers.Closure(id)
		if err != nil { // the commit or a tree is damaged
			objects = append(objects, objectstore.ObjectName{Type: objectstore.TypeCommit, Checksum: id})
			var oe *objectstore.ObjectError
			if errors.As(err, &oe) {
				objects = append(objects, objectstore.ObjectName{Type: oe.Type, Checksum: oe.Checksum})
			}
		}
		for _, object := range objects {
			for _, i := range bad[object.String()] {
				k.problems[i].layers[id] = struct{}{}
			}
		}
	}
}

// affects returns the problem with its layers, the snapshots that have one of them or rest on one that has, and the
// images of those.
func (p *problem) affects(list []inspect.Snapshot, groups []inspect.Group, images []inspect.Image) Problem {
	for id := range p.layers {
		p.Layers = append(p.Layers, id)
	}
	slices.SortFunc(p.Layers, func(a, b objectstore.Checksum) int { return strings.Compare(a.String(), b.String()) })
	hit := p.snapshots(list)
	for key := range hit {
		p.Snapshots = append(p.Snapshots, key)
	}
	slices.Sort(p.Snapshots)
	for _, g := range groups {
		if g.Image < 0 {
			continue
		}
		for key := range g.Keys {
			if hit[key] {
				p.Images = append(p.Images, images[g.Image].Names...)
				break
			}
		}
	}
	slices.Sort(p.Images)
	return p.Problem
}

// snapshots returns the keys of the snapshots that have a layer of the problem, or rest on one that has.
func (p *problem) snapshots(list []inspect.Snapshot) map[string]bool {
	children := make(map[string][]int)
	var queue []int
	for i, sn := range list {
		children[sn.Parent] = append(children[sn.Parent], i)
		if _, ok := p.layers[sn.Layer]; ok {
			queue = append(queue, i)
		}
	}
	hit := make(map[string]bool)
	for len(queue) > 0 {
		key := list[queue[0]].Key
		queue = queue[1:]
		if !hit[key] {
			hit[key] = true
			queue = append(queue, children[key]...)
		}
	}
	return hit
}
