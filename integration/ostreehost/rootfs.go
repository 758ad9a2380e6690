package ostreehost

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/testhost"
)

// A Release is a Debian release, by its name in the archive.
type Release string

// The releases, with their ostree.
const (
	Bookworm Release = "bookworm" // ostree 2022.7
	Trixie   Release = "trixie"   // ostree 2025.2
)

// Releases are those whose ostree judges us.
var Releases = []Release{Bookworm, Trixie}

// mergeUsr makes the links that the package usrmerge would: packages are only unpacked, and a deployed tree, over which
// usr is mounted, has them too.
const mergeUsr = `for d in bin sbin lib lib64; do mkdir -p "$1/usr/$d"; ln -s "usr/$d" "$1/$d"; done`

// Rootfs returns the directory with the release's ostree and ostree-boot, unpacked and never configured, and what they
// need to run. It is made by mmdebstrap unless the cache has it.
func Rootfs(ctx context.Context, log io.Writer, r Release) (string, error) {
	args := []string{
		"--mode=root", "--variant=extract", "--format=directory", "--include=ostree,ostree-boot",
		`--aptopt=Acquire::Languages "none"`, `--aptopt=APT::Install-Recommends "false"`, "--setup-hook=" + mergeUsr,
	}
	archive, _ := testhost.Mirrors()
	source := "deb " + archive + " " + string(r) + " main"
	key := testhost.Key(append(args, source)...)
	return testhost.Cached("ostree-host", key, func(dir string) error {
		args := append(args, string(r), dir, source)
		fmt.Fprintf(log, "+ mmdebstrap %q\n", args)
		cmd := exec.CommandContext(ctx, "mmdebstrap", args...)
		cmd.Stdout, cmd.Stderr = log, log
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("run mmdebstrap: %w", err)
		}
		// Half of the size is documentation, and device nodes are the running system's.
		for _, name := range []string{"usr/share", "dev", "var"} {
			if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
				return err
			}
		}
		return nil
	})
}
