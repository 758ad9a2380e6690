package main

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

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/plugin"
	"github.com/ostree-snapshotter/ostree-snapshotter/plugin/containerd"
)

// fsckReport is the output of "fsck --json".
type fsckReport struct {
	Objects   int           `json:"objects"`
	Layers    int           `json:"layers"`
	Snapshots int           `json:"snapshots"`
	Partial   int           `json:"partial_commits"` // not damage: a pull of ostree's did not end
	Deep      *deepReport   `json:"deep,omitempty"`  // of --deep
	Problems  []fsckProblem `json:"problems"`
	Repaired  []fsckProblem `json:"repaired,omitempty"` // were problems before --repair
}

// deepReport says how many layers were proved back to their diff IDs.
type deepReport struct {
	Proved     int   `json:"proved_layers"`
	ProvedSize int64 `json:"proved_bytes"` // of their tars
	WithoutTar int   `json:"without_tar"`  // layers of directories, which have no diff ID
}

// fsckProblem is one thing that is damaged or missing, and what suffers from it.
type fsckProblem struct {
	Kind      string   `json:"kind"` // object, ref, layer, snapshot, checkout or rootfs
	Name      string   `json:"name"`
	Error     string   `json:"error"`
	Layers    []string `json:"layers,omitempty"`
	Snapshots []string `json:"snapshots,omitempty"`
	Images    []string `json:"images,omitempty"`

	layers map[objectstore.Checksum]struct{} // damaged by it
}

// Kinds of problems.
const (
	kindObject   = "object"
	kindRef      = "ref"
	kindLayer    = "layer"
	kindSnapshot = "snapshot"
	kindCheckout = "checkout"
	kindRootfs   = "rootfs"
)

// fsckOptions are the flags of fsck.
type fsckOptions struct {
	deep        bool
	repair      bool
	contentRoot string // of containerd, with repair; "" to find it
}

func (c *cli) fsckCommand() *cobra.Command {
	var opts fsckOptions
	cmd := &cobra.Command{
		Use:   "fsck",
		Short: "Check everything in the store",
		Long: `Check everything in the store: every object is hashed again, every ref leads to a commit that is complete, every
layer's image can be read and its objects are there, every snapshot's layer, directory and checkout exist, every checkout
holds exactly what its layer's image says, and every composefs image what the images of its layers say together.

What is damaged is named with the snapshots and images that suffer from it. It runs beside the daemon, and what the
daemon removes meanwhile is not missed.

With --deep, the tar of every layer is also written again from the store, and its digest compared with the layer's diff
ID: the store has all of what was pulled, byte for byte. That reads every file of every layer once more. Layers that were
not made of a tar (nerdctl commit, builds) have no diff ID to compare with, and are counted.

With --repair, damaged and missing objects, layers and refs are made again from the layers' blobs in containerd's content
store, whatever namespace they are in, and checkouts are put right in place, also under running containers. Then
everything is checked again, and what is still wrong is named. Without it nothing is changed.` +
			exitHelp(exitPartly, exitNoRepo, exitLocked, exitCorrupt, exitInterrupted),
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if opts.repair {
				return c.fsckRepair(cmd.Context(), opts)
			}
			return c.fsck(cmd.Context(), opts)
		},
	}
	cmd.Flags().BoolVar(&opts.deep, "deep", false, "also prove each layer back to its diff ID")
	cmd.Flags().BoolVar(&opts.repair, "repair", false, "make again what is damaged or missing")
	cmd.Flags().StringVar(&opts.contentRoot, "content-root", "", "`DIRECTORY` of containerd's content store, instead of the configuration's")
	c.jsonFlag(cmd)
	c.daemonFlag(cmd)
	c.containerdFlags(cmd)
	return cmd
}

func (c *cli) fsck(ctx context.Context, opts fsckOptions) (err error) {
	s, err := c.openStore()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	report, unread, err := c.check(ctx, s, opts)
	if err != nil {
		return err
	}
	err = c.showFsck(report)
	switch {
	case err != nil:
		return err
	case len(report.Problems) > 0:
		return withHint(withStatus(exitCorrupt, fmt.Errorf("the store has problems: %d", len(report.Problems))),
			"\"ostree-snapshotter fsck --repair\" makes again what it can")
	case unread != nil:
		return withStatus(exitPartly, fmt.Errorf("snapshots were not checked: %w", unread))
	}
	return nil
}

