package containerd

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// blobMap is a content store.
type blobMap map[digest.Digest][]byte

type blobReader struct{ *bytes.Reader }

func (blobReader) Close() error { return nil }

func (m blobMap) ReaderAt(_ context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	if b, ok := m[desc.Digest]; ok {
		return blobReader{bytes.NewReader(b)}, nil
	}
	return nil, fmt.Errorf("blob %q: %w", desc.Digest, errdefs.ErrNotFound)
}

// FuzzImage reads an image whose index, manifest and config are arbitrary bytes, and may refer to anything.
func FuzzImage(f *testing.F) {
	diffID := digest.FromString("layer")
	marshal := func(v any) []byte {
		b, err := json.Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		return b
	}
	point := func(mediaType, to string) ocispec.Descriptor {
		return ocispec.Descriptor{MediaType: mediaType, Digest: digest.Digest(to), Size: 1}
	}
	config := marshal(ocispec.Image{RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{diffID, diffID}}})
	manifest := marshal(ocispec.Manifest{Config: point(ocispec.MediaTypeImageConfig, "config"), Layers: []ocispec.Descriptor{point("", "a"), point("", "b")}})
	index := marshal(ocispec.Index{Manifests: []ocispec.Descriptor{
		point(ocispec.MediaTypeImageManifest, "manifest"), point(ocispec.MediaTypeImageIndex, "index"), point(ocispec.MediaTypeImageManifest, "config"),
	}})
	f.Add(index, manifest, config)
	f.Add(index, config, manifest)
	f.Add([]byte(`{"manifests":[{"digest":"manifest","size":1},null,{}]}`), []byte(`{"config":null,"layers":[null]}`), []byte(`{"rootfs":{"diff_ids":["","x",""]}}`))
	f.Add([]byte(strings.Repeat("[", 20000)), []byte(`{"layers":{}}`), []byte("\x00"))
	f.Fuzz(func(t *testing.T, index, manifest, config []byte) {
		reads := &countingProvider{Provider: blobMap{"index": index, "manifest": manifest, "config": config}}
		img := newImage("")
		if err := img.read(t.Context(), reads, point(ocispec.MediaTypeImageIndex, "index")); err != nil {
			t.Fatal(err)
		}
		for chain := range img.Blobs {
			if !slices.Contains(img.Chains, chain) {
				t.Errorf("blob of chain %q, which is not one of %q", chain, img.Chains)
			}
		}
		if most := 2 * len(reads.asked); reads.n > most {
			t.Errorf("%d reads of %d blobs, want at most %d", reads.n, len(reads.asked), most)
		}
	})
}

// TestMemoryOfManifests reads an index with as many empty entries, and a config with as many layers, as MaxDocument
// permits.
func TestMemoryOfManifests(t *testing.T) {
	full := func(head, entry, tail string) []byte {
		return []byte(head + strings.Repeat(entry+",", (MaxDocument-len(head)-len(tail)-len(entry))/(len(entry)+1)) + entry + tail)
	}
	point := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: "index", Size: 1}
	for name, blobs := range map[string]blobMap{
		"index":  {"index": full(`{"manifests":[`, "{}", "]}")},
		"layers": {"index": []byte(`{"manifests":[{"mediaType":"` + ocispec.MediaTypeImageManifest + `","digest":"m","size":1}]}`), "m": []byte(`{"config":{"digest":"c","size":1}}`), "c": full(`{"rootfs":{"diff_ids":[`, `""`, "]}}")},
	} {
		t.Run(name, func(t *testing.T) {
			testenv.LimitMemory(t, 768<<20, func() {
				if err := newImage("").read(t.Context(), blobs, point); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}
