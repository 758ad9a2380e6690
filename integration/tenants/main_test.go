package tenants

import (
	"context"
	"os"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/testhost"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// shared is what the tests start, or nil if they are skipped.
var shared *programs

type programs struct {
	dir              string
	tools            *testhost.Tools
	daemon, attacker string
}

func TestMain(m *testing.M) {
	testenv.Main(m, func(ctx context.Context) error {
		shared = new(programs)
		return shared.build(ctx)
	}, func() error { return os.RemoveAll(shared.dir) })
}

func (p *programs) build(ctx context.Context) (err error) {
	if p.dir, err = os.MkdirTemp("", "osa"); err != nil {
		return err
	}
	if err := os.Chmod(p.dir, 0o755); err != nil {
		return err
	}
	if err := testhost.InstallPackages(ctx, os.Stderr); err != nil {
		return err
	}
	if p.tools, err = testhost.BuildTools(ctx, os.Stderr); err != nil {
		return err
	}
	if p.daemon, err = testhost.BuildBinary(ctx, p.dir); err != nil {
		return err
	}
	p.attacker, err = testhost.BuildProgram(ctx, p.dir, "./integration/tenants/attacker")
	return err
}
