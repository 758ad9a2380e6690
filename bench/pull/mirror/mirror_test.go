package mirror_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ostree-snapshotter/ostree-snapshotter/bench/pull/mirror"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

func newStore(t *testing.T) content.Store {
	t.Helper()
	s, err := local.NewStore(t.TempDir())
	testenv.Must(t, err)
	return s
}

func put(t *testing.T, store content.Store, mediaType string, b []byte) ocispec.Descriptor {
	t.Helper()
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	testenv.Must(t, content.WriteBlob(t.Context(), store, desc.Digest.String(), bytes.NewReader(b), desc))
	return desc
}

func putJSON(t *testing.T, store content.Store, mediaType string, v any) ocispec.Descriptor {
	t.Helper()
	b, err := json.Marshal(v)
	testenv.Must(t, err)
	return put(t, store, mediaType, b)
}

// index makes an image for this platform and for another one, whose manifest is missing.
func index(t *testing.T, store content.Store) (target, layer ocispec.Descriptor) {
	t.Helper()
	layer = put(t, store, ocispec.MediaTypeImageLayer, []byte("layer"))
	config := putJSON(t, store, ocispec.MediaTypeImageConfig, ocispec.Image{Platform: platforms.DefaultSpec()})
	manifest := putJSON(t, store, ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, Config: config, Layers: []ocispec.Descriptor{layer},
	})
	p := platforms.DefaultSpec()
	manifest.Platform = &p
	other := ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("other"), Size: 5,
		Platform: &ocispec.Platform{OS: "linux", Architecture: "s390x"},
	}
	target = putJSON(t, store, ocispec.MediaTypeImageIndex, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []ocispec.Descriptor{other, manifest},
	})
	return target, layer
}

// TestFetchFromMirror fetches an image with containerd's client, and compares it with the image that was added.
func TestFetchFromMirror(t *testing.T) {
	from, to := newStore(t), newStore(t)
	target, layer := index(t, from)
	m, err := mirror.Start(t.Context())
	testenv.Must(t, err)
	defer func() { testenv.Must(t, m.Close()) }()
	ref := m.Add(target, from)
	got, err := mirror.Fetch(t.Context(), ref, to)
	testenv.Must(t, err)
	if got.Digest != target.Digest || got.MediaType != target.MediaType {
		t.Errorf("got %v, want %v", got, target)
	}
	b, err := content.ReadBlob(t.Context(), to, layer)
	if err != nil || string(b) != "layer" {
		t.Errorf("got layer %q, %v", b, err)
	}
	if _, err := mirror.Fetch(t.Context(), m.Add(ocispec.Descriptor{Digest: digest.FromString("none"), MediaType: ocispec.MediaTypeImageIndex}, from), to); !errdefs.IsNotFound(err) {
		t.Errorf("an image without manifest: got %v, want not found", err)
	}
}

func TestMirrorAnswers(t *testing.T) {
	store := newStore(t)
	target, layer := index(t, store)
	m, err := mirror.Start(t.Context())
	testenv.Must(t, err)
	defer func() { testenv.Must(t, m.Close()) }()
	ref := m.Add(target, store)
	base := "http://" + ref[:len(ref)-len("/bench/image-0:latest")] + "/v2/"
	for _, tt := range []struct {
		method, path string
		status       int
		mediaType    string
	}{
		{"GET", "", 200, ""},
		{"HEAD", "bench/image-0/manifests/latest", 200, ocispec.MediaTypeImageIndex},
		{"GET", "bench/image-0/manifests/" + target.Digest.String(), 200, ocispec.MediaTypeImageIndex},
		{"GET", "bench/image-0/blobs/" + layer.Digest.String(), 200, "application/octet-stream"},
		{"GET", "bench/image-0/blobs/" + digest.FromString("none").String(), 404, ""},
		{"GET", "bench/image-0/blobs/..%2F..%2Fetc%2Fpasswd", 404, ""},
		{"GET", "bench/image-0/manifests/other", 404, ""},
		{"GET", "bench/image-1/manifests/latest", 404, ""},
		{"GET", "bench/image--1/manifests/latest", 404, ""},
		{"POST", "bench/image-0/blobs/uploads/", 404, ""},
		{"DELETE", "bench/image-0/manifests/latest", 405, ""},
	} {
		req, err := http.NewRequestWithContext(t.Context(), tt.method, base+tt.path, nil)
		testenv.Must(t, err)
		resp, err := http.DefaultClient.Do(req)
		testenv.Must(t, err)
		_, err = io.Copy(io.Discard, resp.Body)
		testenv.Must(t, err)
		testenv.Must(t, resp.Body.Close())
		if got := resp.Header.Get("Content-Type"); resp.StatusCode != tt.status || tt.mediaType != "" && got != tt.mediaType {
			t.Errorf("%s %s: got %d, %q, want %d, %q", tt.method, tt.path, resp.StatusCode, got, tt.status, tt.mediaType)
		}
	}
}
