package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// cleanupReport is what "cleanup" removes.
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
		Short: "Remove what interrupted changes of the system have left",
		Long: `Remove deployments, boot files and objects that no deployment needs: what changes have left that were interrupted.
Every change does so too when it is done.` + exitHelp(changeStatuses...),
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.cleanupSystem(cmd.Context(), &f, noPrune) },
	}
	f.addChange(cmd)
	cmd.Flags().BoolVar(&noPrune, "no-prune", false, "leave objects in the repository that nothing needs any more")
	c.jsonFlag(cmd)
	return cmd
}

func (c *cli) cleanupSystem(ctx context.Context, f *systemFlags, noPrune bool) error {
	return c.lockSystem(ctx, f, func(s *system, st *sysroot.State) error {
		p, err := s.PlanCleanup(ctx, st)
		if err != nil {
			return explain(err)
		}
		p.NoPrune = true // here, so that it can be said what that was
		r := newChangeReport(p, f.dryRun)
		r.Cleanup = &cleanupReport{Paths: append([]string{}, p.Leftovers...), Freed: p.Freed}
		if !f.dryRun {
			if err := s.Execute(ctx, p); err != nil {
				return explain(err)
			}
		}
		if !noPrune {
			if err := r.Cleanup.prune(ctx, s, st, f.dryRun); err != nil {
				return err
			}
		}
		r.Changed = len(r.Cleanup.Paths)+r.Cleanup.Objects > 0
		if c.json {
			return c.writeJSON(r)
		}
		return c.printCleanup(r)
	})
}

// prune removes objects that nothing needs, or with dryRun finds them.
func (r *cleanupReport) prune(ctx context.Context, s *system, st *sysroot.State, dryRun bool) error {
	unused, err := s.unusedImages(st.All()...)
	if err != nil {
		return err
	}
	plan, err := s.Repo().PlanPrune(ctx, objectstore.PruneOptions{Without: unused})
	if err != nil {
		return err
	}
	if len(unused) > 0 && !dryRun {
		if err := s.Repo().DeleteRefs(ctx, unused...); err != nil {
			return err
		}
	}
	stats := plan.Stats()
	if !dryRun {
		stats, err = plan.Execute(ctx)
	}
	r.Objects += stats.Objects
	r.Freed += stats.Bytes
	return err
}

func (c *cli) printCleanup(r *changeReport) error {
	verb := "removed"
	if r.DryRun {
		verb = "would remove"
	}
	for _, name := range r.Cleanup.Paths {
		if _, err := fmt.Fprintf(c.stdout, "%s %s\n", verb, name); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(c.stdout, "%s %d paths, %d objects: %s\n", verb, len(r.Cleanup.Paths), r.Cleanup.Objects, size(r.Cleanup.Freed))
	return err
}
