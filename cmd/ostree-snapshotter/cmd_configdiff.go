package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
)

func (c *cli) configDiffCommand() *cobra.Command {
	var f systemFlags
	cmd := &cobra.Command{
		Use:   "config-diff [INDEX]",
		Short: "List what is changed in /etc",
		Long: `List what /etc has otherwise than the image: M for modified, A for added, D for removed. It is what a new deployment takes
over. Without an index it is about the booted deployment, or with --sysroot about the one that boots.

Owner, mode and extended attributes count, times do not. Where nothing but extended attributes differs, which ostree does
not see, the line says so.` + exitHelp(exitNoSysroot, exitCorrupt, exitInterrupted),
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: c.completeIndex(&f),
		RunE:              func(cmd *cobra.Command, args []string) error { return c.configDiff(cmd.Context(), &f, args) },
	}
	f.addSysroot(cmd)
	c.jsonFlag(cmd)
	return cmd
}

func (c *cli) configDiff(ctx context.Context, f *systemFlags, args []string) error {
	return c.viewSystem(ctx, f, func(s *deploy.System, st *sysroot.State) (err error) {
		var d *sysroot.Deployment
		if len(args) == 1 {
			d, _, err = indexArg(st, args[0])
		} else {
			d, err = deploy.Current(st)
		}
		if err != nil {
			return err
		}
		changes, err := s.EtcChanges(ctx, d)
		if err != nil {
			return fmt.Errorf("compare /etc of %s: %w", deploy.Title(d), err)
		}
		if c.json {
			return c.writeJSON(etcChanges(changes))
		}
		return c.printEtc(changes)
	})
}
