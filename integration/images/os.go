package images

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// OSBase is the reference of the common base of the OS images: Debian bookworm with a kernel, systemd, systemd-boot and
// ostree, laid out like any image that becomes a deployment. Names does not return it.
const OSBase = "os-base:1"

// A File is a file of the OS images that is not part of Debian.
type File struct {
	Name   string // relative to the root
	Mode   int64
	Data   string // content,
	Source string // or path of a file with the content,
	Target string // or target of a symbolic link
}

// OS writes three versions of an operating system as OCI layouts below a directory, and returns them by reference. They
// have OSBase's layer, and a small one with the files.
//
//	os:1         version 1
//	os:2         version 2: os:1, and a layer that changes, adds and deletes defaults in /etc/example, and changes /usr
//	os:broken    version 3: os:2, and a layer whose init ends at once
func OS(ctx context.Context, log io.Writer, dir string, files []File) (map[string]*Image, error) {
	return writeOS(ctx, log, dir, OSBase, []osVersion{
		{"os:1", "1", func(l *layerWriter) { osFirst(l, files) }},
		{"os:2", "2", osSecond},
		{"os:broken", "3", osBroken},
	})
}

// An osVersion is an OS image with one layer more than the version before it.
type osVersion struct {
	ref, version string
	layer        func(*layerWriter)
}

// writeOS writes versions of an operating system on a base image as OCI layouts below a directory.
func writeOS(ctx context.Context, log io.Writer, dir, baseRef string, versions []osVersion) (map[string]*Image, error) {
	base, err := Layout(ctx, log, baseRef)
	if err != nil {
		return nil, err
	}
	return writeVersions(dir, base, versions, func(version string) map[string]string {
		return map[string]string{ocispec.AnnotationVersion: version}
	})
}

// writeVersions writes versions of an operating system, with the labels of each, on the image of a layout.
func writeVersions(dir, base string, versions []osVersion, labels func(version string) map[string]string) (map[string]*Image, error) {
	images := make(map[string]*Image)
	for _, v := range versions {
		w, err := newLayoutWriter(filepath.Join(dir, strings.ReplaceAll(v.ref, ":", "-")), osMedia)
		if err != nil {
			return nil, err
		}
		if err := w.addLayersOf(base, os.Symlink); err != nil { // the cache may be on another file system
			return nil, err
		}
		if err := w.addLayer(v.layer); err != nil {
			return nil, fmt.Errorf("make image %s: %w", v.ref, err)
		}
		if err := w.finish([]string{"/sbin/init"}, labels(v.version)); err != nil {
			return nil, fmt.Errorf("make image %s: %w", v.ref, err)
		}
		if images[v.ref], err = Open(w.dir); err != nil {
			return nil, err
		}
		base = w.dir
	}
	return images, nil
}

// osMedia is the media that costs an emulated processor the least time.
const osMedia = ociTar

func osFirst(l *layerWriter, files []File) {
	l.dir("etc/example")
	l.file("etc/example/changed.conf", "default of version 1\n")
	l.file("etc/example/edited.conf", "default of version 1\n")
	l.file("etc/example/gone.conf", "default of version 1\n")
	l.file("usr/lib/example-version", "1\n")
	for _, f := range files {
		switch {
		case f.Target != "":
			l.symlink(f.Name, f.Target)
		case f.Source != "":
			l.fileFrom(f.Name, f.Source, mode(f.Mode))
		default:
			l.file(f.Name, f.Data, mode(f.Mode))
		}
	}
}

func osSecond(l *layerWriter) {
	l.file("etc/example/changed.conf", "default of version 2\n", later(time.Hour))
	l.file("etc/example/edited.conf", "default of version 2\n", later(time.Hour))
	l.file("etc/example/new.conf", "default of version 2\n")
	l.whiteout("etc/example/gone.conf")
	l.file("usr/lib/example-version", "2\n", later(time.Hour))
}

// osBroken replaces systemd, which the initramfs starts by this name. The kernel panics when the first process exits.
func osBroken(l *layerWriter) {
	l.file("usr/lib/example-version", "3\n", later(2*time.Hour))
	l.file("usr/lib/systemd/systemd", "#!/bin/sh\necho 'this init is broken' >/dev/console\nexit 1\n", mode(0o755), later(2*time.Hour))
}

