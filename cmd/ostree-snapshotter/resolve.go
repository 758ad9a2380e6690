package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	"github.com/containerd/containerd/v2/core/content"
	contentproxy "github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// maxVersion is how long the version may be that an image says it has: it is shown in boot menus.
const maxVersion = 128

// resolved is an image of containerd whose layers are in our store.
type resolved struct {
	Name, Namespace string
	Target          digest.Digest // what the name stands for: a manifest, or an index of some
	Manifest        digest.Digest
	ManifestJSON    []byte // byte for byte
	ConfigJSON      []byte
	Chain           digest.Digest          // chain ID of the uppermost layer
	Layers          []objectstore.Checksum // lowest first
	Version         string                 // "" if the image does not say
	Created         time.Time              // zero if it does not say
}

// resolveImage finds the image that containerd has under a name, as it knows it: ctr takes no short names. Of several
// platforms that of this host counts. The store must have every layer; what of all this is not so is an error with a
// hint.
//
// All that is read of the image is bounded, and compared with its digest.
func (c *cli) resolveImage(ctx context.Context, conn grpc.ClientConnInterface, s *store, name string) (*resolved, error) {
	r := &resolver{
		conn: conn, store: s, daemonAddress: c.daemonAddress,
		provider: contentproxy.NewContentStore(conn), match: platforms.Default(), want: platforms.DefaultSpec(),
		img: resolved{Name: name, Namespace: cmp.Or(c.imageNamespace, namespaces.Default)},
	}
	if err := r.resolve(ctx); err != nil {
		return nil, fmt.Errorf("image %s: %w", name, err)
	}
	return &r.img, nil
}

// resolver is one call of resolveImage.
type resolver struct {
	conn          grpc.ClientConnInterface
	store         *store
	daemonAddress string
	provider      content.Provider
	match         platforms.MatchComparer
	want          ocispec.Platform // that match is made of
	img           resolved         // filled
}

func (r *resolver) resolve(ctx context.Context) error {
	nsctx := namespaces.WithNamespace(ctx, r.img.Namespace)
	target, err := r.target(nsctx)
	if err != nil {
		return err
	}
	r.img.Target = target.Digest
	config, err := r.choose(nsctx, target)
	if err != nil {
		return err
	}
	if err := r.checkVersion(); err != nil {
		return err
	}
	return r.layers(ctx, config.RootFS.DiffIDs)
}

// imageManifest and imageConfig are what is read of a manifest and of an image's configuration. Times are texts: one that
// is none does not spoil the rest.
type (
	imageManifest struct {
		Config      ocispec.Descriptor `json:"config"`
		Annotations map[string]string  `json:"annotations"`
	}
	imageConfig struct {
		ocispec.Platform
		Created string              `json:"created"`
		Config  ocispec.ImageConfig `json:"config"`
		RootFS  ocispec.RootFS      `json:"rootfs"`
	}
)

func noImage(format string, args ...any) error {
	return withStatus(exitNoImage, fmt.Errorf(format, args...))
}

// pull is the command that brings the image here, as it is to be.
func (r *resolver) pull(flags string) string {
	return fmt.Sprintf("ctr -n %s images pull %s--snapshotter %s %s", r.img.Namespace, flags, snapshotterID, r.img.Name)
}

// target asks containerd what the name stands for.
func (r *resolver) target(ctx context.Context) (ocispec.Descriptor, error) {
	client := imagesapi.NewImagesClient(r.conn)
	resp, err := client.Get(ctx, &imagesapi.GetImageRequest{Name: r.img.Name})
	if err == nil {
		t := resp.GetImage().GetTarget()
		return ocispec.Descriptor{MediaType: t.GetMediaType(), Digest: digest.Digest(t.GetDigest()), Size: t.GetSize()}, nil
	}
	if err = errgrpc.ToNative(err); !errdefs.IsNotFound(err) {
		return ocispec.Descriptor{}, withHint(fmt.Errorf("ask containerd: %w", err),
			"-a/--address says where containerd listens")
	}
	return ocispec.Descriptor{}, withHint(noImage("containerd has no such image in namespace %s", r.img.Namespace), "%s", r.elsewhere(ctx))
}

