package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/transfer"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ostree-snapshotter/ostree-snapshotter/signature"
)

// serveManifests starts a registry that serves manifests by tag and digest, and returns its address.
func serveManifests(t *testing.T, manifests map[string]ocispec.Descriptor) string {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name, ok := strings.CutPrefix(r.URL.Path, "/v2/os/manifests/")
		for tag, m := range manifests {
			if !ok || name != tag && name != m.Digest.String() {
				continue
			}
			w.Header().Set("Content-Type", m.MediaType)
			w.Header().Set("Docker-Content-Digest", m.Digest.String())
			w.Header().Set("Content-Length", fmt.Sprint(len(m.Data)))
			if r.Method == http.MethodGet {
				_, _ = w.Write(m.Data)
			}
			return
		}
		http.NotFound(w, r)
	}))
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://")
}

// describe returns a descriptor that contains its content.
func describe(t *testing.T, mediaType string, v any) ocispec.Descriptor {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b)), Data: b}
}

func TestRegistryManifest(t *testing.T) {
	manifest := describe(t, ocispec.MediaTypeImageManifest, ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest})
	here := platforms.DefaultSpec()
	on := func(d digest.Digest, p *ocispec.Platform) ocispec.Descriptor {
		return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: d, Size: 1, Platform: p}
	}
	index := describe(t, ocispec.MediaTypeImageIndex, ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{
		on(digest.FromString("s390x"), &ocispec.Platform{OS: "linux", Architecture: "s390x"}),
		on(digest.FromString("attestation"), &ocispec.Platform{OS: "unknown", Architecture: "unknown"}),
		on(digest.FromString("here"), &here),
	}})
	foreign := describe(t, ocispec.MediaTypeImageIndex, ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{
		on(digest.FromString("s390x"), &ocispec.Platform{OS: "linux", Architecture: "s390x"}),
	}})
	lying := index
	lying.Data = append([]byte(" "), index.Data...)
	lying.Digest = digest.FromString("lie")
	address := serveManifests(t, map[string]ocispec.Descriptor{"one": manifest, "index": index, "foreign": foreign, "lying": lying})

	hosts := t.TempDir() // redirects mirror.example.org to the same registry
	if err := os.MkdirAll(filepath.Join(hosts, "mirror.example.org"), 0o755); err != nil {
		t.Fatal(err)
	}
	toml := fmt.Sprintf("[host.\"http://%s\"]\n", address)
	if err := os.WriteFile(filepath.Join(hosts, "mirror.example.org/hosts.toml"), []byte(toml), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, ref string
		registry  Registry
		want      digest.Digest // "" for an error
	}{
		{"manifest", address + "/os:one", Registry{PlainHTTP: true}, manifest.Digest},
		{"digest", address + "/os@" + manifest.Digest.String(), Registry{PlainHTTP: true}, manifest.Digest},
		{"index", address + "/os:index", Registry{PlainHTTP: true}, digest.FromString("here")},
		{"hosts", "mirror.example.org/os:index", Registry{HostsDir: hosts}, digest.FromString("here")},
		{"no platform", address + "/os:foreign", Registry{PlainHTTP: true}, ""},
		{"wrong digest", address + "/os:lying", Registry{PlainHTTP: true}, ""},
		{"absent", address + "/os:absent", Registry{PlainHTTP: true}, ""},
		{"no reference", "/", Registry{}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := tt.registry.Manifest(t.Context(), tt.ref)
			if tt.want == "" {
				var failed *RegistryError
				if !errors.As(err, &failed) || failed.Ref != tt.ref {
					t.Errorf("Manifest() = %q, %v, want a RegistryError of %s", got, err, tt.ref)
				}
				return
			}
			if got != tt.want || err != nil {
				t.Errorf("Manifest() = %q, %v, want %q", got, err, tt.want)
			}
		})
	}
}

// TestSilentRegistry: a registry that takes a request and does not answer, or stops in an answer, does not hold a check up.
func TestSilentRegistry(t *testing.T) {
	saved := requestTime
	requestTime = 50 * time.Millisecond
	t.Cleanup(func() { requestTime = saved })
	done := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/half") {
			_, _ = w.Write([]byte("{"))
			_ = http.NewResponseController(w).Flush()
		}
		<-done
	}))
	t.Cleanup(srv.Close)
	t.Cleanup(func() { close(done) })
	name, err := signature.ParseName(strings.TrimPrefix(srv.URL, "http://") + "/os:1")
	if err != nil {
		t.Fatal(err)
	}
	repo, err := (&Registry{PlainHTTP: true}).Repository(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for _, tag := range []string{"none", "half"} {
		_, err := repo.Manifest(ctx, tag, MaxDocument)
		if !errors.As(err, new(*RegistryError)) || errors.Is(err, signature.ErrNotFound) || ctx.Err() != nil {
			t.Errorf("%s: error is %v, %v, want a RegistryError in time", tag, err, ctx.Err())
		}
	}
}

// TestNoReferrers: a registry that does not know the API of referrers keeps none. Other failures, and those of manifests,
// stay failures.
func TestNoReferrers(t *testing.T) {
	status := http.StatusOK
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }))
	t.Cleanup(srv.Close)
	name, err := signature.ParseName(strings.TrimPrefix(srv.URL, "http://") + "/os:1")
	if err != nil {
		t.Fatal(err)
	}
	repo, err := (&Registry{PlainHTTP: true}).Repository(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	dgst := digest.FromString("os")
	for code, none := range map[int]bool{400: true, 404: true, 405: true, 406: true, 401: false, 403: false, 429: false, 500: false, 503: false} {
		status = code
		if _, err := repo.Referrers(t.Context(), dgst, MaxDocument); err == nil || errors.Is(err, signature.ErrNotFound) != none {
			t.Errorf("referrers, status %d: error is %v, want not found: %t", code, err, none)
		}
		if _, err := repo.Manifest(t.Context(), "1", MaxDocument); err == nil || errors.Is(err, signature.ErrNotFound) != (code == 404) {
			t.Errorf("manifest, status %d: error is %v", code, err)
		}
	}
}

func TestPullCount(t *testing.T) {
	c := pullCount{blobs: make(map[string]transfer.Progress)}
	for _, tt := range []struct {
		p           transfer.Progress
		done, total int64
	}{
		{transfer.Progress{Event: "Resolving"}, 0, 0},
		{transfer.Progress{Event: "waiting", Name: "a", Total: 100 << 10}, 0, 100},
		{transfer.Progress{Event: "downloading", Name: "a", Progress: 50 << 10, Total: 100 << 10}, 50, 100},
		{transfer.Progress{Event: "already exists", Name: "b", Progress: 20 << 10, Total: 20 << 10}, 70, 120},
		{transfer.Progress{Event: "extracting", Name: "a", Progress: 1, Total: 100 << 10}, 70, 120},
		{transfer.Progress{Event: "complete", Name: "a", Progress: 100 << 10, Total: 100 << 10}, 120, 120},
	} {
		if done, total := c.add(tt.p); done != tt.done || total != tt.total {
			t.Errorf("after %+v: %d of %d KiB, want %d of %d", tt.p, done, total, tt.done, tt.total)
		}
	}
}
