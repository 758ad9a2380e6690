package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/ostree-snapshotter/ostree-snapshotter/plugin"
	"github.com/ostree-snapshotter/ostree-snapshotter/plugin/containerd"
)

func (c *cli) configCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Print and check configuration",
		Long:  "Print and check the configuration of this program, and print the configuration that containerd needs for it." + exitHelp(),
		Args:  knownCommand,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(c.configDefaultCommand(), c.configContainerdCommand(), c.configCheckCommand())
	return cmd
}

func (c *cli) configDefaultCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "default",
		Short: "Print every key with its default and its meaning",
		Long: "Print a configuration file with every key, its default and its meaning. The program reads\n" +
			plugin.DefaultConfigFile + "; missing keys have their defaults." + exitHelp(),
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			b, err := plugin.DefaultConfig().Encode()
			if err != nil {
				return err
			}
			_, err = c.stdout.Write(b)
			return err
		},
	}
}

func (c *cli) configContainerdCommand() *cobra.Command {
	var f containerdFlags
	var version, verifiers string
	cmd := &cobra.Command{
		Use:   "containerd",
		Short: "Print the configuration that containerd needs",
		Long: `Print the configuration that containerd needs to use this snapshotter and differ, with the socket and root of this
program's configuration.

It fits the containerd of --version, else the running one. --version takes a release, such as 2.2, or the version of the
configuration format: 2 for containerd 1.7, 3 for 2.0 and later, 4 for 2.3 and later. Without either, the format is 3.
containerd 1.6 and earlier cannot use this program.

With --image-verifier, containerd calls the programs in DIR before it pulls an image; "verify-image" is for one of them.` + exitHelp(),
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.containerdConfig(cmd.Context(), &f, version, verifiers)
		},
	}
	cmd.Flags().StringVar(&version, "version", "", "`VERSION` of containerd, or of its configuration format: 2, 3 or 4")
	completeValues(cmd, "version", "2", "3", "4")
	cmd.Flags().StringVar(&verifiers, "image-verifier", "", "let containerd check images with the programs in `DIR`, an absolute path")
	f.addContainerd(cmd)
	return cmd
}

func (c *cli) containerdConfig(ctx context.Context, f *containerdFlags, version, verifiers string) error {
	if verifiers != "" && !filepath.IsAbs(verifiers) {
		return usagef("--image-verifier %q is not an absolute path", verifiers)
	}
	var release containerd.Version
	var err error
	if version != "" {
		if release, err = containerd.ParseConfigVersion(version); err != nil {
			return withHint(usagef("%v", err), "use a release of containerd such as 2.2, or 2, 3 or 4")
		}
	}
	cfg, err := c.loadConfig()
	if err != nil {
		return err
	}
	if version == "" {
		if release, err = f.version(ctx, cfg); err != nil {
			release = containerd.Version{Major: 2}
			c.note("version 3 is assumed: %v", err)
		}
	}
	if err := release.Supported(); err != nil {
		return err
	}
	_, err = fmt.Fprint(c.stdout, containerd.Config{Version: release, Address: cfg.Address, Root: cfg.Root, Verifiers: verifiers})
	return err
}

// version returns the version of the running containerd.
func (f *containerdFlags) version(ctx context.Context, cfg *plugin.Config) (containerd.Version, error) {
	client, err := f.dial(cfg)
	if err != nil {
		return containerd.Version{}, err
	}
	text, err := client.Version(ctx)
	if err = errors.Join(err, client.Close()); err != nil {
		return containerd.Version{}, err
	}
	return containerd.ParseVersion(text)
}

func (c *cli) configCheckCommand() *cobra.Command {
	var f containerdFlags
	var daemon daemonFlags
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check the configuration, the host, the daemon and containerd",
		Long: `Check the configuration file, whether the kernel and the root's file system have all that "serve" needs, whether the daemon
runs on this root and answers, and whether the running containerd is configured for this snapshotter. Nothing is changed.

A check is skipped, without failing, if the file or program to check does not exist yet.` + exitHelp(),
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.configCheck(cmd.Context(), &f, &daemon) },
	}
	c.jsonFlag(cmd)
	f.addContainerd(cmd)
	daemon.addDaemon(cmd)
	return cmd
}

func (c *cli) configCheck(ctx context.Context, f *containerdFlags, daemon *daemonFlags) error {
	cfg, err := c.loadConfig()
	if err != nil {
		return err
	}
	for _, key := range cfg.Removed {
		c.note("key %q has no effect any more", key)
	}
	cfg.Address = cmp.Or(daemon.daemon, cfg.Address)
	list := findings(ctx, cfg, f.socket(cfg))
	if c.json {
		err = c.writeJSON(checkReport{list})
	} else {
		var rows []string
		for _, f := range list {
			rows = append(rows, f.Result+"\t"+f.Check+"\t"+f.Detail)
		}
		err = c.table(rows...)
	}
	if err != nil {
		return err
	}
	failed := 0
	for _, f := range list {
		if f.Result == resultFailed {
			failed++
		}
	}
	if failed > 0 {
		return errors.New(strconv.Itoa(failed) + " of " + strconv.Itoa(len(list)) + " checks failed")
	}
	return nil
}
