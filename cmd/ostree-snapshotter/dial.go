package main

import (
	"cmp"
	"os"

	"github.com/ostree-snapshotter/ostree-snapshotter/plugin"
	"github.com/ostree-snapshotter/ostree-snapshotter/plugin/containerd"
)

// dialContainerd returns a client of the containerd that the flag names, or the environment, or the configuration.
func (c *cli) dialContainerd(cfg *plugin.Config) (*containerd.Client, error) {
	return containerd.Dial(c.containerdSocket(cfg))
}

func (c *cli) containerdSocket(cfg *plugin.Config) string {
	return cmp.Or(c.containerdAddress, os.Getenv("CONTAINERD_ADDRESS"), cfg.Containerd.Address)
}
