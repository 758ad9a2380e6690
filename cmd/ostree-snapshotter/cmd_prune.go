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
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Remove layers, checkouts and objects that no snapshot needs",
		Long: `Remove layers, checkouts and objects that no snapshot needs, and what interrupted operations left over. The running
daemon does so itself when containerd removes snapshots; this is for what is left after a crash, and for a store without
a daemon.

What a snapshot of containerd needs, or a ref that is not ours, is never removed. What is garbage is found without
disturbing anybody; it is removed under the repository's exclusive lock, for which a running pull is waited.` +
			exitHelp(exitNoRepo, exitLocked, exitCorrupt, exitInterrupted),
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.prune(cmd.Context(), dryRun) },
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "say what would be removed and remove nothing")
	c.jsonFlag(cmd)
	c.daemonFlag(cmd)
	return cmd
}

func (c *cli) prune(ctx context.Context, dryRun bool) (err error) {
	s, err := c.openStore()
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

// pruned says what was removed, or would be.
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
