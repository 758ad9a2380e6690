package images

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/testhost"
)

// rootfsTar is the name of a root file system's tar in its cache entry.
const rootfsTar = "rootfs.tar.zst"

// A rootfs is a root file system made by mmdebstrap.
type rootfs struct {
	suite    string // "" for bookworm
	variant  string
	packages []string
	updates  bool     // with the suite's updates and security
	args     []string // additional arguments of mmdebstrap
}

var basePackages = []string{"python3", "python3-numpy", "python3-pip", "perl", "git", "iputils-ping", "ca-certificates"}

var (
	base1Rootfs = rootfs{variant: "minbase", packages: basePackages}
	base2Rootfs = rootfs{variant: "minbase", packages: basePackages, updates: true}
	webRootfs   = rootfs{variant: "minbase", packages: []string{"nginx-light", "ca-certificates"}, updates: true}
	smallRootfs = rootfs{variant: "extract", packages: []string{"busybox-static", "base-files", "netbase", "tzdata"}}
)

// release returns the name of the suite.
func (r *rootfs) release() string { return cmp.Or(r.suite, "bookworm") }

// sources returns the apt sources, on the mirror of the host.
func (r *rootfs) sources() []string {
	main, security := testhost.Mirrors()
	lines := []string{"deb " + main + " " + r.release() + " main"}
	if r.updates {
		lines = append(lines, "deb "+main+" "+r.release()+"-updates main", "deb "+security+" "+r.release()+"-security main")
	}
	return lines
}

// make returns the directory with the root file system's tar. It runs mmdebstrap unless the cache has the tar.
func (r *rootfs) make(ctx context.Context, log io.Writer) (string, error) {
	args := []string{
		"--mode=root", "--variant=" + r.variant, "--format=tar", "--include=" + strings.Join(r.packages, ","),
		`--aptopt=Acquire::Languages "none"`, `--aptopt=APT::Install-Recommends "false"`, "--dpkgopt=force-unsafe-io",
	}
	args = slices.Concat(args, r.args, []string{r.release(), "-"}, r.sources())
	return testhost.Cached("rootfs", testhost.Key(args...), func(dir string) error {
		fmt.Fprintf(log, "+ mmdebstrap %s\n", strings.Join(args, " "))
		f, err := os.Create(filepath.Join(dir, rootfsTar))
		if err != nil {
			return err
		}
		defer f.Close()
		enc, err := zstd.NewWriter(f, zstd.WithEncoderLevel(zstd.SpeedFastest))
		if err != nil {
			return err
		}
		cmd := exec.CommandContext(ctx, "mmdebstrap", args...)
		cmd.Env = append(os.Environ(), "INITRD=No") // keeps the kernel's package from building an initramfs
		cmd.Stdout, cmd.Stderr = enc, log
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("run mmdebstrap: %w", err)
		}
		if err := enc.Close(); err != nil {
			return err
		}
		return f.Close()
	})
}