var osPackages = []string{
	"systemd", "systemd-sysv", "systemd-boot", "udev", "kmod", "dracut", "zstd", "ostree", "ostree-boot", "linux-image-cloud-amd64",
	"e2fsprogs", "util-linux", "mount", "passwd", "login", "usr-is-merged",
}

// These packages contain what an ostree deployment needs to boot, from systemd-boot on.
var (
	osRootfs  = rootfs{variant: "essential", packages: osPackages, args: osArgs(osExcludes)}
	os2Rootfs = rootfs{variant: "essential", packages: osPackages, args: osArgs(osExcludes), updates: true}
)

// osExcludes are files of packages that a virtual machine does not need. Patterns that begin with + are kept.
var osExcludes = []string{
	"/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/i18n/*", "/usr/share/lintian/*",
	"/usr/share/bash-completion/*", "/usr/share/zsh/*", "/usr/share/bug/*", "/usr/share/polkit-1/*", "/usr/lib/x86_64-linux-gnu/gconv/*",
	"/usr/lib/udev/hwdb.d/*", "/lib/udev/hwdb.d/*", "/boot/System.map*",
	"/lib/modules/*/kernel/drivers/*", "/lib/modules/*/kernel/sound/*", "/lib/modules/*/kernel/net/*", "/lib/modules/*/kernel/fs/*",
	"/lib/modules/*/kernel/arch/x86/kvm/*", "/lib/modules/*/kernel/arch/x86/events/*",
	"/lib/modules/*/kernel/crypto/*", "/lib/modules/*/kernel/arch/x86/crypto/*", "+/lib/modules/*/kernel/arch/x86/crypto/crc32c-intel.ko",
	"+/lib/modules/*/kernel/drivers/block/loop.ko", "+/lib/modules/*/kernel/drivers/block/virtio_blk.ko",
	"+/lib/modules/*/kernel/drivers/firmware/qemu_fw_cfg.ko", "+/lib/modules/*/kernel/drivers/virtio/*",
	"+/lib/modules/*/kernel/drivers/net/virtio_net.ko", "+/lib/modules/*/kernel/drivers/net/net_failover.ko",
	"+/lib/modules/*/kernel/net/core/failover.ko", "+/lib/modules/*/kernel/net/packet/*", "+/lib/modules/*/kernel/net/ipv6/ipv6.ko",
	"+/lib/modules/*/kernel/fs/ext4/*", "+/lib/modules/*/kernel/fs/jbd2/*", "+/lib/modules/*/kernel/fs/mbcache.ko",
	"+/lib/modules/*/kernel/fs/fat/*", "+/lib/modules/*/kernel/fs/nls/nls_ascii.ko", "+/lib/modules/*/kernel/fs/nls/nls_cp437.ko",
	"+/lib/modules/*/kernel/fs/nls/nls_iso8859-1.ko", "+/lib/modules/*/kernel/fs/nls/nls_utf8.ko", "+/lib/modules/*/kernel/fs/efivarfs/*",
	"+/lib/modules/*/kernel/fs/overlayfs/*", "+/lib/modules/*/kernel/fs/erofs/*", "+/lib/modules/*/kernel/fs/fuse/fuse.ko",
	"+/lib/modules/*/kernel/fs/autofs/*", "+/lib/modules/*/kernel/fs/configfs/*",
}

// osInitramfs builds the initramfs and puts the kernel beside it, where an ostree deployment has them. dracut must run
// before /root is a dangling link.
const osInitramfs = `chroot "$1" sh -euc '
k=$(ls /usr/lib/modules)
mv "/boot/vmlinuz-$k" "/usr/lib/modules/$k/vmlinuz"
dracut --quiet --force --no-hostonly --no-hostonly-cmdline --zstd --reproducible --add "ostree systemd" \
  --add-drivers "virtio_pci virtio_blk ext4 overlay erofs loop" \
  --omit "multipath dmraid mdraid lvm crypt crypt-gpg crypt-loop dm btrfs iscsi nfs nbd cifs fcoe fcoe-uefi network network-legacy network-manager url-lib plymouth i18n lunmask qemu-net resume bluetooth rngd biosdevname memstrack nvmf pcsc tpm2-tss kernel-network-modules hwdb squash usrmount modsign lvmmerge dmsquash-live livenet virtiofs overlay-root nvdimm terminfo kernel-modules-extra" \
  "/usr/lib/modules/$k/initramfs.img" "$k"'`

