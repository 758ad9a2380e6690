package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ostree-snapshotter/ostree-snapshotter/bench/dedup"
	"github.com/ostree-snapshotter/ostree-snapshotter/plugin"
	"github.com/ostree-snapshotter/ostree-snapshotter/plugin/containerd"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/blob"
)

// layoutPrefix begins a reference that is a directory with an OCI layout.
const layoutPrefix = "oci:"

// An imageFinder finds the layers of images by their references, for one platform: in containerd, or in OCI layouts.
type imageFinder struct {
	platform  ocispec.Platform
	namespace string
	gzip      *blob.Decompressor
	cfg       *plugin.Config

	client *containerd.Client // nil until the first image is looked for in containerd
}

func (c *cli) newImageFinder(ctx context.Context, platform ocispec.Platform) (*imageFinder, error) {
	cfg, err := c.loadConfig()
	if err != nil {
		return nil, err
	}
	f := &imageFinder{platform: platform, namespace: c.imageNamespace, cfg: cfg}
	f.gzip, err = blob.NewDecompressor(containerd.Silent(ctx), cfg.Decompress.Gzip)
	return f, err
}

// close is called when nothing is read any more of the images that were found.
func (f *imageFinder) close() error {
	if f.client == nil {
		return nil
	}
	return f.client.Close()
}

// find returns the images that can be found, and errors for the others.
func (c *cli) find(ctx context.Context, f *imageFinder, refs []string) (images []dedup.Image, failed []*dedup.ImageError, err error) {
	for _, ref := range refs {
		var layers []dedup.Layer
		if name, ok := strings.CutPrefix(ref, layoutPrefix); ok {
			layers, err = f.inLayout(containerd.Silent(ctx), name)
		} else {
			layers, err = c.inContainerd(containerd.Silent(ctx), f, ref)
		}
		if err := context.Cause(ctx); err != nil {
			return nil, nil, err
		}
		if err != nil {
			failed = append(failed, &dedup.ImageError{Name: ref, Err: err})
			continue
		}
		images = append(images, dedup.Image{Name: ref, Layers: layers})
	}
	return images, failed, nil
}

// inContainerd finds the layers of an image of containerd.
func (c *cli) inContainerd(ctx context.Context, f *imageFinder, name string) ([]dedup.Layer, error) {
	if f.client == nil {
		var err error
		if f.client, err = c.dialContainerd(f.cfg); err != nil {
			return nil, err
		}
	}
	img, err := f.client.Resolve(ctx, f.namespace, name, f.platform)
	var layers []dedup.Layer
	if err = f.manifestError(err); err == nil {
		ctx = namespaces.WithNamespace(ctx, f.namespace)
		layers, err = f.layers(ctx, img.Manifest, f.client.Blobs(f.cfg.Containerd.ContentRoot))
	}
	if errdefs.IsNotFound(err) {
		err = withHint(err, "\"ctr -n %s content fetch %s\" brings what is missing, and does not unpack it", f.namespace, name)
	}
	return layers, err
}

// manifestError gives the error of an image without the manifest that is wanted the words of this command.
func (f *imageFinder) manifestError(err error) error {
	switch {
	case errors.As(err, new(*containerd.DocumentError)) && errdefs.IsNotFound(err):
		return absentError("its manifest or config is not here")
	case errors.Is(err, containerd.ErrNoManifest), errors.As(err, new(*containerd.PlatformError)):
		return withHint(fmt.Errorf("there is no manifest for %s", platforms.Format(f.platform)), "--platform chooses another")
	}
	return err
}

// inLayout finds the layers of DIR[:TAG].
func (f *imageFinder) inLayout(ctx context.Context, name string) ([]dedup.Layer, error) {
	dir, descs, err := findInLayout(ctx, name)
	if err != nil {
		return nil, err
	}
	source := blob.Files(dir)
	m, err := containerd.FindManifest(ctx, source, f.platform, descs...)
	if err != nil {
		return nil, f.manifestError(err)
	}
	return f.layers(ctx, m, source)
}

// findInLayout returns the directory of DIR[:TAG], and the manifests that its index has for the tag.
func findInLayout(ctx context.Context, name string) (dir string, descs []ocispec.Descriptor, err error) {
	dir, tag := name, ""
	if _, err := os.Stat(name); err != nil {
		if i := strings.LastIndexByte(name, ':'); i > 0 {
			dir, tag = name[:i], name[i+1:]
		}
	}
	index, err := readLayoutIndex(ctx, dir)
	if err != nil {
		return "", nil, err
	}
	descs, err = tagged(index.Manifests, tag)
	return dir, descs, err
}

