package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/kargs"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
)

// kargsReport is the output of "kargs --json" that changes nothing.
type kargsReport struct {
	Deployment deploymentName `json:"deployment"`
}

func (c *cli) kargsCommand() *cobra.Command {
	var f systemFlags
	var edits kargs.Edits
	cmd := &cobra.Command{
		Use:   "kargs",
		Short: "Show or change the kernel arguments",
		Long: `Print the kernel arguments of the deployment that boots next, or change them: that makes a new deployment of the same
commit, so that the one with the old arguments is there to fall back to. If the deployment is a staged one, so is the new
one.` + exitHelp(append([]int{exitPartly, exitConflict}, changeStatuses...)...),
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
	fl := cmd.Flags()
	fl.StringArrayVar(&edits.Set, "set", nil, "have the kernel argument `KEY[=VALUE]` instead of all with this key; repeatable")
	fl.StringArrayVar(&edits.Append, "append", nil, "add the kernel argument `KEY[=VALUE]`; repeatable")
	fl.StringArrayVar(&edits.Replace, "replace", nil, "replace the value: `KEY=VALUE`, or KEY=OLD=NEW; repeatable")
	fl.StringArrayVar(&edits.Delete, "delete", nil, "remove the kernel argument `KEY[=VALUE]`; repeatable")
	return cmd
}

// kargsDeployment returns the deployment that the command is about.
func (f *systemFlags) kargsDeployment(s *system, st *sysroot.State) (*sysroot.Deployment, error) {
	stateroot, err := s.chooseStateroot(st, f.stateroot)
	if err != nil {
		return nil, err
	}
	for _, d := range st.All() {
		if d.Stateroot == stateroot {
			return d, nil
		}
	}
	return nil, withHint(fmt.Errorf("stateroot %s has no deployment", stateroot), "\"ostree-snapshotter status\" lists all")
}

func (c *cli) showKargs(ctx context.Context, f *systemFlags) error {
	f.changes = false
	return c.viewSystem(ctx, f, func(s *system, st *sysroot.State) error {
		d, err := f.kargsDeployment(s, st)
		if err != nil {
			return err
		}
		if c.json {
			return c.writeJSON(kargsReport{newDeploymentName(d)})
		}
		_, err = fmt.Fprintln(c.stdout, d.Kargs)
		return err
	})
}

func (c *cli) changeKargs(ctx context.Context, f *systemFlags, edits *kargs.Edits) error {
	if err := edits.Check(); err != nil {
		return err
	}
	return c.lockSystem(ctx, f, func(s *system, st *sysroot.State) error {
		d, err := f.kargsDeployment(s, st)
		if err != nil {
			return err
		}
		list, err := edits.Apply(d.Kargs)
		if err != nil {
			return withHint(err, "they are %s", d.Kargs)
		}
		if slices.Equal(list, d.Kargs) {
			return c.noChange(st, f, fmt.Sprintf("the kernel arguments of %s are %s", title(d), list))
		}
		p, err := s.planKargs(ctx, st, d, list)
		if err != nil {
			return explain(err)
		}
		return c.change(ctx, s, st, p, f, nil, deployed(p)+"; kernel arguments: "+list.String())
	})
}

// planKargs plans what a staged deployment needs differently: its /etc is not merged yet, and it stays staged.
func (s *system) planKargs(ctx context.Context, st *sysroot.State, d *sysroot.Deployment, list kargs.List) (*sysroot.Plan, error) {
	if st.Staged == nil || d != st.Staged.Deployment {
		return s.PlanKargs(ctx, st, d, list)
	}
	if st.Staged.Locked {
		return nil, errors.New("the staged deployment is locked: it is not to be changed")
	}
	return s.PlanDeploy(ctx, st, sysroot.Request{
		Stateroot: d.Stateroot, Commit: d.Commit, Origin: d.Origin, Kargs: list, Merge: st.Staged.Merge,
		Stage: true, NoSELinux: true, // what was staged was allowed
	})
}