// osArgs returns arguments of mmdebstrap that leave out files and build the initramfs.
func osArgs(excludes []string) []string {
	args := []string{"--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr"} // without the package usrmerge, which needs all of Perl
	for _, pattern := range excludes {
		if include, ok := strings.CutPrefix(pattern, "+"); ok {
			args = append(args, "--dpkgopt=path-include="+include)
			continue
		}
		args = append(args, "--dpkgopt=path-exclude="+pattern)
	}
	return append(args, "--customize-hook="+osInitramfs)
}

// osLinks are the directories of a Debian system that a deployment has in /var, or that are created at each boot.
var osLinks = map[string]string{
	"home": "var/home", "root": "var/roothome", "opt": "var/opt", "srv": "var/srv", "mnt": "var/mnt", "media": "run/media",
	"usr/local": "../var/usrlocal", "ostree": "sysroot/ostree",
}

// osEmpty are directories whose content from Debian is left out.
var osEmpty = []string{"boot", "dev", "proc", "run", "sys", "tmp", "var"}

// osReplaced are files that osEdit replaces or that are left out.
var osReplaced = []string{
	"etc/fstab", "etc/hostname", "etc/machine-id", "etc/resolv.conf", "vmlinuz", "vmlinuz.old", "initrd.img", "initrd.img.old",
}

// osKeep reports whether an OS image has a file of the root file system.
func osKeep(h *tar.Header) bool {
	name := path.Clean(h.Name)
	if slices.Contains(osReplaced, name) {
		return false
	}
	for _, dir := range slices.AppendSeq(slices.Clone(osEmpty), maps.Keys(osLinks)) {
		if name == dir || strings.HasPrefix(name, dir+"/") {
			return false
		}
	}
	return true
}

// osMasked are units that a virtual machine does not need. A getty would hang up a serial line that others write to.
var osMasked = []string{
	"getty.target", "getty-static.service", "getty@tty1.service", "serial-getty@ttyS0.service", "systemd-firstboot.service",
	"systemd-timesyncd.service", "systemd-hwdb-update.service", "dpkg-db-backup.timer", "e2scrub_all.timer",
	"e2scrub_reap.service", "fstrim.timer", "apt-daily.timer", "apt-daily-upgrade.timer",
}

// osEdit adds what the root file system lacks to become a deployment.
func osEdit(l *layerWriter) {
	for _, dir := range osEmpty {
		l.dir("./" + dir)
	}
	l.dir("./efi") // systemd looks for the ESP here if /boot is in use otherwise
	l.dir("./sysroot")
	var tmpfiles strings.Builder
	for _, name := range slices.Sorted(maps.Keys(osLinks)) {
		l.symlink("./"+name, osLinks[name])
		if dir, ok := strings.CutPrefix(strings.TrimPrefix(osLinks[name], "../"), "var/"); ok {
			fmt.Fprintf(&tmpfiles, "d /var/%s 0755 root root -\n", dir)
		}
	}
	l.file("./usr/lib/tmpfiles.d/example-layout.conf", tmpfiles.String()+"d /run/media 0755 root root -\n")
	osUnits(l)
	l.file("./etc/machine-id", "") // do not keep the builder's
	l.file("./etc/fstab", "")
	l.file("./etc/hostname", "example\n")
}

// osUnits chooses the units that a virtual machine starts.
func osUnits(l *layerWriter) {
	for _, unit := range osMasked {
		l.symlink("./etc/systemd/system/"+unit, "/dev/null")
	}
	l.symlink("./etc/systemd/system/default.target", "/usr/lib/systemd/system/multi-user.target")
	// The root of a deployment is read-only, so /tmp is a file system in memory.
	l.symlink("./usr/lib/systemd/system/local-fs.target.wants/tmp.mount", "/usr/share/systemd/tmp.mount")
}
