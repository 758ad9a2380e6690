package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/ostree-snapshotter/ostree-snapshotter/bench/dedup"
)

// dedupOptions are the flags of "bench dedup".
type dedupOptions struct {
	platform string
	verbose  bool
}

func (c *cli) benchDedupCommand() *cobra.Command {
	var opts dedupOptions
	cmd := &cobra.Command{
		Use:   "dedup REF...",
		Short: "Show what each kind of deduplication saves for images",
		Long: `Show what each kind of deduplication saves for images: what they take if nothing is shared, if layers are, files
(by content, owner, mode, attributes and mtime, or by fewer of these), and chunks of files of 4 KiB, of 128 KiB, and cut by
their content (FastCDC, 64 KiB on average).

REF is an image of containerd, of which the blobs must be in the content store, or oci:DIR[:TAG], an OCI layout. Neither the
daemon nor its store is needed, and nothing is unpacked: each layer is read once.

"bytes" is the content of regular files or chunks of them, "on disk" the same in blocks of 4 KiB, as if each were a file. A
ratio is what the images take by themselves, by what is left. With -v there is a line for each image: what it adds to those
above it.` + exitHelp(exitPartly, exitInterrupted),
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return nil
			}
			return withHint(usagef("%q takes one image or more", cmd.CommandPath()),
				"an image is one of \"ctr images ls -q\", or oci:DIR for an OCI layout")
		},
		RunE: func(cmd *cobra.Command, args []string) error { return c.benchDedup(cmd.Context(), args, opts) },
	}
	c.jsonFlag(cmd)
	c.containerdFlags(cmd)
	c.imageNamespaceFlag(cmd)
	cmd.Flags().StringVar(&opts.platform, "platform", "", "measure the manifests for `PLATFORM`, like linux/arm64, instead of this host's")
	cmd.Flags().BoolVarP(&opts.verbose, "verbose", "v", false, "list what each image adds to those before it")
	return cmd
}

func (c *cli) benchDedup(ctx context.Context, refs []string, opts dedupOptions) (err error) {
	platform := platforms.DefaultSpec()
	if opts.platform != "" {
		if platform, err = platforms.Parse(opts.platform); err != nil {
			return withHint(usagef("platform %q is none: %v", opts.platform, err), "one is like linux/amd64 or linux/arm/v7")
		}
	}
	finder, err := c.newImageFinder(ctx, platform)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, finder.close()) }()
	images, failed, err := c.find(ctx, finder, refs)
	if err != nil {
		return err
	}
	bar := c.newProgress("reading layers, MiB:")
	report, err := dedup.Measure(ctx, images, dedup.Options{Progress: func(n int64) { bar.update(n>>20, 0) }})
	bar.stop()
	if err != nil {
		return err
	}
	failed = append(failed, report.Failed...)
	if len(report.Images) > 0 {
		if err := c.showDedup(newDedupReport(report, platform, failed), opts.verbose); err != nil {
			return err
		}
	}
	return dedupError(failed, len(report.Images) > 0)
}

// dedupError makes one error of those of images, a line each.
func dedupError(failed []*dedup.ImageError, some bool) error {
	if len(failed) == 0 {
		return nil
	}
	var errs []error
	for _, f := range failed {
		errs = append(errs, errors.New(strings.ReplaceAll(f.Error(), "\n", ": ")))
	}
	status := exitFailed
	if some {
		status = exitPartly
	}
	err := withStatus(status, errors.Join(errs...))
	for _, f := range failed {
		if hint := hintFor(f); hint != "" {
			return withHint(err, "%s", hint)
		}
	}
	return err
}

