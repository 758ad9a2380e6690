package bench

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	containerdimages "github.com/containerd/containerd/v2/core/images"
	transferimage "github.com/containerd/containerd/v2/core/transfer/image"
	"github.com/containerd/containerd/v2/core/transfer/registry"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/platforms"
	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ostree-snapshotter/ostree-snapshotter/bench/layout"
	"github.com/ostree-snapshotter/ostree-snapshotter/bench/pull/mirror"
	"github.com/ostree-snapshotter/ostree-snapshotter/bench/pull/node"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/images"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/testhost"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// BenchmarkSmallLayer unpacks downloaded images, new in each round, of one small layer and of eight on base:1, which
// every containerd has, with each snapshotter in turn. It needs bin/ostree-snapshotter, or another build in
// OSTREE_SNAPSHOTTER_BINARY.
func BenchmarkSmallLayer(b *testing.B) {
	m, err := mirror.Start(b.Context())
	testenv.Must(b, err)
	defer func() { testenv.Must(b, m.Close()) }()
	dir, err := images.Layout(b.Context(), os.Stderr, "base:1")
	testenv.Must(b, err)
	base, err := layout.Open(b.Context(), dir)
	testenv.Must(b, err)
	target, err := base.Target()
	testenv.Must(b, err)
	ref := m.Add(target, base)
	snapshotters := []string{"overlayfs", node.Ostree, "erofs"}
	nodes := make(map[string]*node.Node)
	for _, sn := range snapshotters {
		n, err := privateNodes(b).Start(b.Context(), sn)
		testenv.Must(b, err)
		defer func() { testenv.Must(b, n.Close()) }()
		testenv.Must(b, transfer(b.Context(), n, ref, true))
		nodes[sn] = n
	}
	s := make(series)
	layers := []int{1, 8}
	for round := 0; b.Loop(); round++ {
		for _, n := range layers {
			target, provider := onBase(b, base, target, n)
			ref := m.Add(target, provider)
			k := round % len(snapshotters)
			for _, sn := range slices.Concat(snapshotters[k:], snapshotters[:k]) {
				testenv.Must(b, transfer(b.Context(), nodes[sn], ref, false))
				s.time(b, fmt.Sprintf("%s-%d", sn, n), func() error { return transfer(b.Context(), nodes[sn], ref, true) })
			}
		}
	}
	for _, n := range layers {
		group := make(series)
		for _, sn := range snapshotters {
			name := fmt.Sprintf("%s-%d", sn, n)
			group[name] = s[name]
		}
		group.report(b, fmt.Sprintf("overlayfs-%d", n))
	}
}

// privateNodes prepares for containerds with one snapshotter each.
func privateNodes(b *testing.B) node.Private {
	b.Helper()
	testenv.NeedsRoot(b)
	testenv.Must(b, testhost.InstallPackages(b.Context(), os.Stderr))
	tools, err := testhost.BuildTools(b.Context(), os.Stderr)
	testenv.Must(b, err)
	erofs, err := testhost.ErofsUtils(b.Context(), os.Stderr)
	testenv.Must(b, err)
	repo, err := testhost.RepoDir()
	testenv.Must(b, err)
	path := []string{filepath.Dir(tools.Containerd), erofs, os.Getenv("PATH"), filepath.Dir(tools.Runc)}
	b.Setenv("PATH", strings.Join(path, string(filepath.ListSeparator)))
	self := os.Getenv("OSTREE_SNAPSHOTTER_BINARY")
	if self == "" {
		self = filepath.Join(repo, "bin", "ostree-snapshotter")
	}
	return node.Private{Dir: b.TempDir(), FileSystem: "ext4", DiskSize: 6 << 30, Containerd: tools.Containerd, Self: self}
}

// transfer pulls an image as "ctr images pull" does: the missing blobs, and with unpack the missing layers.
func transfer(ctx context.Context, n *node.Node, ref string, unpack bool) error {
	reg, err := registry.NewOCIRegistry(ctx, ref, registry.WithDefaultScheme("http"))
	if err != nil {
		return err
	}
	opts := []transferimage.StoreOpt{transferimage.WithPlatforms(platforms.DefaultSpec())}
	if unpack {
		opts = append(opts, transferimage.WithUnpack(platforms.DefaultSpec(), n.Snapshotter))
	}
	return n.Client.Transfer(namespaces.WithNamespace(ctx, "default"), reg, transferimage.NewStore(ref, opts...))
}

// onBase makes an image with n small layers on those of another one. Nothing of it was in an image before.
func onBase(b *testing.B, base content.Provider, target ocispec.Descriptor, n int) (ocispec.Descriptor, content.Provider) {
	b.Helper()
	manifest, err := containerdimages.Manifest(b.Context(), base, target, platforms.Default())
	testenv.Must(b, err)
	raw, err := content.ReadBlob(b.Context(), base, manifest.Config)
	testenv.Must(b, err)
	var config ocispec.Image
	testenv.Must(b, json.Unmarshal(raw, &config))
	blobs := &memory{below: base, blobs: make(map[digest.Digest][]byte)}
	for range n {
		plain := smallLayer(b)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(plain))
		var compressed bytes.Buffer
		w := gzip.NewWriter(&compressed)
		_, err := w.Write(plain)
		testenv.Must(b, errors.Join(err, w.Close()))
		manifest.Layers = append(manifest.Layers, blobs.add(ocispec.MediaTypeImageLayerGzip, compressed.Bytes()))
	}
	config.History = nil
	manifest.Config = blobs.document(b, ocispec.MediaTypeImageConfig, config)
	return blobs.document(b, ocispec.MediaTypeImageManifest, manifest), blobs
}

// smallLayer returns the tar of 40 sources and a compressed file, 0.9 MB together.
func smallLayer(b *testing.B) []byte {
	b.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	dir := "srv/" + rand.Text()
	for _, name := range []string{"srv/", dir + "/"} {
		testenv.Must(b, w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}))
	}
	put := func(name string, data []byte) {
		testenv.Must(b, w.WriteHeader(&tar.Header{Name: dir + "/" + name, Mode: 0o644, Size: int64(len(data))}))
		_, err := w.Write(data)
		testenv.Must(b, err)
	}
	for i := range 40 {
		put(fmt.Sprintf("source%02d.py", i), bytes.Repeat(fmt.Appendf(nil, "print('line %d of %s')\n", i, dir), 20*(i+1)))
	}
	data := make([]byte, 80_000)
	_, err := rand.Read(data)
	testenv.Must(b, err)
	put("data.bin", data)
	testenv.Must(b, w.Close())
	return buf.Bytes()
}

// memory provides blobs of its own, and those of another provider.
type memory struct {
	below content.Provider
	blobs map[digest.Digest][]byte
}

func (m *memory) add(mediaType string, data []byte) ocispec.Descriptor {
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	m.blobs[d.Digest] = data
	return d
}

func (m *memory) document(b *testing.B, mediaType string, v any) ocispec.Descriptor {
	b.Helper()
	data, err := json.Marshal(v)
	testenv.Must(b, err)
	return m.add(mediaType, data)
}

// ReaderAt opens a blob.
func (m *memory) ReaderAt(ctx context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	if data, ok := m.blobs[desc.Digest]; ok {
		return memoryBlob{bytes.NewReader(data)}, nil
	}
	return m.below.ReaderAt(ctx, desc)
}

type memoryBlob struct{ *bytes.Reader }

func (memoryBlob) Close() error { return nil }
