package containerd

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ostree-snapshotter/ostree-snapshotter/plugin/containerd/containerdtest"
)

func client(t *testing.T, address string) *Client {
	t.Helper()
	c, err := Dial(address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestImages(t *testing.T) {
	l1, l2, l3 := digest.FromString("1"), digest.FromString("2"), digest.FromString("3")
	absent := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("absent"), Size: 6}
	chains := func(diffIDs ...digest.Digest) []digest.Digest { return identity.ChainIDs(diffIDs) }

	f := containerdtest.New(t)
	manifest := func(diffIDs ...digest.Digest) ocispec.Descriptor {
		return f.Manifest(containerdtest.Image{DiffIDs: diffIDs})
	}
	blobs := []ocispec.Descriptor{{Digest: digest.FromString("blob 1"), Size: 1}, {Digest: digest.FromString("blob 2"), Size: 1}}
	two := f.Index(f.Manifest(containerdtest.Image{DiffIDs: []digest.Digest{l1, l2}, Layers: blobs}), absent)
	f.Tag("default", "example.org/two:latest", two)
	f.Tag("k8s.io", "example.org/two:latest", two)
	f.Tag("k8s.io", "example.org/two@"+two.Digest.String(), two)
	platforms := f.Index(manifest(l1), manifest(l3), f.Index(manifest(l1, l3)))
	f.Tag("default", "example.org/platforms", platforms)
	f.Tag("default", "example.org/absent", absent)
	f.Tag("default", "example.org/not-json", f.Blob(ocispec.MediaTypeImageManifest, []byte("not JSON")))
	f.Tag("default", "example.org/huge", f.Blob(ocispec.MediaTypeImageManifest, bytes.Repeat([]byte(" "), MaxDocument+1)))
	f.Tag("default", "example.org/config-absent", f.Blob(ocispec.MediaTypeImageManifest, ocispec.Manifest{Config: absent}))
	deep := manifest(l2)
	for range maxIndexDepth + 1 {
		deep = f.Index(deep)
	}
	f.Tag("default", "example.org/deep", deep)
	f.Tag("default", "example.org/unknown", f.Blob("application/vnd.example", []byte("{}")))
	f.Namespace("empty")

	list, err := client(t, f.Address).Images(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string][]digest.Digest)
	for _, img := range list {
		var names []string
		for _, n := range img.Names {
			names = append(names, n.Namespace+"/"+n.Name)
		}
		got[strings.Join(names, " ")] = img.Chains
		if img.Target != two.Digest {
			continue
		}
		want := map[digest.Digest]digest.Digest{l1: blobs[0].Digest, chains(l1, l2)[1]: blobs[1].Digest}
		if diff := testenv.Diff(want, img.Blobs); diff != "" {
			t.Errorf("blobs by chain (-want +got):\n%s", diff)
		}
	}
	want := map[string][]digest.Digest{
		"default/example.org/two:latest k8s.io/example.org/two:latest k8s.io/example.org/two@" + two.Digest.String(): chains(l1, l2),
		"default/example.org/platforms":     {l1, l3, chains(l1, l3)[1]},
		"default/example.org/absent":        nil,
		"default/example.org/not-json":      nil,
		"default/example.org/huge":          nil,
		"default/example.org/config-absent": nil,
		"default/example.org/deep":          nil,
		"default/example.org/unknown":       nil,
	}
	if diff := testenv.Diff(want, got); diff != "" {
		t.Errorf("chains of images (-want +got):\n%s", diff)
	}
	names, err := client(t, f.Address).ImageNames(t.Context(), "k8s.io")
	if want := []string{"example.org/two:latest", "example.org/two@" + two.Digest.String()}; err != nil || !slices.Equal(names, want) {
		t.Errorf("names in k8s.io: got %q, %v, want %q", names, err, want)
	}
}

