package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
)

// configDiffReport is the output of "config-diff --json".
type configDiffReport struct {
	Changes []etcChange `json:"changes"`
}

func (c *cli) configDiffCommand() *cobra.Command {
	var f systemFlags
	cmd := &cobra.Command{
		Use:   "config-diff [INDEX]",
		Short: "List the changes of /etc",
		Long: `List the differences between /etc and the image's: M for modified, A for added, D for removed. A new deployment takes
these changes over. Without an index it lists those of the booted deployment, or with --sysroot of the one that boots.

Owner, mode and extended attributes count, times do not. A line tells if only extended attributes differ, which ostree
ignores.` + exitHelp(exitNoSysroot, exitCorrupt, exitInterrupted),
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
			return c.writeJSON(configDiffReport{etcChanges(changes)})
		}
		return c.printEtc(changes)
	})
}
