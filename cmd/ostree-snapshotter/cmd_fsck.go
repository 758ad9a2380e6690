package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/spf13/cobra"

	"github.com/ostree-snapshotter/ostree-snapshotter/plugin"
	"github.com/ostree-snapshotter/ostree-snapshotter/plugin/containerd"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/blob"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/fsck"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/inspect"
)

// fsckReport is the output of "fsck --json".
type fsckReport struct {
	Objects   int           `json:"objects"`
	Layers    int           `json:"layers"`
	Snapshots int           `json:"snapshots"`
	Partial   int           `json:"partial_commits"` // of interrupted pulls by ostree; not damage
	Deep      *deepReport   `json:"deep,omitempty"`  // with --deep
	Problems  []fsckProblem `json:"problems"`
	Repaired  []fsckProblem `json:"repaired,omitempty"` // problems that --repair solved
}

// deepReport counts the layers that were proved back to their diff IDs.
type deepReport struct {
	Proved     int   `json:"proved_layers"`
	ProvedSize int64 `json:"proved_bytes"` // of their tars
	WithoutTar int   `json:"without_tar"`  // layers made of directories, which have no diff ID
}

// fsckProblem is something damaged or missing, and what it affects.
type fsckProblem struct {
	Kind      string   `json:"kind"` // object, ref, layer, snapshot, checkout or rootfs
	Name      string   `json:"name"`
	Error     string   `json:"error"`
	Layers    []string `json:"layers,omitempty"`
	Snapshots []string `json:"snapshots,omitempty"`
	Images    []string `json:"images,omitempty"`
}

// fsckOptions holds the flags of fsck.
type fsckOptions struct {
	daemonFlags
	containerdFlags
	deep        bool
	repair      bool
	verbose     bool
	contentRoot string // of containerd; "" to ask containerd
}

func (c *cli) fsckCommand() *cobra.Command {
	var opts fsckOptions
	cmd := &cobra.Command{
		Use:   "fsck",
		Short: "Check everything in the store",
		Long: `Check everything in the store: each object has its checksum, each ref leads to a complete commit, each layer's image is
readable and its objects exist, each snapshot's layer, directory and checkout exist, each checkout matches its layer's
image, and each composefs image matches the images of its layers.

Problems are listed with the snapshots and images that they affect: three of each kind, or all with -v or --json. The
check runs beside the daemon; files that the daemon removes meanwhile are not reported.

With --deep, the tar of each layer is also reassembled from the store, and its digest compared with the layer's diff ID:
this proves that the store has every byte that was pulled. It reads every file of every layer once more. Layers that were
not made of a tar (builds) have no diff ID; they are only counted.

With --repair, damaged and missing objects, layers and refs are rebuilt from the layers' blobs in containerd's content
store, in any namespace, and checkouts are repaired in place, even under running containers. Then everything is checked
again, and the remaining problems are listed. Without --repair nothing is changed.` +
			exitHelp(exitPartly, exitNoRepo, exitLocked, exitCorrupt, exitInterrupted),
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.fsck(cmd.Context(), &opts)
		},
	}
	cmd.Flags().BoolVar(&opts.deep, "deep", false, "also prove each layer back to its diff ID")
	cmd.Flags().BoolVar(&opts.repair, "repair", false, "rebuild what is damaged or missing")
	cmd.Flags().BoolVarP(&opts.verbose, "verbose", "v", false, "list every problem")
	cmd.Flags().StringVar(&opts.contentRoot, "content-root", "", "`DIRECTORY` of containerd's content store, instead of the configuration's")
	c.jsonFlag(cmd)
	opts.addDaemon(cmd)
	opts.addContainerd(cmd)
	return cmd
}

func (c *cli) fsck(ctx context.Context, opts *fsckOptions) (err error) {
	s, err := c.openStore(&opts.daemonFlags)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	report, err := c.check(ctx, s, opts)
	if err != nil {
		return err
	}
	if opts.repair && report.Unread != nil && len(report.Repaired) == 0 {
		return withStatus(exitPartly, fmt.Errorf("nothing is repaired, because snapshots cannot be listed: %w", report.Unread))
	}
	if err := c.showFsck(newFsckReport(report), opts.verbose); err != nil {
		return err
	}
	left := len(report.Problems)
	switch {
	case left == 0 && report.Unread != nil:
		return withStatus(exitPartly, fmt.Errorf("snapshots were not checked: %w", report.Unread))
	case left == 0:
		return nil
	case !opts.repair:
		return withHint(withStatus(exitCorrupt, fmt.Errorf("the store has problems: %d", left)),
			"\"ostree-snapshotter fsck --repair\" rebuilds what it can")
	case len(report.Repaired) > 0:
		return withStatus(exitPartly, fmt.Errorf("problems that could not be repaired: %d", left))
	}
	return withHint(withStatus(exitCorrupt, fmt.Errorf("problems that could not be repaired: %d", left)),
		"remove the listed images and snapshots, so that damaged objects are pruned; then pull the images again, or build or load "+
			"those that no registry has")
}

