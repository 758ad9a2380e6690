package testhost

import (
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
)

// LibselinuxReleases are Debian releases, each with another version of libselinux: 3.4, 3.8.1 and 3.11.
var LibselinuxReleases = []string{"bookworm", "trixie", "forky"}

// Matchpathcon returns a directory for PATH that contains only the matchpathcon of a Debian release. It is made by
// mmdebstrap unless the cache has it.
func Matchpathcon(ctx context.Context, log io.Writer, release string) (string, error) {
	return program(ctx, log, Extract{Release: release, Packages: []string{"selinux-utils"}, Expired: release == "forky"}, "matchpathcon")
}

// SELinuxPolicy returns a directory with Debian 13's default policy in etc/selinux, built by the package's own scripts. It
// is made by mmdebstrap unless the cache has it.
func SELinuxPolicy(ctx context.Context, log io.Writer) (string, error) {
	const release, policy = "trixie", "etc/selinux"
	archive, _ := Mirrors()
	options := []string{
		"--mode=root", "--variant=minbase", "--format=directory", "--include=selinux-policy-default",
		`--aptopt=Acquire::Languages "none"`, `--aptopt=APT::Install-Recommends "false"`,
	}
	source := "deb " + archive + " " + release + " main"
	return Cached("selinux-policy", Key(append(options, source)...), func(dir string) error {
		root := filepath.Join(dir, "root")
		if err := run(exec.CommandContext(ctx, "mmdebstrap", append(options, release, root, source)...), log); err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(policy)), 0o755); err != nil {
			return err
		}
		if err := os.Rename(filepath.Join(root, policy), filepath.Join(dir, policy)); err != nil {
			return err
		}
		return os.RemoveAll(root)
	})
}