// dedupReport is the output of "bench dedup --json".
type dedupReport struct {
	Platform string        `json:"platform"`
	Images   []dedupImage  `json:"images"`
	Kinds    []dedupKind   `json:"kinds"`
	Failed   []dedupFailed `json:"failed,omitempty"`

	Layers      int   `json:"layers"`
	Unique      int   `json:"unique_layers"`
	Blobs       int64 `json:"blob_bytes"`
	UniqueBlobs int64 `json:"unique_blob_bytes"`
	Tars        int64 `json:"tar_bytes"`
	UniqueTars  int64 `json:"unique_tar_bytes"`

	// Over distinct layers.
	HardLinks  dedupSum `json:"hard_links"`
	EmptyFiles int64    `json:"empty_files"`
	Symlinks   int64    `json:"symlinks"`
	Devices    int64    `json:"devices"`
	Whiteouts  int64    `json:"whiteouts"`
	LinksBelow int64    `json:"links_below"`

	Block  int64 `json:"block_bytes"`
	Hashes int   `json:"hashes"`
}

// dedupSum is a number of files or chunks.
type dedupSum struct {
	Count int64 `json:"count"`
	Bytes int64 `json:"bytes"`
	Disk  int64 `json:"disk_bytes"`
}

// dedupKind is what is left of all images if one kind of thing is kept once. Ratios are 0 if nothing is left.
type dedupKind struct {
	Kind string `json:"kind"`
	dedupSum
	Ratio     float64 `json:"dedup_ratio"`
	Saved     int64   `json:"saved_bytes"`
	DiskRatio float64 `json:"disk_dedup_ratio"`
	DiskSaved int64   `json:"saved_disk_bytes"`
}

// dedupImage is an image, with what it adds to those before it.
type dedupImage struct {
	Name     string     `json:"name"`
	Layers   int        `json:"layers"`
	Blobs    int64      `json:"blob_bytes"`
	Tars     int64      `json:"tar_bytes"`
	NewBlobs int64      `json:"new_blob_bytes"`
	New      []dedupNew `json:"new"`
}

type dedupNew struct {
	Kind string `json:"kind"`
	dedupSum
}

type dedupFailed struct {
	Name  string `json:"name"`
	Error string `json:"error"`
}

func newDedupReport(r *dedup.Report, platform ocispec.Platform, failed []*dedup.ImageError) *dedupReport {
	out := &dedupReport{
		Platform:    platforms.Format(platform),
		Images:      []dedupImage{},
		Layers:      r.Layers,
		Unique:      r.UniqueLayers,
		Blobs:       r.Blobs,
		UniqueBlobs: r.UniqueBlobs,
		Tars:        r.Tars,
		UniqueTars:  r.UniqueTars,
		HardLinks:   dedupSum(r.HardLinks),
		EmptyFiles:  r.Others.EmptyFiles,
		Symlinks:    r.Others.Symlinks,
		Devices:     r.Others.Devices,
		Whiteouts:   r.Others.Whiteouts,
		LinksBelow:  r.Others.LinksBelow,
		Block:       dedup.BlockSize,
		Hashes:      r.Hashes,
	}
	all := r.Kinds[dedup.Images]
	for _, k := range dedup.Kinds() {
		left := r.Kinds[k]
		saved := all.Minus(left)
		out.Kinds = append(out.Kinds, dedupKind{
			Kind: k.String(), dedupSum: dedupSum(left),
			Ratio: ratio(all.Bytes, left.Bytes), Saved: saved.Bytes,
			DiskRatio: ratio(all.Disk, left.Disk), DiskSaved: saved.Disk,
		})
	}
	for _, img := range r.Images {
		row := dedupImage{Name: img.Name, Layers: img.Layers, Blobs: img.Blobs, Tars: img.Tars, NewBlobs: img.NewBlobs}
		for _, k := range dedup.Kinds() {
			row.New = append(row.New, dedupNew{k.String(), dedupSum(img.New[k])})
		}
		out.Images = append(out.Images, row)
	}
	for _, f := range failed {
		out.Failed = append(out.Failed, dedupFailed{f.Name, f.Err.Error()})
	}
	return out
}

func ratio(all, left int64) float64 {
	if left <= 0 {
		return 0
	}
	return float64(all) / float64(left)
}

