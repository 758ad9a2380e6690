package docker

import (
	"context"
	"errors"
	"os"
	"sync"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/stack"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/testhost"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// A host is shared by all tests.
type host struct {
	dir              string
	tools            *testhost.Tools
	buildkit, docker string // directories with programs
	binary           string // of the daemon
	registry         *stack.Registry

	once      sync.Once
	reference built
}

// shared is nil if the tests are skipped.
var shared *host

func TestMain(m *testing.M) {
	testenv.Main(m, func(ctx context.Context) error {
		shared = new(host)
		return shared.prepare(ctx)
	}, func() error { return shared.close() })
}

func (h *host) prepare(ctx context.Context) (err error) {
	if h.dir, err = os.MkdirTemp("", "osb"); err != nil {
		return err
	}
	if err := testhost.InstallPackages(ctx, os.Stderr); err != nil {
		return err
	}
	if h.tools, err = testhost.BuildTools(ctx, os.Stderr); err != nil {
		return err
	}
	if h.buildkit, err = testhost.Buildkit(ctx, os.Stderr); err != nil {
		return err
	}
	if h.docker, err = testhost.Docker(ctx, os.Stderr); err != nil {
		return err
	}
	if h.binary, err = testhost.BuildBinary(ctx, h.dir); err != nil {
		return err
	}
	h.registry, err = stack.StartRegistry(ctx, h.tools)
	return err
}

func (h *host) close() error {
	var err error
	if h.registry != nil {
		err = h.registry.Stop()
	}
	return errors.Join(err, os.RemoveAll(h.dir))
}
