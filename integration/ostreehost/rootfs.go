package ostreehost

import (
	"context"
	"io"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/testhost"
)

// A Release is a Debian release, by its name in the archive.
type Release string

// The releases, with their ostree.
const (
	Bookworm Release = "bookworm" // ostree 2022.7
	Trixie   Release = "trixie"   // ostree 2025.2
	Forky    Release = "forky"    // ostree 2026.4 or later, with composefs
)

// Releases are the releases whose ostree checks all our results.
var Releases = []Release{Bookworm, Trixie, Forky}

// Rootfs returns the directory with the release's ostree and ostree-boot, and their dependencies. It is made by
// mmdebstrap unless the cache has it.
func Rootfs(ctx context.Context, log io.Writer, r Release) (string, error) {
	packages := testhost.Extract{Release: string(r), Packages: []string{"ostree", "ostree-boot"}, Expired: r == Forky}
	return testhost.Cached("ostree-host", packages.Key(), func(dir string) error { return packages.Make(ctx, log, dir) })
}
