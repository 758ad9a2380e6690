package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/kargs"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
)

// kargsReport is the output of "kargs --json" without changes.
type kargsReport struct {
	Deployment deploymentName `json:"deployment"`
}

func (c *cli) kargsCommand() *cobra.Command {
	var f systemFlags
	var edits kargs.Edits
	cmd := &cobra.Command{
		Use:   "kargs",
		Short: "Show or change the kernel arguments",
		Long: `Print the kernel arguments of the deployment that boots next, or change them. A change makes a new deployment of the same
commit, so that the one with the old arguments stays, to fall back to. If the deployment is staged, so is the new one.` + exitHelp(append([]int{exitPartly, exitConflict}, changeStatuses...)...),
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if edits.Empty() {
				return c.showKargs(cmd.Context(), &f)
			}
			return c.changeKargs(cmd.Context(), &f, &edits)
		},
	}
	f.addChange(cmd)
	f.addStateroot(cmd, "the deployment of the stateroot `NAME` instead of the one that runs or boots")
	c.jsonFlag(cmd)
	addKargEdits(cmd, &edits, "set", "")
	return cmd
}

func (c *cli) showKargs(ctx context.Context, f *systemFlags) error {
	f.changes = false
	return c.viewSystem(ctx, f, func(s *deploy.System, st *sysroot.State) error {
		d, err := s.Newest(st, f.stateroot)
		if err != nil {
			return err
		}
		if c.json {
			return c.writeJSON(kargsReport{newDeploymentName(d)})
		}
		err = c.println(d.Kargs.String())
		return err
	})
}

func (c *cli) changeKargs(ctx context.Context, f *systemFlags, edits *kargs.Edits) error {
	if err := edits.Check(); err != nil {
		return err
	}
	return c.lockSystem(ctx, f, func(s *deploy.System, st *sysroot.State) error {
		d, err := s.Newest(st, f.stateroot)
		if err != nil {
			return err
		}
		p, err := s.PlanKargs(ctx, st, d, edits)
		switch {
		case err != nil:
			return err
		case p == nil:
			return c.noChange(st, f, fmt.Sprintf("the kernel arguments of %s are %s", deploy.Title(d), d.Kargs))
		}
		return c.change(ctx, s, p, f, deployed(p)+"; kernel arguments: "+p.New.Kargs.String())
	})
}