// check makes the report. The second result says why snapshots could not be checked, when they could not; the rest of
// the report is true even so.
func (c *cli) check(ctx context.Context, s *store, opts fsckOptions) (_ *fsckReport, unread, err error) {
	p := c.newProgress("checking objects")
	objects, err := s.repo.Fsck(ctx, objectstore.FsckOptions{Progress: p.update})
	p.stop()
	if err != nil {
		return nil, nil, fmt.Errorf("check repository: %w", err)
	}
	k := &checker{store: s, bad: make(map[objectstore.ObjectName]bool)}
	if opts.deep {
		k.deep = new(deepReport)
	}
	k.objects(objects)

	rows, unread := s.rows(ctx, c.daemonAddress)
	// The error says which layers are left out: the check of the repository, or that of the rows, names them too.
	list, _ := s.allLayers(ctx, rows)
	verb := "checking layers"
	if opts.deep {
		verb = "proving layers"
	}
	p = c.newProgress(verb)
	err = k.layers(ctx, list, rows, p.update)
	p.stop()
	if err != nil {
		return nil, nil, err
	}
	if len(k.problems) > 0 {
		if err := k.forgetRemoved(ctx, c.daemonAddress, unread == nil); err != nil {
			return nil, nil, err
		}
	}
	var images []containerd.Image
	if len(k.problems) > 0 {
		images, _ = c.images(ctx, s.cfg)
	}
	k.blame(list, rows, images)
	return &fsckReport{
		Objects:   objects.Objects,
		Layers:    len(list),
		Snapshots: len(rows),
		Partial:   objects.Partial,
		Deep:      k.deep,
		Problems:  k.problems,
	}, unread, nil
}

func (c *cli) showFsck(r *fsckReport) error {
	if c.json {
		return c.writeJSON(r)
	}
	return c.printFsck(r)
}

func (c *cli) printFsck(r *fsckReport) error {
	var b strings.Builder
	for _, p := range r.Problems {
		fmt.Fprintf(&b, "%s %s: %s\n", p.Kind, p.Name, p.Error)
		for _, list := range []struct {
			what  string
			names []string
		}{{"layer", p.Layers}, {"snapshot", p.Snapshots}, {"image", p.Images}} {
			for _, name := range list.names {
				fmt.Fprintf(&b, "  affects %s %s\n", list.what, name)
			}
		}
	}
	for _, p := range r.Repaired {
		fmt.Fprintf(&b, "%s %s: repaired\n", p.Kind, p.Name)
	}
	if d := r.Deep; d != nil {
		fmt.Fprintf(&b, "proved %d layers back to their diff IDs, %s; %d were not made of a tar\n", d.Proved, size(d.ProvedSize), d.WithoutTar)
	}
	fmt.Fprintf(&b, "checked %d objects, %d layers, %d snapshots: %d problems\n",
		r.Objects, r.Layers, r.Snapshots, len(r.Problems))
	_, err := fmt.Fprint(c.stdout, b.String())
	return err
}

// checker collects problems.
type checker struct {
	store *store

	bad map[objectstore.ObjectName]bool // objects that have a problem of their own

	mu       sync.Mutex
	problems []fsckProblem
	deep     *deepReport // nil without --deep
}

