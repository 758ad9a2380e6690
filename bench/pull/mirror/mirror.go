// Package mirror serves images from this machine to this machine by the registry protocol, so that measured pulls
// depend on no network and no remote registry.
package mirror

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A Mirror is a read-only registry without TLS on the loopback interface. It is safe for concurrent use.
type Mirror struct {
	listener net.Listener
	server   *http.Server
	served   chan error

	mu     sync.RWMutex
	images []image
}

// An image is served under the name made of its index.
type image struct {
	target   ocispec.Descriptor
	provider content.Provider
}

// Start starts a mirror without images. Close stops it.
func Start(ctx context.Context) (*Mirror, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("start registry: %w", err)
	}
	m := &Mirror{listener: l, served: make(chan error, 1)}
	m.server = &http.Server{Handler: m.handler(), ReadHeaderTimeout: 10 * time.Second}
	go func() { m.served <- m.server.Serve(l) }()
	return m, nil
}

// Close stops the mirror.
func (m *Mirror) Close() error {
	err := m.server.Close()
	if serr := <-m.served; !errors.Is(serr, http.ErrServerClosed) {
		err = errors.Join(err, serr)
	}
	return err
}

// Add adds an image and returns the reference to pull it by. The provider must have its manifests and blobs.
func (m *Mirror) Add(target ocispec.Descriptor, provider content.Provider) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.images = append(m.images, image{target, provider})
	return fmt.Sprintf("%s/bench/image-%d:latest", m.listener.Addr(), len(m.images)-1)
}

// handler answers the requests of a pull, as defined by the distribution specification.
func (m *Mirror) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v2/{$}", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("GET /v2/bench/{image}/manifests/{ref}", func(w http.ResponseWriter, r *http.Request) { m.serve(w, r, true) })
	mux.HandleFunc("GET /v2/bench/{image}/blobs/{ref}", func(w http.ResponseWriter, r *http.Request) { m.serve(w, r, false) })
	return mux
}

func (m *Mirror) image(name string) (image, bool) {
	number, ok := strings.CutPrefix(name, "image-")
	i, err := strconv.Atoi(number)
	m.mu.RLock()
	defer m.mu.RUnlock()
	if !ok || err != nil || i < 0 || i >= len(m.images) {
		return image{}, false
	}
	return m.images[i], true
}

func (m *Mirror) serve(w http.ResponseWriter, r *http.Request, manifest bool) {
	img, ok := m.image(r.PathValue("image"))
	if !ok {
		http.NotFound(w, r)
		return
	}
	desc := ocispec.Descriptor{Digest: digest.Digest(r.PathValue("ref"))}
	if manifest && desc.Digest == "latest" {
		desc = img.target
	}
	if err := desc.Digest.Validate(); err != nil {
		http.NotFound(w, r)
		return
	}
	ra, err := img.provider.ReaderAt(r.Context(), desc)
	if errdefs.IsNotFound(err) {
		http.NotFound(w, r)
		return
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer ra.Close()
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	if manifest {
		mediaType, err := manifestType(desc, io.NewSectionReader(ra, 0, min(ra.Size(), maxManifest)))
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		h.Set("Content-Type", mediaType)
	}
	h.Set("Docker-Content-Digest", desc.Digest.String())
	http.ServeContent(w, r, "", time.Time{}, io.NewSectionReader(ra, 0, ra.Size()))
}
