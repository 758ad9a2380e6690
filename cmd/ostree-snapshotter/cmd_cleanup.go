package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
)

// cleanupReport lists what "cleanup" removes.
type cleanupReport struct {
	Paths   []string `json:"paths"`
	Objects int      `json:"objects"`
	Freed   int64    `json:"freed_bytes"` // on the disk
}

func (c *cli) cleanupCommand() *cobra.Command {
	var f systemFlags
	var noPrune bool
	cmd := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove the remains of interrupted changes",
		Long: `Remove deployments, boot files and objects that no deployment needs: the remains of interrupted changes. Every change
also does this at its end.` + exitHelp(changeStatuses...),
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.cleanupSystem(cmd.Context(), &f, noPrune) },
	}
	f.addChange(cmd)
	cmd.Flags().BoolVar(&noPrune, "no-prune", false, "leave unneeded objects in the repository")
	c.jsonFlag(cmd)
	return cmd
}

func (c *cli) cleanupSystem(ctx context.Context, f *systemFlags, noPrune bool) error {
	return c.lockSystem(ctx, f, func(s *deploy.System, st *sysroot.State) error {
		done, err := s.Cleanup(ctx, st, deploy.CleanupOptions{NoPrune: noPrune, DryRun: f.dryRun})
		if done == nil {
			return err
		}
		r := newChangeReport(done.Plan, f.dryRun)
		r.Cleanup = &cleanupReport{Paths: append([]string{}, done.Plan.Leftovers...), Objects: done.Objects, Freed: done.Freed}
		r.Changed = len(r.Cleanup.Paths)+r.Cleanup.Objects > 0
		if c.json {
			return errors.Join(c.writeJSON(r), err)
		}
		return errors.Join(c.printCleanup(r), err)
	})
}

func (c *cli) printCleanup(r *changeReport) error {
	verb := "removed"
	if r.DryRun {
		verb = "would remove"
	}
	for _, name := range r.Cleanup.Paths {
		if err := c.println(verb + " " + name); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(c.stdout, "%s %d paths, %d objects: %s\n", verb, len(r.Cleanup.Paths), r.Cleanup.Objects, size(r.Cleanup.Freed))
	return err
}