// If the content store fails, an image must not look like one without layers.
func TestImagesFail(t *testing.T) {
	broken := errors.New("broken")
	target := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("x"), Size: 1}
	for err, want := range map[error]error{broken: broken, errdefs.ErrNotFound: nil, errdefs.ErrInvalidArgument: nil, context.Canceled: context.Canceled} {
		if got := newImage("").read(t.Context(), documents{failing{err}}, target); !errors.Is(got, want) {
			t.Errorf("provider fails with %v: got %v, want %v", err, got, want)
		}
	}
}

type failing struct{ err error }

func (f failing) ReaderAt(context.Context, ocispec.Descriptor) (content.ReaderAt, error) {
	return nil, f.err
}

// A manifest that an index names many times must be read once.
func TestRepeatedIndex(t *testing.T) {
	f := containerdtest.New(t)
	m := f.Manifest(containerdtest.Image{DiffIDs: []digest.Digest{digest.FromString("1")}})
	many := make([]ocispec.Descriptor, 10000)
	for i := range many {
		many[i] = m
	}
	reads := &countingProvider{Provider: f.Content}
	img := newImage("")
	if err := img.read(t.Context(), documents{reads}, f.Index(many...)); err != nil || len(img.Chains) != 1 {
		t.Fatalf("read() = %v, %v; want one chain", img.Chains, err)
	}
	if reads.n != 3 { // index, manifest, config
		t.Errorf("%d blobs were read, want 3", reads.n)
	}
}

// countingProvider counts reads, and records their digests.
type countingProvider struct {
	content.Provider
	n     int
	asked map[digest.Digest]bool
}

func (p *countingProvider) ReaderAt(ctx context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	if p.asked == nil {
		p.asked = make(map[digest.Digest]bool)
	}
	p.n++
	p.asked[desc.Digest] = true
	return p.Provider.ReaderAt(ctx, desc)
}

// Each error must have the data that a hint needs.
func TestResolveErrors(t *testing.T) {
	f := containerdtest.New(t)
	here := ocispec.Platform{OS: "linux", Architecture: "amd64"}
	foreign := ocispec.Platform{OS: "linux", Architecture: "s390x"}
	absent := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("absent"), Size: 6}
	f.Tag("default", "here", f.Manifest(containerdtest.Image{Platform: here}))
	f.Tag("k8s.io", "there", f.Manifest(containerdtest.Image{Platform: here}))
	f.Tag("default", "absent", absent)
	f.Tag("default", "foreign", f.Index(f.Manifest(containerdtest.Image{Platform: foreign})))
	f.Tag("default", "empty", f.Index())
	f.Tag("default", "text", f.Blob(ocispec.MediaTypeImageManifest, []byte("text")))
	c := client(t, f.Address)
	for _, tt := range []struct {
		name   string
		is, as any
	}{
		{"none", ErrNoImage, nil},
		{"absent", ErrNoImage, new(*DocumentError)},
		{"foreign", ErrNoImage, new(*PlatformError)},
		{"empty", ErrNoManifest, nil},
		{"text", nil, new(*DocumentError)},
	} {
		_, err := c.Resolve(t.Context(), "default", tt.name, here)
		var img *ImageError
		if !errors.As(err, &img) || img.Namespace != "default" || img.Name != tt.name || img.FoundIn != "" {
			t.Errorf("%s: got %v, want an ImageError of it", tt.name, err)
		}
		if is, ok := tt.is.(error); ok != errors.Is(err, ErrNoImage) || ok && !errors.Is(err, is) {
			t.Errorf("%s: got %v, want %v", tt.name, err, tt.is)
		}
		if tt.as != nil && !errors.As(err, tt.as) {
			t.Errorf("%s: got %v, want a %T", tt.name, err, tt.as)
		}
	}
	var img *ImageError
	if _, err := c.Resolve(t.Context(), "default", "there", here); !errors.As(err, &img) || img.FoundIn != "k8s.io" {
		t.Errorf("image of another namespace: got %v in %+v", err, img)
	}
	gone := client(t, filepath.Join(t.TempDir(), "sock"))
	if _, err := gone.Resolve(t.Context(), "default", "here", here); !errors.Is(err, ErrNoAnswer) || errors.Is(err, ErrNoImage) {
		t.Errorf("nobody listens: got %v, want ErrNoAnswer", err)
	}
}
