package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/dustin/go-humanize"
	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/ostree-snapshotter/ostree-snapshotter/plugin"
	"github.com/ostree-snapshotter/ostree-snapshotter/plugin/containerd"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/inspect"
)

// dfReport is the output of "df --json". All figures are bytes unless their name says otherwise.
type dfReport struct {
	Root string `json:"root"`
	// Snapshots is the number of committed snapshots, Logical the sum of the sizes of the regular files in each.
	Snapshots int   `json:"snapshots"`
	Logical   int64 `json:"logical_bytes"`
	// Stored is the space allocated on the disk, each inode counted once. It is the sum of the next four figures.
	Stored    int64  `json:"stored_bytes"`
	Objects   int64  `json:"objects_bytes"`
	Checkouts int64  `json:"checkouts_bytes"`
	Checkout  string `json:"checkout,omitempty"` // the daemon's choice, and the reason
	Active    int64  `json:"active_bytes"`
	Metadata  int64  `json:"metadata_bytes"`
	// Elsewhere is the part of Objects that other repositories or deployments on the disk share.
	Elsewhere int64 `json:"elsewhere_bytes"`
	// Ratio is Logical / (Stored - Active); 0 for an empty store.
	Ratio float64 `json:"dedup_ratio"`
	// Unneeded is the space of layers that no snapshot needs, Unreferenced that of objects in no layer.
	Unneeded     int64 `json:"unneeded_bytes"`
	Unreferenced int64 `json:"unreferenced_bytes"`
	// ToFree is what a prune frees, and the daemon in the background if images were removed; nil if damage hides it.
	ToFree *int64  `json:"to_free_bytes"`
	Images []dfRow `json:"images"`
	// Source tells whether Images lists the images of containerd, or the chains of snapshots.
	Source string `json:"images_from"`
}

// dfRow is one image, or one chain of snapshots that belongs to no image.
type dfRow struct {
	Digest digest.Digest          `json:"digest,omitempty"`
	Names  []containerd.ImageName `json:"names,omitempty"`
	Chain  digest.Digest          `json:"chain_id,omitempty"`
	Layers int                    `json:"layers"`
	Size   int64                  `json:"size_bytes"`   // regular files of its layers
	Unique int64                  `json:"unique_bytes"` // freed if only this went
	Shared int64                  `json:"shared_bytes"` // stored, and needed by others too
	// Elsewhere is the part of Shared that other repositories or deployments on the disk share.
	Elsewhere int64 `json:"elsewhere_bytes"`
	Active    int   `json:"active_snapshots"`
}

const (
	fromContainerd = "containerd"
	fromSnapshots  = "snapshots"
)

// dfOptions are the flags of df.
type dfOptions struct {
	daemonFlags
	containerdFlags
	namespace string // "" for all
}

func (c *cli) dfCommand() *cobra.Command {
	var opts dfOptions
	cmd := &cobra.Command{
		Use:   "df",
		Short: "Show the disk space of images, and what sharing saves",
		Long: `Show the disk space of images, and what sharing saves.

"logical" is the size of the regular files in all committed snapshots, as if each had files of its own. "stored" is the
space allocated on the disk, each inode counted once, as du counts the root. Their ratio excludes the writable layers of
active snapshots. It is a lower bound: stored includes whole blocks and metadata, logical does not.

"elsewhere" is the space of inodes that others on the disk have too: repositories of dedup_repos, and the repository and
deployments of a system that an image was deployed to. Removing them here frees nothing, so they are never "unique" or
"unneeded".

"to free" is what the daemon still has to remove, in the background, of images that were removed, and what "prune" frees at
once. During a pull it includes files of the pull.

For each image, "unique" is the space that would be freed by removing the image and its containers, and "shared" is the
rest of its space. An image with several names in containerd is listed once. Without containerd, each chain of snapshots
has a line.` + exitHelp(exitPartly, exitNoRepo, exitLocked, exitCorrupt, exitInterrupted),
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.df(cmd.Context(), &opts) },
	}
	c.jsonFlag(cmd)
	opts.addDaemon(cmd)
	opts.addContainerd(cmd)
	cmd.Flags().StringVarP(&opts.namespace, "namespace", "n", os.Getenv("CONTAINERD_NAMESPACE"),
		"list only images of this containerd `NAMESPACE`; all still count as sharing [$CONTAINERD_NAMESPACE]")
	return cmd
}

func (c *cli) df(ctx context.Context, opts *dfOptions) (err error) {
	s, err := c.openStore(&opts.daemonFlags)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	report, damage := c.measure(ctx, s, opts)
	if report == nil {
		return damage
	}
	if c.json {
		err = c.writeJSON(report)
	} else {
		err = c.printDf(report)
	}
	if damage != nil {
		err = errors.Join(err, withStatus(exitPartly, fmt.Errorf("measure store: %w", damage)))
	}
	return err
}

// measure returns the report. A report beside an error leaves out the damaged layers that the error names.
func (c *cli) measure(ctx context.Context, s *store, opts *dfOptions) (*dfReport, error) {
	images, source := c.images(ctx, &opts.containerdFlags, s.cfg)
	p := c.newProgress("measuring files")
	use, damage := s.Usage(ctx, inspected(images), func(n int64) { p.update(n, 0) })
	p.stop()
	if use == nil {
		return nil, damage
	}
	r := newDfReport(use, images)
	r.Root, r.Source = s.cfg.Root, source
	if chosen := s.checkout(); chosen.Checkout != "" {
		r.Checkout = chosen.String()
	}
	r.keepNamespace(opts.namespace)
	return r, damage
}

