package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/ostree-snapshotter/ostree-snapshotter/plugin/containerd"
)

// pullFlags are those of "ctr images pull" that say how to reach a registry.
type pullFlags struct {
	containerd.Registry
	snapshotter string
}

func (p *pullFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&p.snapshotter, "snapshotter", containerd.SnapshotterID, "`NAME` of this snapshotter in containerd's configuration")
	f.StringVar(&p.HostsDir, "hosts-dir", "",
		"`DIR` that describes registries, instead of containerd's own; to compare digests alone, "+containerd.DefaultHostsDir)
	f.BoolVar(&p.PlainHTTP, "plain-http", false, "ask the registry without TLS")
	f.StringVarP(&p.User, "user", "u", "", "`USER:PASSWORD` for the registry")
}

// pull has containerd pull an image and unpack it with this snapshotter.
func (c *cli) pull(ctx context.Context, client *containerd.Client, p *pullFlags, ref string) error {
	bar := c.newProgress("pulling " + ref + ", KiB")
	defer bar.stop()
	return client.Pull(ctx, c.imageNamespace, p.snapshotter, ref, &p.Registry, bar.update)
}
