package main

import (
	"cmp"
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/platforms"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy"
	"github.com/ostree-snapshotter/ostree-snapshotter/plugin/containerd"
)

// resolveImage finds the image that containerd has under a name, for this host, and its layers in the store.
func (c *cli) resolveImage(ctx context.Context, client *containerd.Client, s *store, name string) (*deploy.Image, error) {
	namespace := cmp.Or(c.imageNamespace, namespaces.Default)
	found, err := client.Resolve(ctx, namespace, name, platforms.DefaultSpec())
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", name, err)
	}
	m := found.Manifest
	img := &deploy.Image{
		Name: name, ManifestDigest: m.Digest, Manifest: m.JSON, Config: m.ConfigJSON, Version: m.Version, Created: m.Created,
	}
	if img.Layers, err = s.Unpacked(ctx, m.DiffIDs); err == nil {
		err = img.Check()
	}
	if err != nil {
		err = &containerd.ImageError{Namespace: namespace, Name: name, Err: err}
		return nil, fmt.Errorf("image %s: %w", name, err)
	}
	return img, nil
}
