package integration

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/stack"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/testhost"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/tree"
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
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) (code int) {
	if testing.Short() || os.Geteuid() != 0 {
		return m.Run()
	}
	start := time.Now()
	h, err := newHost(context.Background())
	if err != nil {
		fmt.Fprintf(os.Stderr, "prepare the host: %v\n", err)
		return 1
	}
	defer func() {
		if err := h.close(); err != nil {
			fmt.Fprintf(os.Stderr, "clean up the host: %v\n", err)
			code = max(code, 1)
		}
	}()
	fmt.Fprintf(os.Stderr, "host ready in %.1f s\n", time.Since(start).Seconds())
	shared = h
	return m.Run()
}

func newHost(ctx context.Context) (_ *host, err error) {
	h := &host{trees: make(map[string]tree.Tree), options: make(map[string]tree.Options)}
	if h.dir, err = os.MkdirTemp("", "osb"); err != nil {
		return nil, err
	}
	if err := os.Chmod(h.dir, 0o755); err != nil { // a test runs the daemon as another user
		return nil, err
	}
	h.binary = sync.OnceValues(func() (string, error) { return testhost.BuildBinary(ctx, h.dir) })
	defer func() {
		if err != nil {
			err = errors.Join(err, h.close())
		}
	}()
	if err := testhost.InstallPackages(ctx, os.Stderr); err != nil {
		return nil, err
	}
	if h.tools, err = testhost.BuildTools(ctx, os.Stderr); err != nil {
		return nil, err
	}
	if h.registry, err = stack.StartRegistry(ctx, h.tools); err != nil {
		return nil, err
	}
	return h, nil
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
