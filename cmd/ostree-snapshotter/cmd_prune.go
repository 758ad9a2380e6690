package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
)

// pruneReport is the output of "prune --json".
type pruneReport struct {
	DryRun    bool  `json:"dry_run"`
	Layers    int   `json:"layers"`
	Checkouts int   `json:"checkouts"`
	Objects   int   `json:"objects"`
	Leftovers int   `json:"leftovers"`
	Bytes     int64 `json:"bytes"`
}

func (c *cli) pruneCommand() *cobra.Command {
	var f daemonFlags
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Remove layers, checkouts and objects that no snapshot needs",
		Long: `Remove layers, checkouts and objects that no snapshot needs, and leftovers of interrupted operations. A running daemon
does so itself when containerd removes snapshots, in the background. This command waits until everything is removed; it is
also for leftovers of a crash, and for a store without a daemon.

Files that a snapshot of containerd or a ref of another program needs are never removed. Garbage is found without a lock
and removed under the repository's exclusive lock, which waits for running pulls.` +
			exitHelp(exitPartly, exitNoRepo, exitLocked, exitCorrupt, exitInterrupted),
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.prune(cmd.Context(), &f, dryRun) },
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "report what would be removed, and remove nothing")
	c.jsonFlag(cmd)
	f.addDaemon(cmd)
	return cmd
}

func (c *cli) prune(ctx context.Context, f *daemonFlags, dryRun bool) (err error) {
	s, err := c.openStore(f)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	stats, err := s.Prune(ctx, dryRun)
	if stats == nil {
		return err
	}
	return errors.Join(c.pruned(stats, dryRun), err)
}

// pruned reports what was removed, or would be.
func (c *cli) pruned(stats *layer.PruneStats, dryRun bool) error {
	if c.json {
		return c.writeJSON(pruneReport{
			DryRun:    dryRun,
			Layers:    stats.Layers,
			Checkouts: stats.Checkouts,
			Objects:   stats.Objects,
			Leftovers: stats.Leftovers,
			Bytes:     stats.Bytes,
		})
	}
	verb := "removed"
	if dryRun {
		verb = "would remove"
	}
	_, err := fmt.Fprintf(c.stdout, "%s %d layers, %d checkouts, %d objects, %d leftovers: %s\n",
		verb, stats.Layers, stats.Checkouts, stats.Objects, stats.Leftovers, size(stats.Bytes))
	return err
}
