package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/stack"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/testhost"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/tree"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// A host is shared by all tests.
type host struct {
	tools    *testhost.Tools
	registry *stack.Registry
	binary   func() (string, error) // path of the daemon, built by the first call

	dir       string
	mu        sync.Mutex
	reference *stack.Stack         // containerd with overlayfs
	trees     map[string]tree.Tree // files of each image that reference shows
	options   map[string]tree.Options
}

// shared is nil if the tests are skipped.
var shared *host

func TestMain(m *testing.M) {
	testenv.Main(m, func(ctx context.Context) error {
		start := time.Now()
		shared = &host{trees: make(map[string]tree.Tree), options: make(map[string]tree.Options)}
		if err := shared.prepare(ctx); err != nil {
			return err
		}
		fmt.Fprintf(os.Stderr, "host ready in %.1f s\n", time.Since(start).Seconds())
		return nil
	}, func() error { return shared.close() })
}

func (h *host) prepare(ctx context.Context) (err error) {
	if h.dir, err = os.MkdirTemp("", "osb"); err != nil {
		return err
	}
	if err := os.Chmod(h.dir, 0o755); err != nil { // a test runs the daemon as another user
		return err
	}
	h.binary = sync.OnceValues(func() (string, error) { return testhost.BuildBinary(ctx, h.dir) })
	if err := testhost.InstallPackages(ctx, os.Stderr); err != nil {
		return err
	}
	if h.tools, err = testhost.BuildTools(ctx, os.Stderr); err != nil {
		return err
	}
	h.registry, err = stack.StartRegistry(ctx, h.tools)
	return err
}

func (h *host) close() error {
	var errs []error
	if h.reference != nil {
		errs = append(errs, h.reference.Stop())
	}
	if h.registry != nil {
		errs = append(errs, h.registry.Stop())
	}
	return errors.Join(append(errs, os.RemoveAll(h.dir))...)
}
