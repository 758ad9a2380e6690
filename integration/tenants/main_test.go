package tenants

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/testhost"
)

// shared is what the tests start, or nil if they are skipped.
var shared *programs

type programs struct {
	tools            *testhost.Tools
	daemon, attacker string
}

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) (code int) {
	if testing.Short() || os.Geteuid() != 0 {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "osa")
	if err == nil {
		defer os.RemoveAll(dir)
		err = errors.Join(os.Chmod(dir, 0o755), build(context.Background(), dir))
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "prepare the host: %v\n", err)
		return 1
	}
	return m.Run()
}

func build(ctx context.Context, dir string) error {
	err := testhost.InstallPackages(ctx, os.Stderr)
	if err != nil {
		return err
	}
	shared = new(programs)
	if shared.tools, err = testhost.BuildTools(ctx, os.Stderr); err != nil {
		return err
	}
	if shared.daemon, err = testhost.BuildBinary(ctx, dir); err != nil {
		return err
	}
	shared.attacker, err = testhost.BuildProgram(ctx, dir, "./integration/tenants/attacker")
	return err
}
