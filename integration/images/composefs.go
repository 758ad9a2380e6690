package images

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Composefs writes two versions of an operating system that boots on composefs as OCI layouts below a directory, and
// returns them by reference. They have the form of [Bootc], the packages of OSBase in Debian forky, whose ostree has
// composefs, and the files.
//
//	composefs:1    version 1: a configuration that demands composefs
//	composefs:2    version 2: composefs:1, and a layer that changes what os:2 changes, and demands fs-verity
func Composefs(ctx context.Context, log io.Writer, dir string, files []File) (map[string]*Image, error) {
	name, initramfs, err := composefsInitramfs(ctx, log)
	if err != nil {
		return nil, err
	}
	base, err := writeBootc(ctx, log, filepath.Join(dir, "composefs-base"), &composefsRootfs, func(l *layerWriter) {
		bootcDirs(l)
		osUnits(l)
	})
	if err != nil {
		return nil, err
	}
	return writeVersions(dir, base.dir, []osVersion{
		{"composefs:1", "1", func(l *layerWriter) {
			osFirst(l, files)
			l.file("usr/lib/bootc/install/00-example.toml",
				"[install]\nkargs = [\"systemd.hostname=installed\"]\nstateroot = \"example\"\n[install.filesystem.root]\ntype = \"ext4\"\n")
		}},
		{"composefs:2", "2", func(l *layerWriter) {
			osSecond(l)
			const config = "[composefs]\nenabled = verity\n"
			l.file(composefsFile, config, later(time.Hour))
			l.file(name, withFile(initramfs, composefsFile, config), later(time.Hour))
			for _, name := range Exchanged {
				l.file(name, strings.Repeat("as "+path.Base(name)+" was made\n", 1000))
			}
		}},
	}, bootcLabels)
}

// ComposefsRootfs makes the root file system of [Composefs] unless the cache has it.
func ComposefsRootfs(ctx context.Context, log io.Writer) error {
	_, err := composefsRootfs.make(ctx, log)
	return err
}

// Exchanged are files of composefs:2 that a test may exchange. No other file has their content.
var Exchanged = []string{"usr/lib/example/same", "usr/lib/example/other", "usr/lib/example/sealed", "usr/lib/example/damaged", "usr/lib/example/whole"}

// composefsFile configures ostree-prepare-root.
const composefsFile = "usr/lib/ostree/prepare-root.conf"

// composefsInitramfs returns the initramfs, and its name in the tree.
func composefsInitramfs(ctx context.Context, log io.Writer) (name, initramfs string, err error) {
	dir, err := composefsRootfs.make(ctx, log)
	if err != nil {
		return "", "", err
	}
	err = eachEntry(filepath.Join(dir, rootfsTar), func(h *tar.Header, content io.Reader) error {
		if path.Base(h.Name) != "initramfs.img" {
			return nil
		}
		data, err := io.ReadAll(content)
		name, initramfs = path.Clean(h.Name), string(data)
		return err
	})
	if err == nil && name == "" {
		err = errors.New("the root file system of forky has no initramfs")
	}
	return name, initramfs, err
}

// withFile returns an initramfs with one more file, which replaces an older one of its name: the kernel unpacks one archive
// after the other (Documentation/driver-api/early-userspace/buffer-format.rst).
func withFile(initramfs, name, content string) string {
	var b strings.Builder
	pad := func() { b.WriteString(strings.Repeat("\x00", -b.Len()&3)) }
	entry := func(mode int, name, content string) {
		const ino, nlink = 1, 1
		fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", ino, mode, 0, 0, nlink, 0, len(content), 0, 0, 0, 0, len(name)+1, 0)
		b.WriteString(name + "\x00")
		pad()
		b.WriteString(content)
		pad()
	}
	b.WriteString(initramfs)
	pad()
	entry(0o100644, name, content)
	entry(0, "TRAILER!!!", "")
	return b.String()
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
