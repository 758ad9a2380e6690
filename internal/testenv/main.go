package testenv

import (
	"context"
	"flag"
	"fmt"
	"os"
	"testing"
)

// Main runs the tests of a package and exits. First it calls prepare, which makes what tests with root share; not with
// -short or as another user, where such tests are skipped. At last it calls clean, also if prepare has failed: then no test
// has run.
func Main(m *testing.M, prepare func(ctx context.Context) error, clean func() error) {
	flag.Parse()
	os.Exit(run(m, prepare, clean))
}

func run(m *testing.M, prepare func(ctx context.Context) error, clean func() error) (code int) {
	if testing.Short() || os.Geteuid() != 0 {
		return m.Run()
	}
	defer func() {
		if err := clean(); err != nil {
			fmt.Fprintf(os.Stderr, "clean up the host: %v\n", err)
			code = max(code, 1)
		}
	}()
	if err := prepare(context.Background()); err != nil {
		fmt.Fprintf(os.Stderr, "prepare the host: %v\n", err)
		return 1
	}
	return m.Run()
}
