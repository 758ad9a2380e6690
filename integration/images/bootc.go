package images

import (
	"archive/tar"
	"context"
	"io"
	"path"
	"path/filepath"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// bootcLayers is the number of layers with the packages of [Bootc].
const bootcLayers = 6

// Bootc writes an operating system of the same packages as OSBase, in the form of images for bootc that a Containerfile or
// chunkah makes: an ordinary image of several layers, without data of ostree, labelled for bootc, with the directories of
// a Debian system where Debian has them. It configures kernel arguments and its installation.
func Bootc(ctx context.Context, log io.Writer, dir string) (*Image, error) {
	return writeBootc(ctx, log, dir, &osRootfs, bootcEdit)
}

// writeBootc writes an image of this form: a root file system in several layers, and one above.
func writeBootc(ctx context.Context, log io.Writer, dir string, r *rootfs, top func(*layerWriter)) (*Image, error) {
	rootfs, err := r.make(ctx, log)
	if err != nil {
		return nil, err
	}
	w, err := newLayoutWriter(dir, osMedia)
	if err != nil {
		return nil, err
	}
	tarball := filepath.Join(rootfs, rootfsTar)
	s, err := newSplitter(tarball, bootcLayers)
	if err != nil {
		return nil, err
	}
	for i := range bootcLayers {
		in := s.keep(i)
		if err := w.addLayer(func(l *layerWriter) {
			l.copyRootfs(tarball, func(h *tar.Header) bool { return bootcKeep(h) && in(h) })
		}); err != nil {
			return nil, err
		}
	}
	if err := w.addLayer(top); err != nil {
		return nil, err
	}
	if err := w.finish([]string{"/sbin/init"}, bootcLabels("1")); err != nil {
		return nil, err
	}
	return Open(w.dir)
}

func bootcLabels(version string) map[string]string {
	return map[string]string{"containers.bootc": "1", "ostree.bootable": "1", ocispec.AnnotationVersion: version}
}

// bootcKeep reports whether the image has a file of the root file system. In contrast to osKeep, /var, /boot and
// directories such as /root are Debian's.
func bootcKeep(h *tar.Header) bool {
	name := path.Clean(h.Name)
	return !slices.Contains(osReplaced, name) && !slices.ContainsFunc([]string{"dev", "proc", "run", "sys", "tmp"}, func(dir string) bool {
		return strings.HasPrefix(name, dir+"/")
	})
}

func bootcEdit(l *layerWriter) {
	bootcDirs(l)
	l.file("./usr/lib/bootc/kargs.d/10-console.toml", "kargs = [\"console=ttyS0\"]\n")
	l.file("./usr/lib/bootc/install/00-example.toml",
		"[install]\nkargs = [\"panic=1\"]\nstateroot = \"example\"\n[install.filesystem.root]\ntype = \"xfs\"\n[install.bootupd]\nskip-boot-uuid = true\n")
}

// bootcDirs adds what the root file system lacks to become a deployment, and an application in /opt.
func bootcDirs(l *layerWriter) {
	l.dir("./efi")
	l.dir("./sysroot")
	l.symlink("./ostree", "sysroot/ostree")
	l.file("./etc/machine-id", "")
	l.file("./etc/fstab", "")
	l.file("./etc/hostname", "") // left by the builder
	l.dir("./opt/app")
	l.file("./opt/app/program", "#!/bin/sh\necho app\n", mode(0o755))
}
