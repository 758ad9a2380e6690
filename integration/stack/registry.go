package stack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/images"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/testhost"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/process"
)

// A Registry is a running registry on the loopback interface, without TLS. Several stacks may use it.
type Registry struct {
	Address string // host:port

	proc   *process.Process
	dir    string
	mu     sync.Mutex
	pushed map[string]bool
}

var listening = regexp.MustCompile(`listening on (127\.0\.0\.1:\d+)`)

// StartRegistry starts an empty registry.
func StartRegistry(ctx context.Context, tools *testhost.Tools) (_ *Registry, err error) {
	dir, err := os.MkdirTemp("", "osr")
	if err != nil {
		return nil, fmt.Errorf("start registry: %w", err)
	}
	r := &Registry{dir: dir, pushed: make(map[string]bool)}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Stop())
		}
	}()
	config := filepath.Join(dir, "config.yml")
	text := fmt.Sprintf("version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: %s\nhttp:\n  addr: 127.0.0.1:0\n",
		filepath.Join(dir, "data"))
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, fmt.Errorf("start registry: %w", err)
	}
	env := []string{"OTEL_TRACES_EXPORTER=none"}
	if r.proc, err = process.Start(filepath.Join(dir, "registry.log"), env, tools.Registry, "serve", config); err != nil {
		return nil, err
	}
	err = r.proc.WaitFor(ctx, func(context.Context) error {
		b, err := os.ReadFile(r.proc.Log)
		if err != nil {
			return err
		}
		m := listening.FindSubmatch(b)
		if m == nil {
			return errors.New("it does not listen yet")
		}
		r.Address = string(m[1])
		return nil
	})
	if err != nil {
		return nil, err
	}
	return r, nil
}

// Push pushes a test image, which it makes if necessary, and returns the name to pull it by.
func (r *Registry) Push(ctx context.Context, log io.Writer, ref string) (string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	full := r.Address + "/" + ref
	if r.pushed[ref] {
		return full, nil
	}
	dir, err := images.Layout(ctx, log, ref)
	if err != nil {
		return "", err
	}
	img, err := images.Open(dir)
	if err != nil {
		return "", err
	}
	if err := img.Push(ctx, r.Address, ref); err != nil {
		return "", err
	}
	r.pushed[ref] = true
	return full, nil
}

var blobGet = regexp.MustCompile(`"GET /v2/[^" ]*/blobs/(sha256:[0-9a-f]{64})`)

// BlobRequests returns the digests of the blobs requested since the registry started, one for each request.
func (r *Registry) BlobRequests() ([]string, error) {
	b, err := os.ReadFile(r.proc.Log)
	if err != nil {
		return nil, fmt.Errorf("read registry log: %w", err)
	}
	var digests []string
	for _, m := range blobGet.FindAllSubmatch(b, -1) {
		digests = append(digests, string(m[1]))
	}
	return digests, nil
}

// Stop stops the registry and removes its data.
func (r *Registry) Stop() error {
	var err error
	if r.proc != nil {
		err = r.proc.Signal(unix.SIGKILL)
	}
	return errors.Join(err, os.RemoveAll(r.dir))
}