func (k *checker) add(kind, name string, err error, layers ...objectstore.Checksum) {
	p := fsckProblem{Kind: kind, Name: name, Error: err.Error(), layers: make(map[objectstore.Checksum]struct{})}
	for _, id := range layers {
		if !id.IsZero() {
			p.layers[id] = struct{}{}
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.problems = append(k.problems, p)
}

// objects takes over what the repository's own check found.
func (k *checker) objects(r *objectstore.FsckReport) {
	for _, p := range r.Problems {
		if p.Ref != "" {
			k.add(kindRef, p.Ref, p.Err, p.Checksum)
			continue
		}
		name := objectstore.ObjectName{Type: p.Type, Checksum: p.Checksum}
		k.bad[name] = true
		k.add(kindObject, name.String(), p.Err)
	}
}

// layers checks each layer, and then the checkouts of it that rows name. A row whose layer does not exist is a problem
// of the row.
func (k *checker) layers(ctx context.Context, list []layer.Layer, rows []row, tick func(done, total int64)) error {
	checkouts := make(map[objectstore.Checksum]map[string][]objectstore.Checksum)
	chains := chainsOf(rows)
	for _, r := range rows {
		chain, ok := chains[r.key]
		if !ok {
			continue
		}
		name := k.checkoutOf(ctx, r, chain)
		if name == "" {
			continue
		}
		if checkouts[r.layer] == nil {
			checkouts[r.layer] = make(map[string][]objectstore.Checksum)
		}
		checkouts[r.layer][name] = chain
	}
	known := make(map[objectstore.Checksum]struct{}, len(list))
	for _, l := range list {
		known[l.ID] = struct{}{}
	}
	for _, r := range rows {
		if _, ok := known[r.layer]; !ok && r.kind == snapshots.KindCommitted {
			k.add(kindSnapshot, r.key, fmt.Errorf("layer %s: %w", r.layer, objectstore.ErrNotExist), r.layer)
		}
	}

	if err := k.refs(list); err != nil {
		return err
	}
	if err := k.directories(rows); err != nil {
		return err
	}

	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	var done progressCount
	for _, l := range list {
		g.Go(func() error {
			k.layer(ctx, l, checkouts[l.ID])
			tick(done.next(), int64(len(list)))
			return ctx.Err()
		})
	}
	g.Go(func() error { return k.rootfses(ctx, chains) })
	return g.Wait()
}

// checkoutOf returns the name of a snapshot's checkout. With composefs there need not be one.
func (k *checker) checkoutOf(ctx context.Context, r row, chain []objectstore.Checksum) string {
	if r.checkout != "" && k.store.checkout().Checkout != plugin.CheckoutComposefs {
		return r.checkout
	}
	name, err := k.store.layers.CheckoutName(ctx, chain)
	if err != nil {
		return "" // the layer has a problem
	}
	if ok, err := k.store.layers.HasCheckout(name); err != nil || !ok {
		return ""
	}
	return name
}

// rootfses checks the rootfs images of chains, as far as there are some. Each names all layers of its chain.
func (k *checker) rootfses(ctx context.Context, chains map[string][]objectstore.Checksum) error {
	names, err := k.store.layers.RootfsNames()
	if err != nil || len(names) == 0 {
		return err
	}
	seen := make(map[string]bool)
	for _, chain := range chains {
		name := k.store.layers.RootfsName(chain)
		if seen[name] || !slices.Contains(names, name) {
			continue
		}
		seen[name] = true
		err := k.store.layers.VerifyRootfs(ctx, chain)
		if errors.Is(err, fs.ErrNotExist) && !errors.Is(err, objectstore.ErrNotExist) {
			continue // it was removed meanwhile, or the daemon killed before it made it
		}
		if err != nil && !k.isKnown(err) {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			k.add(kindRootfs, name, err, chain[len(chain)-1])
		}
	}
	return nil
}

// refs checks that a ref keeps each layer, and that the refs which say a layer's diff ID are right.
func (k *checker) refs(list []layer.Layer) error {
	refs, err := k.store.repo.Refs(layerRefs)
	if err != nil {
		return err
	}
	kept := make(map[objectstore.Checksum]struct{})
	diffIDs := make(map[objectstore.Checksum]string)
	for _, l := range list {
		diffIDs[l.ID] = l.DiffID.Encoded()
	}
	for ref, id := range refs {
		kept[id] = struct{}{}
		if want, ok := diffIDs[id]; ok && path.Dir(ref) == layerRefs+"/diff" && path.Base(ref) != want {
			k.add(kindRef, ref, fmt.Errorf("layer has diff ID %s: %w", want, objectstore.ErrCorrupt), id)
		}
	}
	for _, l := range list {
		if _, ok := kept[l.ID]; !ok {
			k.add(kindLayer, l.ID.String(), errNoRef, l.ID)
		}
	}
	return nil
}

// directories checks that active snapshots have theirs. The daemon, which does not tell the numbers of its snapshots,
// does so itself when it starts.
func (k *checker) directories(rows []row) error {
	for _, r := range rows {
		if r.kind != snapshots.KindActive || r.number == "" {
			continue
		}
		name := path.Join(snapshotsDir, r.number)
		ok, err := k.store.root.Exists(name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if !ok {
			k.add(kindSnapshot, r.key, fmt.Errorf("directory %s: %w", name, objectstore.ErrNotExist))
		}
	}
	return nil
}

// errNoRef is what is wrong with a layer that a snapshot needs and nothing protects from an ostree prune.
var errNoRef = errors.New("no ref keeps it; \"ostree-snapshotter prune\" gives it one")

// refLayers returns the layers that refs of ours name.
func (s *store) refLayers() (map[objectstore.Checksum]struct{}, error) {
	refs, err := s.repo.Refs(layerRefs)
	if err != nil {
		return nil, err
	}
	layers := make(map[objectstore.Checksum]struct{})
	for _, id := range refs {
		layers[id] = struct{}{}
	}
	return layers, nil
}

// layer checks one layer and its checkouts. An object that is a problem by itself is not one of the layer's too.
func (k *checker) layer(ctx context.Context, l layer.Layer, checkouts map[string][]objectstore.Checksum) {
	id := l.ID
	if err := k.store.layers.Verify(ctx, id); err != nil {
		if !k.isKnown(err) {
			k.add(kindLayer, id.String(), err, id)
		}
		return
	}
	for name, chain := range checkouts {
		if err := k.store.layers.VerifyCheckout(ctx, name, chain); err != nil && !k.isKnown(err) {
			k.add(kindCheckout, name, err, id)
		}
	}
	if k.deep != nil {
		k.prove(ctx, l)
	}
}

// prove proves a layer that is whole.
func (k *checker) prove(ctx context.Context, l layer.Layer) {
	err := k.store.layers.Prove(ctx, l.ID)
	if err != nil && !errors.Is(err, layer.ErrNoTar) {
		if !k.isKnown(err) && ctx.Err() == nil {
			k.add(kindLayer, l.ID.String(), err, l.ID)
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
	k.deep.ProvedSize += l.TarSize
}

// isKnown reports whether an error is about an object that is a problem by itself.
func (k *checker) isKnown(err error) bool {
	var oe *objectstore.ObjectError
	return errors.As(err, &oe) && k.bad[objectstore.ObjectName{Type: oe.Type, Checksum: oe.Checksum}]
}

// forgetRemoved drops problems with layers and snapshots that are no more: the daemon removed them while they were
// being looked at.
func (k *checker) forgetRemoved(ctx context.Context, daemonAddress string, haveRows bool) error {
	layers, err := k.store.refLayers()
	if err != nil {
		return err
	}
	keys := make(map[string]struct{})
	if haveRows {
		rows, err := k.store.rows(ctx, daemonAddress)
		if err != nil {
			return err
		}
		for _, r := range rows {
			keys[r.key] = struct{}{}
			layers[r.layer] = struct{}{}
		}
	}
	k.problems = slices.DeleteFunc(k.problems, func(p fsckProblem) bool {
		switch p.Kind {
		case kindSnapshot:
			_, ok := keys[p.Name]
			return !ok
		case kindLayer, kindCheckout, kindRootfs:
			for id := range p.layers {
				if _, ok := layers[id]; ok {
					return false
				}
			}
			return true
		}
		return false
	})
	return nil
}

// blame fills in what each problem affects, and puts the problems in order.
func (k *checker) blame(list []layer.Layer, rows []row, images []containerd.Image) {
	bad := make(map[string][]int) // problems with an object, by its name
	for i, p := range k.problems {
		if p.Kind == kindObject {
			bad[p.Name] = append(bad[p.Name], i)
		}
	}
	ids := make(map[objectstore.Checksum]struct{})
	for _, l := range list {
		ids[l.ID] = struct{}{}
	}
	for _, r := range rows { // also layers that are so damaged that they are not in the list
		if !r.layer.IsZero() {
			ids[r.layer] = struct{}{}
		}
	}
	for id := range ids {
		objs, err := k.store.layers.Closure(id)
		if err != nil { // the commit or a tree is what is damaged
			objs = append(objs, objectstore.ObjectName{Type: objectstore.TypeCommit, Checksum: id})
			var oe *objectstore.ObjectError
			if errors.As(err, &oe) {
				objs = append(objs, objectstore.ObjectName{Type: oe.Type, Checksum: oe.Checksum})
			}
		}
		for _, obj := range objs {
			for _, i := range bad[obj.String()] {
				k.problems[i].layers[id] = struct{}{}
			}
		}
	}
	groups := groupRows(rows, images)
	for i := range k.problems {
		k.problems[i].affects(rows, groups)
	}
	slices.SortFunc(k.problems, func(a, b fsckProblem) int {
		return strings.Compare(a.Kind+" "+a.Name, b.Kind+" "+b.Name)
	})
}

// affects names the layers that a problem damages, the snapshots that have one of them or rest on one that has, and
// the images those belong to.
func (p *fsckProblem) affects(rows []row, groups []group) {
	for id := range p.layers {
		p.Layers = append(p.Layers, id.String())
	}
	byKey := make(map[string]*row, len(rows))
	for i := range rows {
		byKey[rows[i].key] = &rows[i]
	}
	hit := make(map[string]bool)
	for i := range rows {
		for r, n := &rows[i], 0; r != nil && n <= len(rows); r, n = byKey[r.parent], n+1 {
			if _, ok := p.layers[r.layer]; ok {
				hit[rows[i].key] = true
				p.Snapshots = append(p.Snapshots, rows[i].key)
				break
			}
		}
	}
	for _, g := range groups {
		for _, name := range g.names {
			for key := range g.keys {
				if hit[key] {
					p.Images = append(p.Images, name.Namespace+"/"+name.Name)
					break
				}
			}
		}
	}
	slices.Sort(p.Layers)
	slices.Sort(p.Snapshots)
	slices.Sort(p.Images)
}
