package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"

	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	"github.com/containerd/containerd/v2/core/content"
	contentproxy "github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
)

// Bounds on what an image's author can make us read.
const (
	maxManifest   = 4 << 20 // what containerd pulls
	maxIndexDepth = 4
)

// imageName is one name of an image in one namespace of containerd.
type imageName struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
}

// image is what containerd knows under one target digest, whatever it is called. An image has several names as a rule:
// Kubernetes gives it three.
type image struct {
	target digest.Digest
	names  []imageName
	chains []digest.Digest                 // chain ID of every layer of every manifest that is here, lowest first
	blobs  map[digest.Digest]digest.Digest // chain ID -> digest of the blob of its uppermost layer
	known  map[digest.Digest]struct{}      // what is in chains
}

// add adds chains that the image does not have.
func (i *image) add(chains []digest.Digest) {
	for _, chain := range chains {
		if _, ok := i.known[chain]; !ok {
			i.known[chain] = struct{}{}
			i.chains = append(i.chains, chain)
		}
	}
}

// listImages lists the images of all namespaces of containerd, by target digest. What cannot be read of one image,
// because its blobs are not here, is left out.
func listImages(ctx context.Context, conn grpc.ClientConnInterface) ([]image, error) {
	resp, err := namespacesapi.NewNamespacesClient(conn).List(ctx, &namespacesapi.ListNamespacesRequest{})
	if err != nil {
		return nil, fmt.Errorf("list containerd namespaces: %w", errgrpc.ToNative(err))
	}
	provider := contentproxy.NewContentStore(conn)
	byTarget := make(map[digest.Digest]*image)
	for _, ns := range resp.Namespaces {
		nsctx := namespaces.WithNamespace(ctx, ns.Name)
		list, err := imagesapi.NewImagesClient(conn).List(nsctx, &imagesapi.ListImagesRequest{})
		if err != nil {
			return nil, fmt.Errorf("list images of containerd namespace %s: %w", ns.Name, errgrpc.ToNative(err))
		}
		for _, entry := range list.Images {
			target := ocispec.Descriptor{
				MediaType: entry.GetTarget().GetMediaType(),
				Digest:    digest.Digest(entry.GetTarget().GetDigest()),
				Size:      entry.GetTarget().GetSize(),
			}
			img := byTarget[target.Digest]
			if img == nil {
				img = &image{target: target.Digest, blobs: make(map[digest.Digest]digest.Digest), known: make(map[digest.Digest]struct{})}
				byTarget[target.Digest] = img
			}
			img.names = append(img.names, imageName{Namespace: ns.Name, Name: entry.Name})
			// The namespace of the next name may have a manifest that this one lacks.
			w := chainWalk{provider: provider, seen: make(map[digest.Digest]bool), blobs: img.blobs}
			chains, err := w.chainIDs(nsctx, target, maxIndexDepth)
			if err != nil {
				return nil, fmt.Errorf("read image %s in containerd namespace %s: %w", entry.Name, ns.Name, err)
			}
			img.add(chains)
		}
	}
	imgs := make([]image, 0, len(byTarget))
	for _, img := range byTarget {
		slices.SortFunc(img.names, func(a, b imageName) int {
			return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
		})
		imgs = append(imgs, *img)
	}
	slices.SortFunc(imgs, func(a, b image) int { return cmp.Compare(a.target, b.target) })
	return imgs, nil
}

// chainWalk reads the manifests of one image, each once: an index that names one a thousand times, or itself, costs
// no more than one that does not.
type chainWalk struct {
	provider content.Provider
	seen     map[digest.Digest]bool
	blobs    map[digest.Digest]digest.Digest // filled
}

// chainIDs returns the chain IDs of the layers of every manifest that desc leads to and that is in the content store.
// All platforms count: an image pulled for a foreign one takes space like any other.
func (w *chainWalk) chainIDs(ctx context.Context, desc ocispec.Descriptor, depth int) ([]digest.Digest, error) {
	if w.seen[desc.Digest] {
		return nil, nil
	}
	w.seen[desc.Digest] = true
	switch {
	case images.IsIndexType(desc.MediaType) && depth > 0:
		var index ocispec.Index
		if ok, err := readJSON(ctx, w.provider, desc, &index); !ok {
			return nil, err
		}
		var chains []digest.Digest
		for _, m := range index.Manifests {
			c, err := w.chainIDs(ctx, m, depth-1)
			if err != nil {
				return nil, err
			}
			chains = append(chains, c...)
		}
		return chains, nil
	case images.IsManifestType(desc.MediaType):
		var manifest ocispec.Manifest
		if ok, err := readJSON(ctx, w.provider, desc, &manifest); !ok {
			return nil, err
		}
		var config ocispec.Image
		if ok, err := readJSON(ctx, w.provider, manifest.Config, &config); !ok {
			return nil, err
		}
		chains := identity.ChainIDs(config.RootFS.DiffIDs)
		if len(chains) == len(manifest.Layers) {
			for i, chain := range chains {
				w.blobs[chain] = manifest.Layers[i].Digest
			}
		}
		return chains, nil
	}
	return nil, nil
}

// readJSON decodes a blob. It reports false for one that is not in the content store or is not what an image has
// there: neither is a reason to stop.
func readJSON(ctx context.Context, provider content.Provider, desc ocispec.Descriptor, v any) (bool, error) {
	ra, err := provider.ReaderAt(ctx, desc)
	if errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer ra.Close()
	if ra.Size() > maxManifest {
		return false, nil
	}
	b := make([]byte, ra.Size())
	if _, err := io.ReadFull(content.NewReader(ra), b); err != nil {
		return false, fmt.Errorf("read blob %s: %w", desc.Digest, err)
	}
	return json.Unmarshal(b, v) == nil, nil
}
