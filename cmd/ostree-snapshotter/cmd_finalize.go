package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
)

func (c *cli) finalizeStagedCommand() *cobra.Command {
	var f systemFlags
	cmd := &cobra.Command{
		Use:   "finalize-staged",
		Short: "Make the staged deployment the default, when the system shuts down",
		Long: `Make the staged deployment the one that boots next, with /etc as it is now. A unit calls this when the system shuts
down; it is of no use before. A locked deployment stays staged. Without a staged deployment, this updates the boot files
for the present deployments, in case another program has changed these.

An error is left for the next boot to report, by "ostree-snapshotter boot-complete" or ostree.` +
			exitHelp(append([]int{exitConflict}, changeStatuses...)...),
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.finalizeStaged(cmd.Context(), &f) },
	}
	f.addUnit(cmd)
	c.jsonFlag(cmd)
	return cmd
}

func (c *cli) finalizeStaged(ctx context.Context, f *systemFlags) error {
	return c.lockSystem(ctx, f, func(s *deploy.System, st *sysroot.State) error {
		p, err := s.FinalizeStaged(ctx) // if nothing is staged, this updates the boot loader
		switch {
		case p != nil:
			return errors.Join(err, c.changed(newChangeReport(p, false), p, deployed(p)))
		case err != nil:
			return err
		case st.Staged != nil:
			return c.noChange(st, f, deploy.Title(st.Staged.Deployment)+" is staged and locked")
		}
		return c.noChange(st, f, "nothing is staged")
	})
}

// bootReport is the output of "boot-complete --json".
type bootReport struct {
	Booted   *deploymentName `json:"booted,omitempty"`
	Blessed  bool            `json:"blessed"`
	Finalize string          `json:"finalize_error,omitempty"`
}

func (c *cli) bootCompleteCommand() *cobra.Command {
	var f systemFlags
	cmd := &cobra.Command{
		Use:   "boot-complete",
		Short: "Record that the system has booted well",
		Long: `Record that the system has booted well. A unit calls this then: the boots of the booted deployment are no longer counted,
so that it stays the default. Otherwise, a deployment made with --boot-tries is given up after that many boots.

If a staged deployment could not be finalized when the system shut down, this reports why and fails.` +
			exitHelp(changeStatuses...),
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.bootComplete(cmd.Context(), &f) },
	}
	f.addUnit(cmd)
	c.jsonFlag(cmd)
	return cmd
}

func (c *cli) bootComplete(ctx context.Context, f *systemFlags) error {
	return c.lockSystem(ctx, f, func(s *deploy.System, _ *sysroot.State) error {
		found, err := s.BootComplete(ctx)
		if err != nil && !errors.Is(err, deploy.ErrNotFinalized) {
			return err
		}
		return errors.Join(c.bootCompleted(found), err)
	})
}

func (c *cli) bootCompleted(found *sysroot.BootReport) (err error) {
	if c.json {
		r := bootReport{Blessed: found.Blessed, Finalize: found.Finalize}
		if found.Booted != nil {
			r.Booted = new(newDeploymentName(found.Booted))
		}
		return c.writeJSON(r)
	}
	switch {
	case found.Booted == nil:
		_, err = fmt.Fprintln(c.stdout, "no deployment is booted")
	case found.Blessed:
		_, err = fmt.Fprintf(c.stdout, "%s has booted well, and is no longer counted\n", deploy.Title(found.Booted))
	default:
		_, err = fmt.Fprintf(c.stdout, "%s has booted well\n", deploy.Title(found.Booted))
	}
	return err
}
