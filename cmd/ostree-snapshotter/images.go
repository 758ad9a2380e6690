package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy"
	"github.com/ostree-snapshotter/ostree-snapshotter/plugin/containerd"
)

// imageSource is the source of images: the store with their files, and a namespace of containerd with their names.
type imageSource struct {
	store     *store
	client    *containerd.Client
	namespace string
}

func (c *cli) openImages(d *daemonFlags, f *imageFlags) (*imageSource, error) {
	s, err := c.openStore(d)
	if err != nil {
		return nil, err
	}
	client, err := f.dial(s.cfg)
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	return &imageSource{store: s, client: client, namespace: cmp.Or(f.namespace, namespaces.Default)}, nil
}

func (s *imageSource) close() error { return errors.Join(s.client.Close(), s.store.close()) }

// resolve finds an image for this host by its name in containerd, and its layers in the store.
func (s *imageSource) resolve(ctx context.Context, name string) (*deploy.Image, error) {
	m, err := s.client.Resolve(ctx, s.namespace, name, platforms.DefaultSpec())
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", name, err)
	}
	img := &deploy.Image{
		Name: name, ManifestDigest: m.Digest, Target: m.Target, Manifest: m.JSON, Config: m.ConfigJSON, Version: m.Version, Created: m.Created,
	}
	if img.Layers, err = s.store.Unpacked(ctx, m.DiffIDs); err == nil {
		err = img.Check()
	}
	if err != nil {
		err = &containerd.ImageError{Namespace: s.namespace, Name: name, Err: err}
		return nil, fmt.Errorf("image %s: %w", name, err)
	}
	return img, nil
}

// pull makes containerd pull an image, with a digest exactly that one, and unpack it with this snapshotter.
func (c *cli) pull(ctx context.Context, src *imageSource, f *pullFlags, ref string, pin digest.Digest) error {
	bar := c.newProgress("pulling " + ref + ", KiB")
	defer bar.stop()
	return src.client.Pull(ctx, src.namespace, f.snapshotter, ref, pin, &f.Registry, bar.update)
}

// completeImage offers a shell the names of containerd's images.
func (c *cli) completeImage(f *imageFlags) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), completeTime)
		defer cancel()
		cfg, err := c.loadConfig()
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		client, err := f.dial(cfg)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		defer client.Close()
		names, err := client.ImageNames(ctx, f.namespace)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}
