package docker

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"sync"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/stack"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/testhost"
)

// A host is shared by all tests.
type host struct {
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
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) (code int) {
	if testing.Short() || os.Geteuid() != 0 {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "osb")
	if err == nil {
		defer os.RemoveAll(dir)
		shared, err = newHost(context.Background(), dir)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "prepare the host: %v\n", err)
		return 1
	}
	defer func() {
		if err := shared.registry.Stop(); err != nil {
			fmt.Fprintf(os.Stderr, "clean up the host: %v\n", err)
			code = max(code, 1)
		}
	}()
	return m.Run()
}

func newHost(ctx context.Context, dir string) (_ *host, err error) {
	h := new(host)
	if err := testhost.InstallPackages(ctx, os.Stderr); err != nil {
		return nil, err
	}
	if h.tools, err = testhost.BuildTools(ctx, os.Stderr); err != nil {
		return nil, err
	}
	if h.buildkit, err = testhost.Buildkit(ctx, os.Stderr); err != nil {
		return nil, err
	}
	if h.docker, err = testhost.Docker(ctx, os.Stderr); err != nil {
		return nil, err
	}
	if h.binary, err = testhost.BuildBinary(ctx, dir); err != nil {
		return nil, err
	}
	if h.registry, err = stack.StartRegistry(ctx, h.tools); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return h, nil
}