// elsewhere says where an image may be that has not been found.
func (r *resolver) elsewhere(ctx context.Context) string {
	client := imagesapi.NewImagesClient(r.conn)
	if resp, err := namespacesapi.NewNamespacesClient(r.conn).List(ctx, &namespacesapi.ListNamespacesRequest{}); err == nil {
		for _, ns := range resp.Namespaces {
			_, err := client.Get(namespaces.WithNamespace(ctx, ns.Name), &imagesapi.GetImageRequest{Name: r.img.Name})
			if err == nil {
				return fmt.Sprintf("namespace %s has it: -n %s", ns.Name, ns.Name)
			}
		}
	}
	if host, rest, ok := strings.Cut(r.img.Name, "/"); !ok || !strings.ContainsAny(host, ".:") && host != "localhost" {
		full := "docker.io/" + r.img.Name
		if !ok {
			full = "docker.io/library/" + r.img.Name
		}
		if tagged := strings.ContainsAny(r.img.Name, ":@"); !tagged {
			full += ":latest"
		}
		return fmt.Sprintf("containerd takes names as they are, with the registry, like %q", full)
	} else if !strings.ContainsAny(rest, ":@") {
		return fmt.Sprintf("containerd takes names as they are, with the tag, like %q", r.img.Name+":latest")
	}
	return fmt.Sprintf("%q pulls it", r.pull(""))
}

// A candidate is a manifest that the target leads to.
type candidate struct {
	desc     ocispec.Descriptor
	platform ocispec.Platform // zero if the index does not say
}

// unknownPlatform is the operating system of manifests that are no image: attestations of BuildKit.
const unknownPlatform = "unknown"

// choose finds the manifest that is meant for this host, and returns its config.
func (r *resolver) choose(ctx context.Context, target ocispec.Descriptor) (*imageConfig, error) {
	list, err := r.candidates(ctx, target, make(map[digest.Digest]bool), maxIndexDepth)
	if err != nil {
		return nil, err
	}
	var others []string
	for _, c := range list {
		if c.platform.OS != "" && !r.match.Match(c.platform) {
			if c.platform.OS != unknownPlatform {
				others = append(others, platforms.Format(c.platform))
			}
			continue
		}
		config, platform, err := r.read(ctx, c.desc)
		if err != nil {
			return nil, err
		}
		if platform.OS != "" && !r.match.Match(platform) {
			others = append(others, platforms.Format(platform))
			continue
		}
		r.img.Manifest = c.desc.Digest
		return config, nil
	}
	want := platforms.Format(r.want)
	if len(others) == 0 {
		return nil, noImage("%s names no manifest", target.Digest)
	}
	slices.Sort(others)
	return nil, withHint(noImage("it is for %s, this host is %s", strings.Join(slices.Compact(others), ", "), want),
		"an image for this host is pulled by %q, if the registry has one", r.pull("--platform "+want+" "))
}

// candidates returns the manifests that a descriptor leads to, those for this host first, the best of them foremost.
func (r *resolver) candidates(ctx context.Context, desc ocispec.Descriptor, seen map[digest.Digest]bool, depth int) ([]candidate, error) {
	switch {
	case seen[desc.Digest]:
		return nil, nil
	case images.IsManifestType(desc.MediaType):
		seen[desc.Digest] = true
		c := candidate{desc: desc}
		if desc.Platform != nil {
			c.platform = platforms.Normalize(*desc.Platform)
		}
		return []candidate{c}, nil
	case !images.IsIndexType(desc.MediaType):
		return nil, nil
	case depth == 0:
		return nil, fmt.Errorf("more than %d indexes in each other", maxIndexDepth)
	}
	seen[desc.Digest] = true
	var index ocispec.Index
	if _, err := r.readJSON(ctx, "index", desc, &index); err != nil {
		return nil, err
	}
	var list []candidate
	for _, m := range index.Manifests {
		below, err := r.candidates(ctx, m, seen, depth-1)
		if err != nil {
			return nil, err
		}
		list = append(list, below...)
	}
	slices.SortStableFunc(list, func(a, b candidate) int { return r.order(a.platform, b.platform) })
	return list, nil
}

func (r *resolver) order(a, b ocispec.Platform) int {
	switch {
	case r.match.Less(a, b):
		return -1
	case r.match.Less(b, a):
		return 1
	}
	return 0
}

// read reads a manifest and its config, and returns the platform that the config says, if it does.
func (r *resolver) read(ctx context.Context, desc ocispec.Descriptor) (_ *imageConfig, platform ocispec.Platform, err error) {
	var manifest imageManifest
	var config imageConfig
	if r.img.ManifestJSON, err = r.readJSON(ctx, "manifest", desc, &manifest); err != nil {
		return nil, platform, err
	}
	if r.img.ConfigJSON, err = r.readJSON(ctx, "config", manifest.Config, &config); err != nil {
		return nil, platform, err
	}
	labels := config.Config.Labels
	r.img.Version = cmp.Or(labels[ocispec.AnnotationVersion], labels["version"])
	r.img.Created = firstTime(manifest.Annotations[ocispec.AnnotationCreated], config.Created)
	if config.OS != "" && config.Architecture != "" {
		platform = platforms.Normalize(config.Platform)
	}
	return &config, platform, nil
}

