package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
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

Each problem is listed with the snapshots and images that it affects. The check runs beside the daemon; files that the
daemon removes meanwhile are not reported.

With --deep, the tar of each layer is also reassembled from the store, and its digest compared with the layer's diff ID:
this proves that the store has every byte that was pulled. It reads every file of every layer once more. Layers that were
not made of a tar (nerdctl commit, builds) have no diff ID; they are only counted.

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
	if err := c.showFsck(newFsckReport(report)); err != nil {
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
		"remove the listed images and snapshots, so that damaged objects are pruned, and pull the images again")
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
	blobs := func(ctx context.Context) (b fsck.Blobs, err error) {
		if b.Provider, err = opts.blobs(ctx, s.cfg); err != nil {
			c.note("only checkouts and refs are repaired, because blobs cannot be read: %v", err)
		}
		b.Decompressor, err = blob.NewDecompressor(ctx, s.cfg.Decompress.Gzip)
		return b, err
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
	_, err := fmt.Fprint(c.stdout, printableExcept('\n', b.String()))
	return err
}
