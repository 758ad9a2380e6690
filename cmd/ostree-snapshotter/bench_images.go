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
	contentproxy "github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"

	"github.com/ostree-snapshotter/ostree-snapshotter/bench/dedup"
	"github.com/ostree-snapshotter/ostree-snapshotter/plugin"
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

	conn  *grpc.ClientConn // to containerd, made when the first image is to be there
	files content.Provider // directory of containerd's content store, nil if that is not known
}

func (c *cli) newImageFinder(ctx context.Context, platform ocispec.Platform) (*imageFinder, error) {
	cfg, err := c.loadConfig()
	if err != nil {
		return nil, err
	}
	f := &imageFinder{platform: platform, namespace: c.imageNamespace, cfg: cfg}
	f.gzip, err = blob.NewDecompressor(quiet(ctx), cfg.Decompress.Gzip)
	return f, err
}

// close is called when nothing is read any more of the images that were found.
func (f *imageFinder) close() error {
	if f.conn == nil {
		return nil
	}
	return f.conn.Close()
}

// find returns the images that can be found, and errors for the others.
func (c *cli) find(ctx context.Context, f *imageFinder, refs []string) (images []dedup.Image, failed []*dedup.ImageError, err error) {
	for _, ref := range refs {
		var layers []dedup.Layer
		if name, ok := strings.CutPrefix(ref, layoutPrefix); ok {
			layers, err = f.inLayout(quiet(ctx), name)
		} else {
			layers, err = c.inContainerd(quiet(ctx), f, ref)
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

// quiet returns a context in which nothing is logged: what reading a blob logs is for the daemon.
func quiet(ctx context.Context) context.Context {
	l := logrus.New()
	l.SetOutput(io.Discard)
	return log.WithLogger(ctx, logrus.NewEntry(l))
}

// inContainerd finds the layers of an image of containerd.
func (c *cli) inContainerd(ctx context.Context, f *imageFinder, name string) ([]dedup.Layer, error) {
	if f.conn == nil {
		var err error
		if f.conn, err = grpcClient(c.containerdSocket(f.cfg), dialUnix); err != nil {
			return nil, err
		}
		if f.files, err = c.contentSource(ctx, f.cfg, ""); err != nil {
			f.files = nil // containerd reads them for us, slowly
		}
	}
	provider := contentproxy.NewContentStore(f.conn)
	r := f.resolver(provider)
	r.conn, r.img.Name = f.conn, name
	ctx = namespaces.WithNamespace(ctx, f.namespace)
	target, err := r.target(ctx)
	if err != nil {
		return nil, err
	}
	var source content.Provider = provider
	if f.files != nil {
		source = blob.First{f.files, provider}
	}
	layers, err := f.layers(ctx, r, source, []ocispec.Descriptor{target})
	if errdefs.IsNotFound(err) {
		err = withHint(err, "\"ctr -n %s content fetch %s\" brings what is missing, and does not unpack it", f.namespace, name)
	}
	return layers, err
}

func (f *imageFinder) resolver(provider content.Provider) *resolver {
	return &resolver{
		provider: provider, match: platforms.Only(f.platform), want: f.platform,
		img: resolved{Namespace: f.namespace},
	}
}

// inLayout finds the layers of DIR[:TAG].
func (f *imageFinder) inLayout(ctx context.Context, name string) ([]dedup.Layer, error) {
	dir, descs, err := findInLayout(ctx, name)
	if err != nil {
		return nil, err
	}
	source := blob.Files(dir)
	return f.layers(ctx, f.resolver(source), source, descs)
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
	if file.Size() > maxManifest {
		return nil, fmt.Errorf("%s has %d bytes, at most %d are read", ocispec.ImageIndexFile, file.Size(), maxManifest)
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

// layers returns the layers of the manifest that is best for the platform, of those that descs lead to. That one of their
// blobs, or what leads to them, is not here is an errdefs.ErrNotFound.
func (f *imageFinder) layers(ctx context.Context, r *resolver, source content.Provider, descs []ocispec.Descriptor) ([]dedup.Layer, error) {
	config, err := f.manifest(ctx, r, descs)
	if err != nil {
		return nil, err
	}
	var manifest ocispec.Manifest
	if err := json.Unmarshal(r.img.ManifestJSON, &manifest); err != nil {
		return nil, fmt.Errorf("manifest %s: %w", r.img.Manifest, err)
	}
	diffIDs := config.RootFS.DiffIDs
	if len(diffIDs) != len(manifest.Layers) {
		return nil, fmt.Errorf("manifest %s has %d layers, its config %d", r.img.Manifest, len(manifest.Layers), len(diffIDs))
	}
	layers := make([]dedup.Layer, len(diffIDs))
	for i, desc := range manifest.Layers {
		if err := diffIDs[i].Validate(); err != nil {
			return nil, fmt.Errorf("layer %q: %w", diffIDs[i], err)
		}
		layers[i] = dedup.Layer{
			DiffID: diffIDs[i], Blob: desc.Digest, BlobSize: desc.Size,
			Open: func(ctx context.Context) (dedup.Tar, error) {
				return blob.Open(namespaces.WithNamespace(quiet(ctx), f.namespace), source, f.gzip, desc)
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

// manifest reads the manifest for the platform, and returns its config.
func (f *imageFinder) manifest(ctx context.Context, r *resolver, descs []ocispec.Descriptor) (*imageConfig, error) {
	seen := make(map[digest.Digest]bool)
	var list []candidate
	for _, desc := range descs {
		more, err := r.candidates(ctx, desc, seen, maxIndexDepth)
		if err != nil {
			return nil, absent(err)
		}
		list = append(list, more...)
	}
	slices.SortStableFunc(list, func(a, b candidate) int { return r.order(a.platform, b.platform) })
	for _, c := range list {
		if c.platform.OS != "" && !r.match.Match(c.platform) {
			continue
		}
		config, platform, err := r.read(ctx, c.desc)
		if err != nil {
			return nil, absent(err)
		}
		if platform.OS != "" && !r.match.Match(platform) {
			continue
		}
		r.img.Manifest = c.desc.Digest
		return config, nil
	}
	return nil, withHint(fmt.Errorf("there is no manifest for %s", platforms.Format(f.platform)), "--platform chooses another")
}

// absent gives an error of the resolver, which speaks of pulling for this snapshotter, the words of this command.
func absent(err error) error {
	if statusOf(err) == exitNoImage {
		return absentError("its manifest or config is not here")
	}
	return err
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
