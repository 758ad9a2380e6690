package main

import (
	"context"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
)

// changeStatuses are the exit statuses of commands that change a system without an image.
var changeStatuses = []int{exitPartly, exitLocked, exitCorrupt, exitNoSysroot, exitInterrupted}

func (c *cli) rollbackCommand() *cobra.Command {
	var f systemFlags
	cmd := &cobra.Command{
		Use:   "rollback",
		Short: "Boot the previous deployment next",
		Long: `Make the deployment behind the booted one boot next. It has the /etc that it had; /var is shared by all. Without a booted
one, as with --sysroot, it is the one behind the default. Another rollback undoes it.

A staged deployment is not dropped silently: the output tells what becomes of it, and --dry-run tells it in advance.` +
			exitHelp(changeStatuses...),
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.planned(cmd.Context(), &f, func(s *deploy.System, st *sysroot.State) (*sysroot.Plan, string, error) {
				p, err := s.PlanRollback(st)
				if err != nil {
					return nil, "", err
				}
				return p, deploy.Title(p.Deployments[0]) + " boots next", nil
			})
		},
	}
	f.addChange(cmd)
	c.jsonFlag(cmd)
	return cmd
}

// planned makes a plan and executes it. The plan comes with the text to print when it is done.
func (c *cli) planned(ctx context.Context, f *systemFlags, plan func(*deploy.System, *sysroot.State) (*sysroot.Plan, string, error)) error {
	return c.lockSystem(ctx, f, func(s *deploy.System, st *sysroot.State) error {
		p, done, err := plan(s, st)
		if err != nil {
			return err
		}
		return c.change(ctx, s, p, f, done)
	})
}

func (c *cli) undeployCommand() *cobra.Command {
	var f systemFlags
	cmd := &cobra.Command{
		Use:   "undeploy INDEX",
		Short: "Remove a deployment",
		Long: `Remove a deployment, its boot entry, and everything that only it needs. INDEX is the index in "ostree-snapshotter status".
The booted deployment and pinned ones cannot be removed.` + exitHelp(changeStatuses...),
		Args:              oneArg("INDEX"),
		ValidArgsFunction: c.completeIndex(&f),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.planned(cmd.Context(), &f, func(s *deploy.System, st *sysroot.State) (*sysroot.Plan, string, error) {
				d, index, err := indexArg(st, args[0])
				if err != nil {
					return nil, "", err
				}
				p, err := s.PlanUndeploy(st, index)
				return p, "removed " + deploy.Title(d), err
			})
		},
	}
	f.addChange(cmd)
	c.jsonFlag(cmd)
	return cmd
}

func (c *cli) pinCommand() *cobra.Command {
	return c.pinOrUnpin(true, "pin INDEX", "Keep a deployment until it is unpinned",
		`Keep a deployment, whatever is deployed, until it is unpinned.`)
}

func (c *cli) unpinCommand() *cobra.Command {
	return c.pinOrUnpin(false, "unpin INDEX", "No longer keep a pinned deployment",
		`Let a pinned deployment go when others replace it, like one that was never pinned.`)
}

func (c *cli) pinOrUnpin(pinned bool, use, short, long string) *cobra.Command {
	var f systemFlags
	cmd := &cobra.Command{
		Use:               use,
		Short:             short,
		Long:              long + " INDEX is the index in \"ostree-snapshotter status\"." + exitHelp(changeStatuses...),
		Args:              oneArg("INDEX"),
		ValidArgsFunction: c.completeIndex(&f),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.lockSystem(cmd.Context(), &f, func(s *deploy.System, st *sysroot.State) error {
				d, index, err := indexArg(st, args[0])
				if err != nil {
					return err
				}
				if st.Staged != nil && d == st.Staged.Deployment {
					return withHint(usagef("%s is staged: it can be pinned once it is finalized", deploy.Title(d)),
						"a shutdown finalizes it")
				}
				if d.Pinned() == pinned {
					return c.noChange(st, &f, deploy.Title(d)+" is "+pinWord(pinned))
				}
				p, err := s.PlanPin(st, index, pinned)
				if err != nil {
					return err
				}
				return c.change(cmd.Context(), s, p, &f, deploy.Title(d)+" is "+pinWord(pinned))
			})
		},
	}
	f.addChange(cmd)
	c.jsonFlag(cmd)
	return cmd
}

func pinWord(pinned bool) string {
	if pinned {
		return "pinned"
	}
	return "not pinned"
}

// indexArg returns the deployment with an index given as an argument.
func indexArg(st *sysroot.State, arg string) (*sysroot.Deployment, int, error) {
	index, err := strconv.Atoi(arg)
	if err != nil {
		return nil, 0, withHint(usagef("%q is not an index of a deployment", arg), "\"ostree-snapshotter status\" lists them")
	}
	all := st.All()
	if index < 0 || index >= len(all) {
		return nil, 0, withHint(usagef("there is no deployment %d", index), "\"ostree-snapshotter status\" lists them with their indexes")
	}
	return all[index], index, nil
}