func readLayoutIndex(ctx context.Context, dir string) (_ *ocispec.Index, err error) {
	file, err := blob.File(filepath.Join(dir, ocispec.ImageIndexFile)).ReaderAt(ctx, ocispec.Descriptor{})
	if errdefs.IsNotFound(err) {
		return nil, fmt.Errorf("%s is no OCI layout: it has no %s", dir, ocispec.ImageIndexFile)
	}
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if file.Size() > containerd.MaxDocument {
		return nil, fmt.Errorf("%s has %d bytes, at most %d are read", ocispec.ImageIndexFile, file.Size(), containerd.MaxDocument)
	}
	index := new(ocispec.Index)
	b := make([]byte, file.Size())
	if _, err := file.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if err := json.Unmarshal(b, index); err != nil {
		return nil, fmt.Errorf("%s: %w", ocispec.ImageIndexFile, err)
	}
	return index, nil
}

// tagged returns the manifests that have a tag in a layout. Without a tag there may be one at most, of several platforms.
func tagged(list []ocispec.Descriptor, tag string) ([]ocispec.Descriptor, error) {
	var found []ocispec.Descriptor
	var tags []string
	for _, desc := range list {
		name := desc.Annotations[ocispec.AnnotationRefName]
		if tag == "" || name == tag {
			found = append(found, desc)
		}
		tags = append(tags, fmt.Sprintf("%q", name))
	}
	slices.Sort(tags)
	tags = slices.Compact(tags)
	switch {
	case len(found) == 0 && len(tags) > 0:
		return nil, fmt.Errorf("the layout has no tag %q, but %s", tag, strings.Join(tags, ", "))
	case tag == "" && len(tags) > 1:
		return nil, withHint(fmt.Errorf("the layout has several tags: %s", strings.Join(tags, ", ")), "oci:DIR:TAG chooses one")
	}
	return found, nil
}

// layers returns the layers of a manifest. One whose blob is not here is an errdefs.ErrNotFound.
func (f *imageFinder) layers(ctx context.Context, m *containerd.Manifest, source content.Provider) ([]dedup.Layer, error) {
	diffIDs := m.DiffIDs
	if len(diffIDs) != len(m.Layers) {
		return nil, fmt.Errorf("manifest %s has %d layers, its config %d", m.Digest, len(m.Layers), len(diffIDs))
	}
	layers := make([]dedup.Layer, len(diffIDs))
	for i, desc := range m.Layers {
		if err := diffIDs[i].Validate(); err != nil {
			return nil, fmt.Errorf("layer %q: %w", diffIDs[i], err)
		}
		layers[i] = dedup.Layer{
			DiffID: diffIDs[i], Blob: desc.Digest, BlobSize: desc.Size,
			Open: func(ctx context.Context) (dedup.Tar, error) {
				return blob.Open(namespaces.WithNamespace(containerd.Silent(ctx), f.namespace), source, f.gzip, desc)
			},
		}
		if err := look(ctx, source, desc); err != nil {
			return nil, fmt.Errorf("layer %s: %w", desc.Digest, err)
		}
	}
	return layers, nil
}

// absentError is the error of an image that is not all here.
type absentError string

func (e absentError) Error() string { return string(e) }

// NotFound marks the error for errdefs.
func (absentError) NotFound() {}

// look reports whether a blob is here, before any time is spent on others.
func look(ctx context.Context, source content.Provider, desc ocispec.Descriptor) error {
	if err := desc.Digest.Validate(); err != nil {
		return err
	}
	b, err := source.ReaderAt(ctx, desc)
	if errdefs.IsNotFound(err) {
		return absentError("its blob is not here")
	}
	if err != nil {
		return err
	}
	return b.Close()
}

// openLayout returns what leads to the image of DIR[:TAG], and what has it.
func openLayout(ctx context.Context, name string) (ocispec.Descriptor, content.Provider, error) {
	dir, descs, err := findInLayout(ctx, name)
	if err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	if len(descs) != 1 {
		return ocispec.Descriptor{}, nil, fmt.Errorf("the layout has %d manifests with this tag, want one manifest or index", len(descs))
	}
	return descs[0], blob.Files(dir), nil
}
