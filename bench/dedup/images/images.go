// Package images finds the layers of images that package dedup measures: in OCI layouts, and in containerd.
package images

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ostree-snapshotter/ostree-snapshotter/bench/dedup"
	"github.com/ostree-snapshotter/ostree-snapshotter/bench/layout"
	"github.com/ostree-snapshotter/ostree-snapshotter/bench/pull/workload"
	"github.com/ostree-snapshotter/ostree-snapshotter/plugin/containerd"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/blob"
)

// A Finder finds images for one platform. The layers it returns can be read by several goroutines, until Close.
type Finder struct {
	Platform ocispec.Platform

	Dial        func() (*containerd.Client, error) // called for the first image of containerd
	Namespace   string                             // of containerd
	ContentRoot string                             // directory of containerd's content store; "" to ask containerd

	client *containerd.Client
}

// A PlatformError is the error of an image without a manifest for the platform.
type PlatformError struct{ Platform string }

func (e *PlatformError) Error() string { return "there is no manifest for " + e.Platform }

// An AbsentError is the error of an image with a missing document or blob. It is an errdefs.ErrNotFound.
type AbsentError struct {
	Text            string
	Namespace, Name string // of the image in containerd; "" for an image of a layout
}

func (e *AbsentError) Error() string { return e.Text }

// NotFound marks the error for errdefs.
func (*AbsentError) NotFound() {}

// Close closes the connection to containerd, if there is one.
func (f *Finder) Close() error {
	if f.client == nil {
		return nil
	}
	return f.client.Close()
}

// Find returns the images that it can find, and an error for each of the others. A reference is oci:DIR[:TAG] or the
// name of an image in containerd. The returned error is that of ctx, when it is done.
func (f *Finder) Find(ctx context.Context, refs []string) (found []dedup.Image, failed []*dedup.ImageError, err error) {
	for _, ref := range refs {
		layers, err := f.layers(containerd.Silent(ctx), ref)
		if err := context.Cause(ctx); err != nil {
			return nil, nil, err
		}
		if err != nil {
			failed = append(failed, &dedup.ImageError{Name: ref, Err: err})
			continue
		}
		found = append(found, dedup.Image{Name: ref, Layers: layers})
	}
	return found, failed, nil
}

func (f *Finder) layers(ctx context.Context, ref string) ([]dedup.Layer, error) {
	if name, ok := strings.CutPrefix(ref, workload.LayoutPrefix); ok {
		return f.inLayout(ctx, name)
	}
	layers, err := f.inContainerd(namespaces.WithNamespace(ctx, f.Namespace), ref)
	if absent, ok := errors.AsType[*AbsentError](err); ok {
		absent.Namespace, absent.Name = f.Namespace, ref
	}
	return layers, err
}

func (f *Finder) inLayout(ctx context.Context, name string) ([]dedup.Layer, error) {
	l, err := layout.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	m, err := containerd.FindManifest(ctx, l, f.Platform, l.Manifests...)
	if err != nil {
		return nil, f.manifestError(err)
	}
	return f.layersOf(ctx, m, l)
}

func (f *Finder) inContainerd(ctx context.Context, name string) ([]dedup.Layer, error) {
	if f.client == nil {
		var err error
		if f.client, err = f.Dial(); err != nil {
			return nil, err
		}
	}
	m, err := f.client.Resolve(ctx, f.Namespace, name, f.Platform)
	if err != nil {
		return nil, f.manifestError(err)
	}
	return f.layersOf(ctx, m, f.client.Blobs(f.ContentRoot))
}

// manifestError replaces errors that talk about pulling an image for this host.
func (f *Finder) manifestError(err error) error {
	switch {
	case errors.As(err, new(*containerd.DocumentError)) && errdefs.IsNotFound(err):
		return &AbsentError{Text: "its manifest or config is not here"}
	case errors.Is(err, containerd.ErrNoManifest), errors.As(err, new(*containerd.PlatformError)):
		return &PlatformError{platforms.Format(f.Platform)}
	}
	return err
}

// layersOf returns the layers of a manifest. A layer without its blob is an [AbsentError].
func (f *Finder) layersOf(ctx context.Context, m *containerd.Manifest, provider content.Provider) ([]dedup.Layer, error) {
	if len(m.DiffIDs) != len(m.Layers) {
		return nil, fmt.Errorf("manifest %s has %d layers, its config %d", m.Digest, len(m.Layers), len(m.DiffIDs))
	}
	layers := make([]dedup.Layer, len(m.DiffIDs))
	for i, desc := range m.Layers {
		if err := m.DiffIDs[i].Validate(); err != nil {
			return nil, fmt.Errorf("layer %q: %w", m.DiffIDs[i], err)
		}
		layers[i] = dedup.Layer{
			DiffID: m.DiffIDs[i], Blob: desc.Digest, BlobSize: desc.Size,
			Open: func(ctx context.Context) (dedup.Tar, error) {
				return blob.Open(namespaces.WithNamespace(containerd.Silent(ctx), f.Namespace), provider, desc)
			},
		}
		if err := check(ctx, provider, desc); err != nil {
			return nil, fmt.Errorf("layer %s: %w", desc.Digest, err)
		}
	}
	return layers, nil
}

// check checks that a blob exists, before any time is spent on others.
func check(ctx context.Context, provider content.Provider, desc ocispec.Descriptor) error {
	if err := desc.Digest.Validate(); err != nil {
		return err
	}
	b, err := provider.ReaderAt(ctx, desc)
	if errdefs.IsNotFound(err) {
		return &AbsentError{Text: "its blob is not here"}
	}
	if err != nil {
		return err
	}
	return b.Close()
}