// dedupTitles are what the table calls the kinds.
var dedupTitles = map[dedup.Kind]string{
	dedup.Images:    "nothing",
	dedup.Layers:    "layers",
	dedup.Mtime:     "files with metadata and mtime",
	dedup.Metadata:  "files with metadata",
	dedup.Content:   "file contents",
	dedup.Fixed128K: "chunks of 128 KiB",
	dedup.Fixed4K:   "chunks of 4 KiB",
	dedup.CDC64K:    "content-defined chunks",
}

func (c *cli) showDedup(r *dedupReport, verbose bool) error {
	if c.json {
		return c.writeJSON(r)
	}
	rows := []string{"KEPT ONCE\tCOUNT\tBYTES\tRATIO\tSAVED\tON DISK\tRATIO\tSAVED"}
	for i, k := range dedup.Kinds() {
		row, all := r.Kinds[i], r.Kinds[dedup.Images]
		rows = append(rows, fmt.Sprintf("%s\t%d\t%s\t%.2f\t%s\t%s\t%.2f\t%s", dedupTitles[k], row.Count,
			size(row.Bytes), row.Ratio, percent(row.Saved, all.Bytes), size(row.Disk), row.DiskRatio, percent(row.DiskSaved, all.Disk)))
	}
	content, metadata, mtime := r.Kinds[dedup.Content], r.Kinds[dedup.Metadata], r.Kinds[dedup.Mtime]
	rows = append(rows, "",
		fmt.Sprintf("layers\t%d\t%d different", r.Layers, r.Unique),
		fmt.Sprintf("blobs\t%s\t%s different", size(r.Blobs), size(r.UniqueBlobs)),
		fmt.Sprintf("tars\t%s\t%s different", size(r.Tars), size(r.UniqueTars)),
		fmt.Sprintf("hard links save\t%s\t%d further names of files, inside layers", size(r.HardLinks.Disk), r.HardLinks.Count),
		fmt.Sprintf("mtimes cost\t%s\t%d files that differ in nothing else", size(mtime.Disk-metadata.Disk), mtime.Count-metadata.Count),
		fmt.Sprintf("metadata cost\t%s\t%d files of the same content", size(metadata.Disk-content.Disk), metadata.Count-content.Count),
		fmt.Sprintf("without content\t%d\t%d empty files, %d symbolic links, %d devices, %d whiteouts, %d links to layers below",
			r.EmptyFiles+r.Symlinks+r.Devices+r.Whiteouts+r.LinksBelow, r.EmptyFiles, r.Symlinks, r.Devices, r.Whiteouts, r.LinksBelow),
	)
	if err := c.tables(rows); err != nil || !verbose {
		return err
	}
	rows = []string{"", "IMAGE ADDS\tBLOBS\tNOTHING\tLAYERS\tMTIME\tMETADATA\tCONTENT\t128 KIB\t4 KIB\tCDC"}
	for _, img := range r.Images {
		row := fmt.Sprintf("%s\t%s", img.Name, size(img.NewBlobs))
		for _, n := range img.New {
			row += "\t" + size(n.Bytes)
		}
		rows = append(rows, row)
	}
	return c.tables(rows)
}

// tables writes rows as several tables, with an empty line where there is an empty row.
func (c *cli) tables(rows []string) error {
	for len(rows) > 0 {
		n := 0
		for n < len(rows) && rows[n] != "" {
			n++
		}
		if err := c.table(rows[:n]...); err != nil {
			return err
		}
		if rows = rows[n:]; len(rows) > 0 {
			if _, err := fmt.Fprintln(c.stdout); err != nil {
				return fmt.Errorf("write output: %w", err)
			}
			rows = rows[1:]
		}
	}
	return nil
}

// percent says what part of a whole is.
func percent(part, whole int64) string {
	if whole <= 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f %%", 100*float64(part)/float64(whole))
}
