// Package buildah derives images with a real buildah, that of Debian 14, in namespaces of its own and without a network.
package buildah

import (
	"context"
	_ "embed"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/images"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/testhost"
)

//go:embed derive.sh
var derive string

// Rootfs returns the directory with buildah and its dependencies. It is made by mmdebstrap unless the cache has it.
func Rootfs(ctx context.Context, log io.Writer) (string, error) {
	packages := testhost.Extract{Release: "forky", Packages: []string{"buildah", "netavark"}, Expired: true}
	return testhost.Cached("buildah", packages.Key(), func(dir string) error { return packages.Make(ctx, log, dir) })
}

// A Derived image has one layer more than its base.
type Derived struct {
	*images.Image
	Root string // a copy of what "buildah mount" shows, without times of directories
}

// Derive writes an image that differs from its base by what a shell script does. The script runs in the root directory that
// "buildah mount" shows, on the host. driver is a storage driver: with vfs, a write changes a file under all its names, with
// overlay only under the one that is written to. dir must be empty.
func Derive(ctx context.Context, log io.Writer, dir string, base *images.Image, driver, script string) (*Derived, error) {
	root, err := Rootfs(ctx, log)
	if err != nil {
		return nil, err
	}
	layout := filepath.Join(base.Blob(base.Descriptor.Digest), "../../..")
	cmd := exec.CommandContext(ctx, "unshare", "--mount", "--net", "--propagation", "private",
		"sh", "-euc", derive, "sh", root, layout, dir, driver, script)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("derive an image with buildah: %w", err)
	}
	img, err := images.Open(filepath.Join(dir, "out"))
	if err != nil {
		return nil, err
	}
	return &Derived{img, filepath.Join(dir, "mounted")}, nil
}
