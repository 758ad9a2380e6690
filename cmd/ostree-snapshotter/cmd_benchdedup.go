package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/platforms"
	"github.com/spf13/cobra"

	"github.com/ostree-snapshotter/ostree-snapshotter/bench/dedup"
	"github.com/ostree-snapshotter/ostree-snapshotter/bench/dedup/images"
	"github.com/ostree-snapshotter/ostree-snapshotter/plugin/containerd"
)

// dedupOptions are the flags of "bench dedup".
type dedupOptions struct {
	imageFlags
	platform string
	verbose  bool
}

func (c *cli) benchDedupCommand() *cobra.Command {
	var opts dedupOptions
	cmd := &cobra.Command{
		Use:   "dedup REF...",
		Short: "Show the savings of each kind of deduplication for images",
		Long: `Show the savings of each kind of deduplication for images: their size if nothing is shared; if layers are shared; files
(by content, owner, mode, attributes and mtime, or by fewer of these); or chunks of files, of 4 KiB, of 128 KiB, or
content-defined (FastCDC, 64 KiB on average).

REF is an image of containerd, whose blobs must be in the content store, or oci:DIR[:TAG], an OCI layout. Neither the daemon
nor its store is needed, and nothing is unpacked: each layer is read once.

"bytes" counts the content of regular files or their chunks, "on disk" the same in blocks of 4 KiB, as if each were a file. A
ratio is the size without sharing divided by the remaining size. With -v, a line for each image shows what it adds to those
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
	opts.addImage(cmd)
	cmd.Flags().StringVar(&opts.platform, "platform", "", "measure the manifests for `PLATFORM`, like linux/arm64, instead of this host's")
	cmd.Flags().BoolVarP(&opts.verbose, "verbose", "v", false, "list the additions of each image to those before it")
	return cmd
}

func (c *cli) benchDedup(ctx context.Context, refs []string, opts dedupOptions) (err error) {
	platform := platforms.DefaultSpec()
	if opts.platform != "" {
		if platform, err = platforms.Parse(opts.platform); err != nil {
			return withHint(usagef("platform %q is none: %v", opts.platform, err), "one is like linux/amd64 or linux/arm/v7")
		}
	}
	cfg, err := c.loadConfig()
	if err != nil {
		return err
	}
	finder := &images.Finder{
		Platform: platform, Namespace: opts.namespace, ContentRoot: cfg.Containerd.ContentRoot,
		Dial: func() (*containerd.Client, error) { return opts.dial(cfg) },
	}
	defer func() { err = errors.Join(err, finder.Close()) }()
	found, failed, err := finder.Find(ctx, refs)
	if err != nil {
		return err
	}
	bar := c.newProgress("reading layers, MiB:")
	report, err := dedup.Measure(ctx, found, dedup.Options{Progress: func(n int64) { bar.update(n>>20, 0) }})
	bar.stop()
	if err != nil {
		return err
	}
	failed = append(failed, report.Failed...)
	if len(report.Images) > 0 {
		if err := c.showDedup(dedup.NewDocument(report, platforms.Format(platform), failed), opts.verbose); err != nil {
			return err
		}
	}
	return dedupError(failed, len(report.Images) > 0)
}

// dedupError joins the errors of images, a line each.
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

// dedupTitles are the names of the kinds in the table.
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

func (c *cli) showDedup(r *dedup.Document, verbose bool) error {
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

// tables writes rows as several tables. An empty row separates two tables.
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
				return err
			}
			rows = rows[1:]
		}
	}
	return nil
}

// percent formats a part of a whole.
func percent(part, whole int64) string {
	if whole <= 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f %%", 100*float64(part)/float64(whole))
}
