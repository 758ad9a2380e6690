package containerd

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// An ImageName is the name of an image in a namespace of containerd.
type ImageName struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
}

// An Image is an image of containerd with all its names. Most images have several: Kubernetes gives each image three.
type Image struct {
	Target digest.Digest
	Names  []ImageName                     // sorted
	Chains []digest.Digest                 // chain IDs of the layers of all manifests that containerd has, lowest first
	Blobs  map[digest.Digest]digest.Digest // digest of the topmost layer's blob, by chain ID

	known map[digest.Digest]struct{} // the set of Chains
}

// Images lists the images of all namespaces, sorted by target digest. It includes all platforms of an image, since an
// image pulled for a foreign platform takes space like any other. Absent and invalid documents of an image are skipped.
func (c *Client) Images(ctx context.Context) ([]Image, error) {
	resp, err := namespacesapi.NewNamespacesClient(c.conn).List(ctx, &namespacesapi.ListNamespacesRequest{})
	if err != nil {
		return nil, fmt.Errorf("list containerd namespaces: %w", errgrpc.ToNative(err))
	}
	provider := documents{c.Content()}
	byTarget := make(map[digest.Digest]*Image)
	for _, ns := range resp.Namespaces {
		nsctx := namespaces.WithNamespace(ctx, ns.Name)
		list, err := imagesapi.NewImagesClient(c.conn).List(nsctx, &imagesapi.ListImagesRequest{})
		if err != nil {
			return nil, fmt.Errorf("list images of containerd namespace %s: %w", ns.Name, errgrpc.ToNative(err))
		}
		for _, entry := range list.Images {
			target := descriptor(entry.GetTarget())
			img := byTarget[target.Digest]
			if img == nil {
				img = newImage(target.Digest)
				byTarget[target.Digest] = img
			}
			img.Names = append(img.Names, ImageName{Namespace: ns.Name, Name: entry.Name})
			// Another namespace may have a manifest that this one lacks.
			if err := img.read(nsctx, provider, target); err != nil {
				return nil, fmt.Errorf("read image %s in containerd namespace %s: %w", entry.Name, ns.Name, err)
			}
		}
	}
	imgs := make([]Image, 0, len(byTarget))
	for _, img := range byTarget {
		slices.SortFunc(img.Names, func(a, b ImageName) int {
			return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
		})
		imgs = append(imgs, *img)
	}
	slices.SortFunc(imgs, func(a, b Image) int { return cmp.Compare(a.Target, b.Target) })
	return imgs, nil
}

func newImage(target digest.Digest) *Image {
	return &Image{Target: target, Blobs: make(map[digest.Digest]digest.Digest), known: make(map[digest.Digest]struct{})}
}

// read adds the chains of all manifests below target.
func (i *Image) read(ctx context.Context, provider content.Provider, target ocispec.Descriptor) error {
	w := newWalk(provider)
	w.skip = isUnusable
	if err := w.add(ctx, target, maxIndexDepth); err != nil {
		return err
	}
	for _, desc := range w.manifests {
		m, err := readManifest(ctx, provider, desc)
		if err != nil && isUnusable(err) {
			continue
		}
		if err != nil {
			return err
		}
		chains := identity.ChainIDs(slices.Clone(m.DiffIDs))
		for n, chain := range chains {
			if len(chains) == len(m.Layers) {
				i.Blobs[chain] = m.Layers[n].Digest
			}
			if _, ok := i.known[chain]; !ok {
				i.known[chain] = struct{}{}
				i.Chains = append(i.Chains, chain)
			}
		}
	}
	return nil
}

// ImageNames returns the names of all images in a namespace.
func (c *Client) ImageNames(ctx context.Context, namespace string) ([]string, error) {
	list, err := imagesapi.NewImagesClient(c.conn).List(namespaces.WithNamespace(ctx, namespace), &imagesapi.ListImagesRequest{})
	if err != nil {
		return nil, fmt.Errorf("list images of containerd namespace %s: %w", namespace, errgrpc.ToNative(err))
	}
	names := make([]string, 0, len(list.Images))
	for _, img := range list.Images {
		names = append(names, img.Name)
	}
	return names, nil
}
