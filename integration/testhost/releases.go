package testhost

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// wrapper runs a program with its own dynamic loader and libraries, because the host's are older. It finds them by its
// own path, because entries of the cache are renamed.
const wrapper = `#!/bin/sh
root=${0%%/*}/root
exec "$root/%s" --inhibit-cache --library-path "$root/%s" "$root/%s" "$@"
`

// ErofsUtils returns a directory for PATH that contains only the mkfs.erofs of Debian 13, erofs-utils 1.8.6.
// containerd's erofs differ needs 1.8.2; Debian 12 has 1.5. It is made by mmdebstrap unless the cache has it.
func ErofsUtils(ctx context.Context, log io.Writer) (string, error) {
	return program(ctx, log, Extract{Release: "trixie", Packages: []string{"erofs-utils"}}, "usr/*bin/mkfs.erofs")
}

// Mkcomposefs returns a directory for PATH that contains only the mkcomposefs of Debian 14, the first release with one.
// It is made by mmdebstrap unless the cache has it.
func Mkcomposefs(ctx context.Context, log io.Writer) (string, error) {
	return program(ctx, log, Extract{Release: "forky", Packages: []string{"composefs"}, Expired: true}, "usr/*bin/mkcomposefs")
}

// Docker returns a directory for PATH with dockerd, docker and docker-buildx, which are those of Debian 14: the first release
// of Debian whose Docker keeps images in containerd. It is made by mmdebstrap unless the cache has it.
func Docker(ctx context.Context, log io.Writer) (string, error) {
	packages := Extract{Release: "forky", Packages: []string{"docker.io", "docker-cli", "docker-buildx"}, Expired: true}
	return program(ctx, log, packages, "usr/sbin/dockerd", "usr/bin/docker", "usr/libexec/docker/cli-plugins/docker-buildx")
}

// Kernel returns the root directory of the packages of Debian 13's kernel for virtual machines and of a static busybox.
// It is made by mmdebstrap unless the cache has it.
func Kernel(ctx context.Context, log io.Writer) (string, error) {
	packages := Extract{Release: "trixie", Packages: []string{"linux-image-cloud-amd64", "busybox-static"}}
	return Cached("kernel", packages.Key(), func(dir string) error { return packages.Make(ctx, log, dir) })
}

// Signers returns a directory for PATH with the skopeo, podman and cosign of Debian 14. It is made by mmdebstrap unless the
// cache has it.
func Signers(ctx context.Context, log io.Writer) (string, error) {
	packages := Extract{Release: "forky", Packages: []string{"skopeo", "podman", "cosign"}, Expired: true}
	return program(ctx, log, packages, "usr/bin/skopeo", "usr/bin/podman", "usr/bin/cosign")
}

// Cosign2 returns a directory for PATH with the cosign of Debian 13, the last release whose cosign signs without bundles
// by default. It is made by mmdebstrap unless the cache has it.
func Cosign2(ctx context.Context, log io.Writer) (string, error) {
	return program(ctx, log, Extract{Release: "trixie", Packages: []string{"cosign"}}, "usr/bin/cosign")
}

// program returns a directory that contains programs from packages of another release. Their files match the patterns.
func program(ctx context.Context, log io.Writer, packages Extract, patterns ...string) (string, error) {
	inputs := []string{wrapper}
	for _, p := range patterns {
		inputs = append(inputs, filepath.Base(p))
	}
	return Cached(packages.Packages[0], packages.Key(inputs...), func(dir string) error {
		root := filepath.Join(dir, "root")
		if err := packages.Make(ctx, log, root); err != nil {
			return err
		}
		loader, err := relFile(root, "usr/lib/*-linux-*/ld-linux*.so.*")
		if err != nil {
			return fmt.Errorf("find the dynamic loader: %w", err)
		}
		for _, p := range patterns {
			binary, err := relFile(root, p)
			if err != nil {
				return err
			}
			script := fmt.Sprintf(wrapper, loader, filepath.Dir(loader), binary)
			if err := os.WriteFile(filepath.Join(dir, filepath.Base(p)), []byte(script), 0o755); err != nil {
				return err
			}
		}
		return nil
	})
}

// relFile returns the path below root of the only file that matches a pattern there.
func relFile(root, pattern string) (string, error) {
	name, err := OneFile(filepath.Join(root, pattern))
	if err != nil {
		return "", err
	}
	return filepath.Rel(root, name)
}