// check checks the store and, with --repair, repairs it.
func (c *cli) check(ctx context.Context, s *store, opts *fsckOptions) (*fsck.Report, error) {
	verb := "checking layers"
	if opts.deep {
		verb = "proving layers"
	}
	lines := map[fsck.Stage]*progress{fsck.StageObjects: c.newProgress("checking objects"), fsck.StageLayers: c.newProgress(verb)}
	images := sync.OnceValue(func() []inspect.Image {
		images, _ := c.images(ctx, &opts.containerdFlags, s.cfg)
		return inspected(images)
	})
	o := fsck.Options{
		Deep:      opts.deep,
		Composefs: s.checkout().Checkout == plugin.CheckoutComposefs,
		Images:    func(context.Context) []inspect.Image { return images() },
		Progress: func(stage fsck.Stage, done, total int64) {
			lines[stage].update(done, total)
			if done == total {
				lines[stage].stop()
			}
		},
	}
	if !opts.repair {
		return fsck.Check(ctx, s.Store, o)
	}
	blobs := func(ctx context.Context) content.Provider {
		from, err := opts.blobs(ctx, s.cfg)
		if err != nil {
			c.note("only checkouts and refs are repaired, because blobs cannot be read: %v", err)
			return nil
		}
		return from
	}
	// The log messages of imports are meant for the daemon.
	return fsck.CheckAndRepair(containerd.Silent(ctx), s.Store, o, blobs, func(err error) { c.note("%v", err) })
}

// blobs returns the directory of containerd's content store, which has the blobs of all namespaces.
func (opts *fsckOptions) blobs(ctx context.Context, cfg *plugin.Config) (content.Provider, error) {
	dir := cmp.Or(opts.contentRoot, cfg.Containerd.ContentRoot)
	if dir != "" {
		return blob.Files(dir), nil
	}
	client, err := opts.dial(cfg)
	if err != nil {
		return nil, err
	}
	dir, err = client.ContentRoot(ctx)
	if errors.Is(err, containerd.ErrNoContentRoot) {
		err = fmt.Errorf("%w: --content-root names it", err)
	}
	if err = errors.Join(err, client.Close()); err != nil {
		return nil, err
	}
	return blob.Files(dir), nil
}

func newFsckReport(r *fsck.Report) *fsckReport {
	out := &fsckReport{
		Objects: r.Objects, Layers: r.Layers, Snapshots: r.Snapshots, Partial: r.Partial,
		Problems: newFsckProblems(r.Problems), Repaired: newFsckProblems(r.Repaired),
	}
	if d := r.Deep; d != nil {
		out.Deep = &deepReport{Proved: d.Proved, ProvedSize: d.ProvedBytes, WithoutTar: d.WithoutTar}
	}
	return out
}

func newFsckProblems(list []fsck.Problem) []fsckProblem {
	var out []fsckProblem
	for _, p := range list {
		q := fsckProblem{Kind: string(p.Kind), Name: p.Name, Error: p.Err.Error(), Snapshots: p.Snapshots, Images: p.Images}
		for _, id := range p.Layers {
			q.Layers = append(q.Layers, id.String())
		}
		out = append(out, q)
	}
	return out
}

func (c *cli) showFsck(r *fsckReport, verbose bool) error {
	if c.json {
		return c.writeJSON(r)
	}
	return c.printFsck(r, verbose)
}

// listedProblems is the number of problems of each kind that are listed without --verbose: a damaged image can have
// thousands.
const listedProblems = 3

func (c *cli) printFsck(r *fsckReport, verbose bool) error {
	var b strings.Builder
	limit := listedProblems
	if verbose {
		limit = math.MaxInt
	}
	for _, list := range byKind(r.Problems) {
		shown := list[:min(len(list), limit)]
		for _, p := range shown {
			fmt.Fprintf(&b, "%s %s: %s\n", p.Kind, p.Name, p.Error)
			for _, affected := range p.affected() {
				for _, name := range affected.names {
					fmt.Fprintf(&b, "  affects %s %s\n", affected.what, name)
				}
			}
		}
		if more := list[len(shown):]; len(more) > 0 {
			fmt.Fprintf(&b, "%s: and %d more, which affect %s; -v lists them\n", list[0].Kind, len(more), countAffected(more))
		}
	}
	for _, list := range byKind(r.Repaired) {
		shown := list[:min(len(list), limit)]
		for _, p := range shown {
			fmt.Fprintf(&b, "%s %s: repaired\n", p.Kind, p.Name)
		}
		if more := len(list) - len(shown); more > 0 {
			fmt.Fprintf(&b, "%s: and %d more repaired; -v lists them\n", list[0].Kind, more)
		}
	}
	if d := r.Deep; d != nil {
		fmt.Fprintf(&b, "proved %d layers back to their diff IDs, %s; %d were not made of a tar\n", d.Proved, size(d.ProvedSize), d.WithoutTar)
	}
	fmt.Fprintf(&b, "checked %d objects, %d layers, %d snapshots: %d problems\n",
		r.Objects, r.Layers, r.Snapshots, len(r.Problems))
	_, err := fmt.Fprint(c.stdout, printableExcept('\n', b.String()))
	return err
}

// byKind returns the problems of each kind, in the order of their first ones.
func byKind(list []fsckProblem) [][]fsckProblem {
	var kinds [][]fsckProblem
	for _, p := range list {
		i := slices.IndexFunc(kinds, func(k []fsckProblem) bool { return k[0].Kind == p.Kind })
		if i < 0 {
			i, kinds = len(kinds), append(kinds, nil)
		}
		kinds[i] = append(kinds[i], p)
	}
	return kinds
}

// An affectedList names the layers, snapshots or images that a problem affects.
type affectedList struct {
	what  string
	names []string
}

func (p *fsckProblem) affected() []affectedList {
	return []affectedList{{"layer", p.Layers}, {"snapshot", p.Snapshots}, {"image", p.Images}}
}

// countAffected returns the numbers of layers, snapshots and images that any of the problems affects.
func countAffected(list []fsckProblem) string {
	var counts []string
	for i, first := range list[0].affected() {
		names := make(map[string]bool)
		for _, p := range list {
			for _, name := range p.affected()[i].names {
				names[name] = true
			}
		}
		counts = append(counts, fmt.Sprintf("%d %ss", len(names), first.what))
	}
	return strings.Join(counts, ", ")
}
