package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/composefs"
)

func (c *cli) imageCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "image",
		Short: "Look at images as composefs has them",
		Long:  "Look at the composefs image that an image's containers run on." + exitHelp(),
		Args:  knownCommand,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(c.imageDigestCommand())
	return cmd
}

// imageDigestReport is the output of "image digest --json".
type imageDigestReport struct {
	Name   string               `json:"name"`
	Digest objectstore.Checksum `json:"digest"`
	Size   int                  `json:"size"` // bytes of the composefs image
}

func (c *cli) imageDigestCommand() *cobra.Command {
	var dump bool
	cmd := &cobra.Command{
		Use:   "digest IMAGE",
		Short: "Print the fs-verity digest of an image's root file system",
		Long: `Print the fs-verity digest (SHA-256) of the composefs image that has the root file system of an image, as it was pulled
with this snapshotter. It says all there is of every file: names, owners, modes, times, attributes, links, and by the name
of its object what is in it. Two hosts on which it is the same run the same. Where the repository gives files fs-verity
(key "verity"), the image has the digests of these too, so that its own is another than on a host that does not.

With --dump, that file system is written as composefs-dump(5) instead: "mkcomposefs --from-file" makes the same image of it.
IMAGE is what "ctr images ls" calls it.` + exitHelp(exitNoRepo, exitCorrupt, exitNoImage, exitInterrupted),
		Args:              oneArg("IMAGE"),
		ValidArgsFunction: c.completeImage,
		RunE:              func(cmd *cobra.Command, args []string) error { return c.imageDigest(cmd.Context(), args[0], dump) },
	}
	cmd.Flags().BoolVar(&dump, "dump", false, "write the file system as composefs-dump(5)")
	c.jsonFlag(cmd)
	cmd.MarkFlagsMutuallyExclusive("dump", "json")
	c.imageNamespaceFlag(cmd)
	c.daemonFlag(cmd)
	c.containerdFlags(cmd)
	return cmd
}

func (c *cli) imageDigest(ctx context.Context, name string, dump bool) (err error) {
	src, err := c.openImages()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.close()) }()
	// No layer goes before it is read.
	lock, err := src.store.Repo.Lock(ctx, objectstore.LockShared)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Unlock()) }()
	img, err := c.resolveImage(ctx, src.client, src.store, name)
	if err != nil {
		return err
	}
	if dump {
		root, err := src.store.Layers.RootfsTree(ctx, img.Layers)
		if err != nil {
			return fmt.Errorf("image %s: %w", name, err)
		}
		return composefs.WriteDump(c.stdout, root)
	}
	image, digest, err := src.store.Layers.MarshalRootfs(ctx, img.Layers)
	if err != nil {
		return fmt.Errorf("image %s: %w", name, err)
	}
	if c.json {
		return c.writeJSON(imageDigestReport{Name: name, Digest: digest, Size: len(image)})
	}
	_, err = fmt.Fprintln(c.stdout, digest)
	return err
}
