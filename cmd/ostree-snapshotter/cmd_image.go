package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/composefs"
)

func (c *cli) imageCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "image",
		Short: "Look at images, check their signatures, and make them of ostree commits and back",
		Long: "Show the composefs image that an image's containers run on, or the SELinux labels that its files have in a deployment;\n" +
			"check an image's signatures; or write an ostree commit as an image, and take it out again." + exitHelp(),
		Args: knownCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(c.imageDigestCommand(), c.imageLabelCommand(), c.imageVerifyCommand(),
		c.imageEncapsulateCommand(), c.imageUnencapsulateCommand())
	return cmd
}

// imageDigestReport is the output of "image digest --json".
type imageDigestReport struct {
	Name   string               `json:"name"`
	Digest objectstore.Checksum `json:"digest"`
	Size   int                  `json:"size"` // bytes of the composefs image
}

// imageDigestFlags are the flags of "image digest".
type imageDigestFlags struct {
	daemonFlags
	imageFlags
	dump bool
}

func (c *cli) imageDigestCommand() *cobra.Command {
	var f imageDigestFlags
	cmd := &cobra.Command{
		Use:   "digest IMAGE",
		Short: "Print the fs-verity digest of an image's root file system",
		Long: `Print the fs-verity digest (SHA-256) of the composefs image with the root file system of an image that was pulled with
this snapshotter. The digest covers every file's names, owner, mode, time, attributes and links, and, by object name, its
content. Two hosts with the same digest run the same image. If the repository gives files fs-verity (key "verity"), the
composefs image contains their digests too, so that its own differs from that on a host without.

With --dump, print the file system as composefs-dump(5) instead: "mkcomposefs --from-file" makes the same image from it.
IMAGE is the name in "ctr images ls".` + exitHelp(exitNoRepo, exitCorrupt, exitNoImage, exitInterrupted),
		Args:              oneArg("IMAGE"),
		ValidArgsFunction: c.completeImage(&f.imageFlags),
		RunE:              func(cmd *cobra.Command, args []string) error { return c.imageDigest(cmd.Context(), &f, args[0]) },
	}
	cmd.Flags().BoolVar(&f.dump, "dump", false, "write the file system as composefs-dump(5)")
	c.jsonFlag(cmd)
	cmd.MarkFlagsMutuallyExclusive("dump", "json")
	f.addDaemon(cmd)
	f.addImage(cmd)
	return cmd
}

func (c *cli) imageDigest(ctx context.Context, f *imageDigestFlags, name string) error {
	return c.viewImage(ctx, &f.daemonFlags, &f.imageFlags, name, func(s *store, img *deploy.Image) error {
		if f.dump {
			root, err := s.Layers.RootfsTree(ctx, img.Layers)
			if err != nil {
				return fmt.Errorf("image %s: %w", name, err)
			}
			return composefs.WriteDump(c.stdout, root)
		}
		image, digest, err := s.Layers.MarshalRootfs(ctx, img.Layers)
		if err != nil {
			return fmt.Errorf("image %s: %w", name, err)
		}
		if c.json {
			return c.writeJSON(imageDigestReport{Name: name, Digest: digest, Size: len(image)})
		}
		return c.println(digest.String())
	})
}

// viewImage calls view with an image and the store. None of the image's layers goes meanwhile.
func (c *cli) viewImage(
	ctx context.Context, d *daemonFlags, f *imageFlags, name string, view func(*store, *deploy.Image) error,
) (err error) {
	src, err := c.openImages(d, f)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.close()) }()
	lock, err := src.store.Repo.Lock(ctx, objectstore.LockShared)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Unlock()) }()
	img, err := src.resolve(ctx, name)
	if err != nil {
		return err
	}
	return view(src.store, img)
}
