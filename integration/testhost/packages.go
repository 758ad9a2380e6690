package testhost

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// A Package is a Debian package, with a program, or the path of a file, that shows that it is installed.
type Package struct{ Name, Program string }

func (p Package) installed() bool {
	if filepath.IsAbs(p.Program) {
		_, err := os.Stat(p.Program)
		return err == nil
	}
	_, ok := testenv.LookTool(p.Program)
	return ok
}

// Packages are the Debian packages that the tests need on the host.
var Packages = slices.Concat(compiler, []Package{
	{"mmdebstrap", "mmdebstrap"},                // the test images
	{"gpg", "gpg"},                              // signs images
	{"gpg-agent", "gpg-agent"},                  // has the keys
	{"ostree", "ostree"},                        // checks our repository
	{"runc", "runc"},                            // runs the containers
	{"isal", "igzip"},                           // containerd's gzip if it is there; ours is compared with it
	{"erofs-utils", "mkfs.erofs"},               // checks our EROFS images
	{"e2fsprogs", "mkfs.ext4"},                  // the full-disk test
	{"mount", "losetup"},                        // the same
	{"xfsprogs", "mkfs.xfs"},                    // checkouts by reflink
	{"btrfs-progs", "mkfs.btrfs"},               // the same
	{"python3", "python3"},                      // runs the second writer of composefs images
	{"attr", "getfattr"},                        // for a person who investigates a failed test
	{"fdisk", "sfdisk"},                         // partitions
	{"dosfstools", "mkfs.vfat"},                 // the EFI system partition
	{"mtools", "mcopy"},                         // the same
	{"qemu-system-x86", "qemu-system-x86_64"},   // boots deployments
	{"ovmf", "/usr/share/OVMF/OVMF_CODE_4M.fd"}, // its firmware
	{"chromium", "chromium"},                    // shows the page of a benchmark
	// The boot loader for disks whose OS has none.
	{"systemd-boot-efi", "/usr/lib/systemd/boot/efi/systemd-bootx64.efi"},
})

// compiler makes a library for tests of SELinux labels, and is needed by the race detector.
var compiler = []Package{{"gcc", "gcc"}, {"libc6-dev", "/usr/include/stdlib.h"}}

// InstallPackages installs missing packages of Packages. If nothing is missing it changes nothing, and needs neither
// network nor root.
func InstallPackages(ctx context.Context, log io.Writer) error { return install(ctx, log, Packages) }

// InstallCompiler installs a C compiler in the same way.
func InstallCompiler(ctx context.Context, log io.Writer) error { return install(ctx, log, compiler) }

func install(ctx context.Context, log io.Writer, packages []Package) error {
	var names []string
	for _, p := range packages {
		if !p.installed() {
			names = append(names, p.Name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("install %s: needs root; run: apt-get install %s", strings.Join(names, ", "), strings.Join(names, " "))
	}
	return apt(ctx, log, append([]string{"install", "--yes", "--no-install-recommends"}, names...)...)
}

// apt updates the package lists, then runs apt-get with the given arguments.
func apt(ctx context.Context, log io.Writer, args ...string) error {
	for _, args := range [][]string{{"update", "--quiet"}, append([]string{"--quiet"}, args...)} {
		cmd := exec.CommandContext(ctx, "apt-get", args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8")
		if err := run(cmd, log); err != nil {
			return err
		}
	}
	return nil
}

// Registry returns the path of Debian's docker-registry: the host's if it is installed, or else one unpacked into the
// cache, because installing the package would start a service.
func Registry(ctx context.Context, log io.Writer) (string, error) {
	const name = "docker-registry"
	if p, ok := testenv.LookTool(name); ok {
		return p, nil
	}
	dir, err := Cached("bin-registry", Key("bookworm", "1"), func(dir string) error {
		update := exec.CommandContext(ctx, "apt-get", "update", "--quiet")
		if err := run(update, log); err != nil {
			return err
		}
		get := exec.CommandContext(ctx, "apt-get", "download", name)
		get.Dir = dir
		if err := run(get, log); err != nil {
			return err
		}
		deb, err := OneFile(filepath.Join(dir, "*.deb"))
		if err != nil {
			return fmt.Errorf("download %s: %w", name, err)
		}
		if err := run(exec.CommandContext(ctx, "dpkg-deb", "--extract", deb, dir), log); err != nil {
			return err
		}
		return os.Remove(deb)
	})
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "usr/bin", name), nil
}

// run runs a command with its output on log. Its error names the command.
func run(cmd *exec.Cmd, log io.Writer) error {
	fmt.Fprintf(log, "+ %s\n", strings.Join(cmd.Args, " "))
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("run %s: %w", strings.Join(cmd.Args, " "), err)
	}
	return nil
}