// firstTime returns the first of some texts that is a time.
func firstTime(texts ...string) time.Time {
	for _, text := range texts {
		if t, err := time.Parse(time.RFC3339Nano, text); err == nil {
			return t
		}
	}
	return time.Time{}
}

// readJSON reads a blob of the image and decodes it. A blob that is not here is a hint to pull again; one that is too
// large, not what its digest says, or not JSON in UTF-8 is the image's fault.
func (r *resolver) readJSON(ctx context.Context, kind string, desc ocispec.Descriptor, v any) ([]byte, error) {
	if err := desc.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("%s %q: %w", kind, desc.Digest, err)
	}
	b, err := readBlob(ctx, r.provider, desc)
	if errdefs.IsNotFound(err) {
		return nil, withHint(noImage("containerd does not have its %s %s", kind, desc.Digest), "%q pulls it again", r.pull(""))
	}
	if err == nil && !utf8.Valid(b) {
		err = errors.New("not UTF-8")
	}
	if err == nil {
		err = json.Unmarshal(b, v)
	}
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", kind, desc.Digest, err)
	}
	return b, nil
}

func readBlob(ctx context.Context, provider content.Provider, desc ocispec.Descriptor) (_ []byte, err error) {
	ra, err := provider.ReaderAt(ctx, desc)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, ra.Close()) }()
	if ra.Size() > maxManifest {
		return nil, fmt.Errorf("%d bytes, at most %d are read", ra.Size(), maxManifest)
	}
	b := make([]byte, ra.Size())
	if _, err := io.ReadFull(content.NewReader(ra), b); err != nil {
		return nil, err
	}
	if desc.Digest.Algorithm().FromBytes(b) != desc.Digest {
		return nil, fmt.Errorf("its content has another digest: %w", objectstore.ErrCorrupt)
	}
	return b, nil
}

// checkVersion refuses a version that would spoil what it is shown in.
func (r *resolver) checkVersion() error {
	if v := r.img.Version; len(v) > maxVersion || strings.ContainsFunc(v, unicode.IsControl) {
		return withStatus(exitNotBootable, fmt.Errorf("its version %.*q is too long or has control characters", maxVersion, v))
	}
	return nil
}

// layers finds the layers in the store: by the digests of their tars, or, since what was built here has none, by the
// snapshot of the chain.
func (r *resolver) layers(ctx context.Context, diffIDs []digest.Digest) error {
	if len(diffIDs) == 0 {
		return withStatus(exitNotBootable, errors.New("it has no layers"))
	}
	for _, id := range diffIDs {
		if err := id.Validate(); err != nil {
			return fmt.Errorf("layer %q: %w", id, err)
		}
	}
	r.img.Chain = identity.ChainID(diffIDs)
	var err error
	if r.img.Layers, err = r.byDiffID(ctx, diffIDs); err != nil || r.img.Layers != nil {
		return err
	}
	if r.img.Layers, err = r.bySnapshot(ctx); err != nil {
		return err
	}
	if len(r.img.Layers) != len(diffIDs) {
		return withHint(noImage("it is pulled, but this snapshotter has not unpacked it"), "%q unpacks it", r.pull(""))
	}
	return nil
}

// byDiffID returns nil if the store does not have all.
func (r *resolver) byDiffID(ctx context.Context, diffIDs []digest.Digest) ([]objectstore.Checksum, error) {
	list := make([]objectstore.Checksum, 0, len(diffIDs))
	for _, id := range diffIDs {
		held, err := r.store.layers.Acquire(ctx, id)
		if errors.Is(err, objectstore.ErrNotExist) || errdefs.IsNotFound(err) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		list = append(list, held.ID)
		if err := held.Release(); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// bySnapshot returns nil if the store has no snapshot of the chain.
func (r *resolver) bySnapshot(ctx context.Context) ([]objectstore.Checksum, error) {
	rows, err := r.store.rows(ctx, r.daemonAddress)
	if err != nil {
		return nil, err
	}
	byKey := make(map[string]*row, len(rows))
	var top *row
	for i := range rows {
		byKey[rows[i].key] = &rows[i]
		if rows[i].kind == snapshots.KindCommitted && rows[i].chain == r.img.Chain {
			top = &rows[i]
		}
	}
	var list []objectstore.Checksum
	for r := top; r != nil && len(list) <= len(rows); r = byKey[r.parent] {
		list = append(list, r.layer)
	}
	slices.Reverse(list)
	return list, nil
}
