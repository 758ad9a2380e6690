// Command setup prepares this machine for the integration tests and the benchmarks. It provides Debian packages, the
// programs of the tests, the ostree of several Debian releases, a new mkfs.erofs, a mkcomposefs, another kernel, an
// SELinux policy, a buildah, a Docker, skopeo, podman and cosign, and the test images. Existing ones are kept.
//
//	go run ./integration/setup [packages] [tools] [docker] [ostree] [erofs] [composefs] [buildah] [signers] [kernel] [selinux] [images] [gcc]
//
// Without arguments it provides everything. The step gcc is the part of packages that the race detector needs. For an
// ordinary user it prints a message and succeeds; tests that need it are skipped.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/buildah"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/encapsulate"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/images"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/ostreehost"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/testhost"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	err := run(ctx, os.Stderr, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "setup: error: %v\n", err)
		os.Exit(1)
	}
}

type step struct {
	name     string
	onDemand bool
	do       func(ctx context.Context, log io.Writer) error
}

var steps = []step{
	{"packages", false, testhost.InstallPackages},
	{"gcc", true, testhost.InstallCompiler},
	{"tools", false, func(ctx context.Context, log io.Writer) error {
		tools, err := testhost.BuildTools(ctx, log)
		if err != nil {
			return err
		}
		if _, err := tools.WithContainerd(ctx, log, testhost.OldContainerd); err != nil {
			return err
		}
		if _, err := testhost.Buildkit(ctx, log); err != nil {
			return err
		}
		_, err = testhost.Goerofs(ctx, log)
		return err
	}},
	{"docker", false, func(ctx context.Context, log io.Writer) error {
		_, err := testhost.Docker(ctx, log)
		return err
	}},
	{"ostree", false, func(ctx context.Context, log io.Writer) error {
		for _, r := range ostreehost.Releases {
			if _, err := ostreehost.Rootfs(ctx, log, r); err != nil {
				return err
			}
		}
		return nil
	}},
	{"erofs", false, func(ctx context.Context, log io.Writer) error {
		_, err := testhost.ErofsUtils(ctx, log)
		return err
	}},
	{"composefs", false, func(ctx context.Context, log io.Writer) error {
		_, err := testhost.Mkcomposefs(ctx, log)
		return err
	}},
	{"buildah", false, func(ctx context.Context, log io.Writer) error {
		_, err := buildah.Rootfs(ctx, log)
		return err
	}},
	{"signers", false, func(ctx context.Context, log io.Writer) error {
		if _, err := testhost.Signers(ctx, log); err != nil {
			return err
		}
		_, err := testhost.Cosign2(ctx, log)
		return err
	}},
	{"kernel", false, func(ctx context.Context, log io.Writer) error {
		_, err := testhost.Kernel(ctx, log)
		return err
	}},
	{"selinux", false, func(ctx context.Context, log io.Writer) error {
		for _, r := range testhost.LibselinuxReleases {
			if _, err := testhost.Matchpathcon(ctx, log, r); err != nil {
				return err
			}
		}
		_, err := testhost.SELinuxPolicy(ctx, log)
		return err
	}},
	{"images", false, func(ctx context.Context, log io.Writer) error {
		for _, ref := range append(images.Names(), images.OSBase, images.SELinuxBase, images.PolicyBookworm, images.PolicyLocal, images.PolicyForky) {
			if _, err := images.Layout(ctx, log, ref); err != nil {
				return err
			}
		}
		if err := images.ComposefsRootfs(ctx, log); err != nil {
			return err
		}
		if _, err := encapsulate.OS(ctx, log); err != nil {
			return err
		}
		_, err := encapsulate.LabelledOS(ctx, log)
		return err
	}},
}

func run(ctx context.Context, log io.Writer, wanted []string) error {
	for _, name := range wanted {
		if !slices.ContainsFunc(steps, func(s step) bool { return s.name == name }) {
			return fmt.Errorf("no step %q", name)
		}
	}
	if os.Geteuid() != 0 {
		fmt.Fprintf(log, "setup: not root: the tests against a real containerd are skipped\n")
		return nil
	}
	for _, s := range steps {
		if len(wanted) > 0 && !slices.Contains(wanted, s.name) || len(wanted) == 0 && s.onDemand {
			continue
		}
		start := time.Now()
		if err := s.do(ctx, log); err != nil {
			return err
		}
		fmt.Fprintf(log, "setup: %s ready in %.1f s\n", s.name, time.Since(start).Seconds())
	}
	return nil
}