// inspected returns images as package inspect takes them.
func inspected(images []containerd.Image) []inspect.Image {
	list := make([]inspect.Image, len(images))
	for i, img := range images {
		list[i] = inspect.Image{Chains: img.Chains, Blobs: img.Blobs}
		for _, name := range img.Names {
			list[i].Names = append(list[i].Names, name.Namespace+"/"+name.Name)
		}
	}
	return list
}

// images lists the images of containerd. Without containerd it notes that on stderr: reports are still correct, only by
// chains.
func (c *cli) images(ctx context.Context, f *containerdFlags, cfg *plugin.Config) ([]containerd.Image, string) {
	client, err := f.dial(cfg)
	if err == nil {
		defer client.Close()
		var imgs []containerd.Image
		if imgs, err = client.Images(ctx); err == nil {
			return imgs, fromContainerd
		}
	}
	if ctx.Err() != nil {
		return nil, fromSnapshots
	}
	c.note("containerd at %s does not answer, image names are unavailable: %v", f.socket(cfg), err)
	return nil, fromSnapshots
}

func newDfReport(use *inspect.Usage, images []containerd.Image) *dfReport {
	r := &dfReport{
		Snapshots:    use.Snapshots,
		Logical:      use.Logical,
		Stored:       use.Stored(),
		Objects:      use.Objects,
		Checkouts:    use.Checkouts,
		Active:       use.Active,
		Metadata:     use.Metadata,
		Elsewhere:    use.Elsewhere,
		Ratio:        use.Ratio(),
		Unneeded:     use.Unneeded,
		Unreferenced: use.Unreferenced,
		Images:       []dfRow{},
	}
	if use.ToFree != inspect.Unknown {
		r.ToFree = &use.ToFree
	}
	for _, g := range use.Groups {
		row := dfRow{
			Chain: g.Chain, Layers: g.Layers, Size: g.Size,
			Unique: g.Unique, Shared: g.Shared, Elsewhere: g.Elsewhere, Active: g.Active,
		}
		if g.Image >= 0 {
			row.Digest, row.Names = images[g.Image].Target, images[g.Image].Names
		}
		r.Images = append(r.Images, row)
	}
	return r
}

// keepNamespace keeps only images with a name in one namespace of containerd; "" keeps all.
func (r *dfReport) keepNamespace(ns string) {
	if ns == "" {
		return
	}
	r.Images = slices.DeleteFunc(r.Images, func(row dfRow) bool {
		return !slices.ContainsFunc(row.Names, func(n containerd.ImageName) bool { return n.Namespace == ns })
	})
}

func (c *cli) printDf(r *dfReport) error {
	toFree, of := "unknown", "because of damage; see fsck"
	if r.ToFree != nil {
		toFree, of = size(*r.ToFree), "of removed images: in the background, or by prune"
	}
	rows := []string{
		fmt.Sprintf("logical\t%s\tin %d committed snapshots", size(r.Logical), r.Snapshots),
		fmt.Sprintf("stored\t%s\ton the disk", size(r.Stored)),
		fmt.Sprintf("  objects\t%s\tfiles, once each, and layer images", size(r.Objects)),
		fmt.Sprintf("  checkouts\t%s\t%s", size(r.Checkouts), cmp.Or(r.Checkout, "directories, and files that could not be linked")),
		fmt.Sprintf("  active\t%s\twritable layers of containers", size(r.Active)),
		fmt.Sprintf("  metadata\t%s\t", size(r.Metadata)),
		fmt.Sprintf("elsewhere\t%s\tobjects shared with other repositories or deployments", size(r.Elsewhere)),
		fmt.Sprintf("unneeded\t%s\tlayers that no snapshot needs", size(r.Unneeded)),
		fmt.Sprintf("unreferenced\t%s\tobjects in no layer", size(r.Unreferenced)),
		fmt.Sprintf("to free\t%s\t%s", toFree, of),
		fmt.Sprintf("ratio\t%.2f\tlogical / (stored - active)", r.Ratio),
	}
	if err := c.table(rows...); err != nil || len(r.Images) == 0 {
		return err
	}
	if _, err := fmt.Fprintln(c.stdout); err != nil {
		return err
	}
	rows = []string{"IMAGE\tLAYERS\tSIZE\tUNIQUE\tSHARED\tELSEWHERE\tACTIVE"}
	for _, row := range r.Images {
		rows = append(rows, fmt.Sprintf("%s\t%d\t%s\t%s\t%s\t%s\t%d",
			row.title(), row.Layers, size(row.Size), size(row.Unique), size(row.Shared), size(row.Elsewhere), row.Active))
	}
	return c.table(rows...)
}

// title returns an image's name in the table: its first name, or its chain if it has no name.
func (r *dfRow) title() string {
	switch {
	case len(r.Names) == 1:
		return r.Names[0].Name
	case len(r.Names) > 1:
		return fmt.Sprintf("%s (+%d)", r.Names[0].Name, len(r.Names)-1)
	case r.Chain != "":
		return "(chain " + shortDigest(r.Chain) + ")"
	}
	return "(no image)"
}

func size(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }

// shortDigest returns the part of a digest that identifies it in a table.
func shortDigest(d digest.Digest) string {
	if d.Validate() != nil {
		return string(d)
	}
	return d.Encoded()[:12]
}
