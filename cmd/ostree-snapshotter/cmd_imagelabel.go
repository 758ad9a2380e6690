package main

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"

	"github.com/spf13/cobra"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy"
)

// imageLabelReport is the output of "image label --json".
type imageLabelReport struct {
	Name   string           `json:"name"`
	Policy string           `json:"policy"`
	Mode   string           `json:"mode"` // enforcing or permissive
	Files  []imageLabelFile `json:"files"`
}

type imageLabelFile struct {
	Path    string          `json:"path"`
	Type    string          `json:"type"` // directory, file or symlink
	InImage bool            `json:"in_image"`
	Label   string          `json:"label,omitempty"`
	Line    *imageLabelLine `json:"line,omitempty"` // none if no line fits
}

type imageLabelLine struct {
	File   string `json:"file"`
	Number int    `json:"number"` // from 1
	Spec   string `json:"spec"`
}

// imageLabelFlags are the flags of "image label".
type imageLabelFlags struct {
	daemonFlags
	imageFlags
}

func (c *cli) imageLabelCommand() *cobra.Command {
	var f imageLabelFlags
	cmd := &cobra.Command{
		Use:   "label IMAGE PATH...",
		Short: "Print the SELinux labels that files of an image get",
		Long: `Print the SELinux label of each path by the policy inside the image, and which line of which file of the policy says so.
Neither the host's policy nor libselinux is used. A path that the image does not have counts as a regular file, with a
slash at the end as a directory.

IMAGE is the name in "ctr images ls".` + exitHelp(exitNoRepo, exitCorrupt, exitNoImage, exitNotBootable, exitInterrupted),
		Args:              cobra.MinimumNArgs(2),
		ValidArgsFunction: c.completeImage(&f.imageFlags),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.imageLabel(cmd.Context(), &f, args[0], args[1:])
		},
	}
	c.jsonFlag(cmd)
	f.addDaemon(cmd)
	f.addImage(cmd)
	return cmd
}

func (c *cli) imageLabel(ctx context.Context, f *imageLabelFlags, name string, paths []string) error {
	return c.viewImage(ctx, &f.daemonFlags, &f.imageFlags, name, func(s *store, img *deploy.Image) error {
		labels, err := deploy.ReadLabels(ctx, s.Layers, img)
		if err != nil {
			return err
		}
		r := imageLabelReport{Name: name, Policy: labels.Policy.Type, Mode: labels.Policy.Mode}
		for _, p := range paths {
			r.Files = append(r.Files, newImageLabelFile(labels.File(p)))
		}
		if c.json {
			return c.writeJSON(r)
		}
		rows := []string{"PATH\tTYPE\tLABEL\tLINE"}
		for _, f := range r.Files {
			rows = append(rows, f.row())
		}
		return c.table(rows...)
	})
}

// labelTypes are the names of types of files. An OS commit has no others.
var labelTypes = map[fs.FileMode]string{0: "file", fs.ModeDir: "directory", fs.ModeSymlink: "symlink"}

func newImageLabelFile(f deploy.FileLabel) imageLabelFile {
	r := imageLabelFile{Path: f.Path, Type: labelTypes[f.Type], InImage: f.InImage, Label: f.Label}
	if f.Line.Line > 0 {
		r.Line = &imageLabelLine{File: f.Line.File, Number: f.Line.Line, Spec: f.Line.Spec}
	}
	return r
}

func (f imageLabelFile) row() string {
	typ, line := f.Type, "no line fits"
	if !f.InImage {
		typ += ", not in the image"
	}
	if f.Line != nil {
		line = fmt.Sprintf("%s:%d: %s", f.Line.File, f.Line.Number, f.Line.Spec)
	}
	return fmt.Sprintf("%s\t%s\t%s\t%s", f.Path, typ, cmp.Or(f.Label, "none"), line)
}
