package images

import (
	"context"
	"io"
	"slices"
)

// ComposefsBase is the reference of the common base of the OS images that boot on composefs: what OSBase has, of Debian
// forky, whose ostree has composefs, and a configuration that demands it. Names does not return it.
const ComposefsBase = "os-composefs-base:1"

// Composefs writes an operating system that boots on composefs as an OCI layout below a directory, and returns it by its
// reference, composefs:1. It has ComposefsBase's layer, and a small one with the files.
func Composefs(ctx context.Context, log io.Writer, dir string, files []File) (map[string]*Image, error) {
	return writeOS(ctx, log, dir, ComposefsBase, []osVersion{{"composefs:1", "1", func(l *layerWriter) { osFirst(l, files) }}})
}

var composefsRootfs = rootfs{
	suite: "forky", variant: "essential", packages: osPackages,
	args: slices.Concat(
		[]string{`--aptopt=Acquire::Check-Valid-Until "false"`, "--customize-hook=" + composefsConfig},
		osArgs(composefsExcludes()),
	),
}

// composefsConfig configures ostree-prepare-root, in the tree and, since it comes before the initramfs is built, there. It
// also moves the kernel to where osInitramfs expects it: forky has it, and its files, in both places as hard links.
const composefsConfig = `set -eu
mkdir -p "$1/usr/lib/ostree"
printf '[composefs]\nenabled = yes\n' >"$1/usr/lib/ostree/prepare-root.conf"
k=$(ls "$1/usr/lib/modules")
cp "$1/usr/lib/modules/$k/vmlinuz" "$1/vmlinuz.new"
rm "$1/usr/lib/modules/$k/vmlinuz" "$1"/boot/*-"$k"
mv "$1/vmlinuz.new" "$1/boot/vmlinuz-$k"`

// composefsExcludes returns what of packages a virtual machine does not need. erofs needs the module netfs.
func composefsExcludes() []string {
	return append(selinuxExcludes(), "+/usr/lib/modules/*/kernel/fs/netfs/*")
}
