// Package images makes the images of the integration tests, from Debian packages and from hand-made layers.
//
//	tiny:1         a static busybox, for tests that only need a container
//	pause:1        the same, its command does nothing: the sandbox of a pod
//	base:1         Debian bookworm with Python, Perl and Git as first released: one layer of 340 MB, 16,000 entries
//	base:2         the same packages with all updates: what an image rebuild a few months later gives
//	base:1-split   the files of base:1 in ten layers
//	base:1-zstd    base:1, its layer compressed with zstd
//	app:1          an application on base:1: two small layers
//	layers:1       layers that delete and replace what lower layers hold, in every way a layer can
//	layers:zstd, layers:tar, layers:docker    the same layers in other media types
//	policy-bookworm:1, policy-forky:1    essential packages and the SELinux policy of these releases of Debian
//	policy-trixie:local                  the same of trixie, with local changes and home directories
//	odd:1          everything a file can be: capabilities, links, devices, long names, sparse files
//	os-base:1      Debian with a kernel, systemd, systemd-boot and ostree, of which OS makes os:1, os:2 and os:broken
//	os-selinux-base:1    the same of Debian trixie, with SELinux, of which SELinux makes selinux:1, selinux:2 and selinux:3
//
// and for workloads of benchmarks:
//
//	app:2          the application of app:1 on base:2
//	small:1, small:8    an application on base:1 in one small layer, and in eight
//	web:1          Debian with nginx and all updates
//	os-base:1-gzip, os-base:2-gzip    os-base:1 compressed, and the same packages with all updates
//
// Each is an OCI layout in the cache of package testhost, with the hash of its recipe as key.
package images

import (
	"archive/tar"
	"context"
	"embed"
	"errors"
	"fmt"
	"go/parser"
	"go/printer"
	"go/token"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/testhost"
)

// A media is the compression and media type of layers.
type media int

const (
	ociGzip media = iota
	ociZstd
	ociTar
	dockerGzip
)

// A recipe describes an image.
type recipe struct {
	base   string                 // reference of the image with the lowest layers
	rootfs *rootfs                // then one layer of packages
	keep   func(*tar.Header) bool // selects the entries to copy; nil: all
	split  int                    // number of layers to split everything into; 0: one
	edit   func(*layerWriter)     // adds to that layer
	layers []func(*layerWriter)
	media  media
	cmd    []string
	extra  bool // not in Names
}

var recipes = map[string]recipe{
	"tiny:1":        {rootfs: &smallRootfs, edit: addBusybox, cmd: []string{"/bin/sh"}},
	"pause:1":       {rootfs: &smallRootfs, edit: addBusybox, cmd: []string{"/bin/sleep", "1000000"}},
	"base:1":        {rootfs: &base1Rootfs, cmd: []string{"/usr/bin/python3"}},
	"base:2":        {rootfs: &base2Rootfs, cmd: []string{"/usr/bin/python3"}},
	"base:1-zstd":   {rootfs: &base1Rootfs, cmd: []string{"/usr/bin/python3"}, media: ociZstd},
	"app:1":         {base: "base:1", layers: appLayers, cmd: []string{"/usr/bin/python3", "/srv/app/main.py"}},
	"layers:1":      {rootfs: &smallRootfs, edit: addBusybox, layers: changeLayers, cmd: []string{"/bin/sh"}},
	"layers:zstd":   {rootfs: &smallRootfs, edit: addBusybox, layers: changeLayers, cmd: []string{"/bin/sh"}, media: ociZstd},
	"layers:tar":    {rootfs: &smallRootfs, edit: addBusybox, layers: changeLayers, cmd: []string{"/bin/sh"}, media: ociTar},
	"layers:docker": {rootfs: &smallRootfs, edit: addBusybox, layers: changeLayers, cmd: []string{"/bin/sh"}, media: dockerGzip},
	OSBase:          {rootfs: &osRootfs, keep: osKeep, edit: osEdit, cmd: []string{"/sbin/init"}, media: osMedia, extra: true},
	SELinuxBase:     {rootfs: &selinuxRootfs, keep: osKeep, edit: selinuxEdit, cmd: []string{"/sbin/init"}, media: osMedia, extra: true},
	"odd:1":         {rootfs: &smallRootfs, edit: addBusybox, layers: oddLayers, cmd: []string{"/bin/sh"}},

	PolicyBookworm: {rootfs: policyRootfs("bookworm", nil), cmd: []string{"/bin/sh"}, extra: true},
	PolicyForky:    {rootfs: policyRootfs("forky", nil), cmd: []string{"/bin/sh"}, extra: true},
	PolicyLocal: {
		rootfs: policyRootfs("trixie", []string{"policycoreutils-python-utils"}, "--customize-hook="+localPolicy),
		cmd:    []string{"/bin/sh"}, extra: true,
	},

	"app:2":          {base: "base:2", layers: appLayers, cmd: []string{"/usr/bin/python3", "/srv/app/main.py"}, extra: true},
	"small:1":        {base: "base:1", layers: smallLayers(1), cmd: []string{"/usr/bin/python3"}, extra: true},
	"small:8":        {base: "base:1", layers: smallLayers(8), cmd: []string{"/usr/bin/python3"}, extra: true},
	"base:1-split":   {rootfs: &base1Rootfs, split: 10, cmd: []string{"/usr/bin/python3"}, extra: true},
	"web:1":          {rootfs: &webRootfs, cmd: []string{"/usr/sbin/nginx", "-g", "daemon off;"}, extra: true},
	"os-base:1-gzip": {rootfs: &osRootfs, keep: osKeep, edit: osEdit, cmd: []string{"/sbin/init"}, extra: true},
	"os-base:2-gzip": {rootfs: &os2Rootfs, keep: osKeep, edit: osEdit, cmd: []string{"/sbin/init"}, extra: true},
}

// Names returns the references of the images that every pull test uses, sorted. The others would add nothing there.
func Names() []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(recipes)), func(ref string) bool { return recipes[ref].extra })
}

// SameContent returns the image with the same layers, uncompressed, in gzip; often the image itself.
func SameContent(ref string) string {
	switch {
	case strings.HasPrefix(ref, "layers:"):
		return "layers:1"
	case ref == "base:1-zstd":
		return "base:1"
	case ref == "pause:1":
		return "tiny:1"
	default:
		return ref
	}
}

//go:embed *.go
var sources embed.FS

// key returns the hash of an image's recipe: of the source of this package without its comments, and of the packages.
func (r recipe) key(ref string) (string, error) {
	inputs := []string{ref}
	entries, err := sources.ReadDir(".")
	if err != nil {
		return "", err
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), "_test.go") || slices.Contains([]string{"bootc.go", "composefs.go", "link.go", "push.go"}, e.Name()) {
			continue
		}
		b, err := sources.ReadFile(e.Name())
		if err != nil {
			return "", err
		}
		code, err := withoutComments(b)
		if err != nil {
			return "", err
		}
		inputs = append(inputs, e.Name(), code)
	}
	return testhost.Key(inputs...), nil
}

// withoutComments returns Go source without comments, which do not change an image.
func withoutComments(source []byte) (string, error) {
	var b strings.Builder
	files := token.NewFileSet()
	f, err := parser.ParseFile(files, "", source, parser.SkipObjectResolution)
	if err == nil {
		err = printer.Fprint(&b, token.NewFileSet(), f)
	}
	return b.String(), err
}

// Layout returns the directory of an image's OCI layout. It makes the image unless the cache has it.
func Layout(ctx context.Context, log io.Writer, ref string) (string, error) {
	r, ok := recipes[ref]
	if !ok {
		return "", fmt.Errorf("make image %s: no such test image", ref)
	}
	key, err := r.key(ref)
	if err != nil {
		return "", fmt.Errorf("make image %s: %w", ref, err)
	}
	dir, err := testhost.Cached("images", key, func(dir string) error { return r.write(ctx, log, dir) })
	if err != nil {
		return "", fmt.Errorf("make image %s: %w", ref, err)
	}
	return dir, nil
}

// write writes the image as an OCI layout into an empty directory.
func (r recipe) write(ctx context.Context, log io.Writer, dir string) error {
	w, err := newLayoutWriter(dir, r.media)
	if err != nil {
		return err
	}
	if r.base != "" {
		base, err := Layout(ctx, log, r.base)
		if err != nil {
			return err
		}
		if err := w.addLayersOf(base, os.Link); err != nil { // the cache may remove the base image
			return err
		}
	}
	if r.rootfs != nil {
		tarball, err := r.rootfs.make(ctx, log)
		if err != nil {
			return err
		}
		tarball = filepath.Join(tarball, rootfsTar)
		if r.split > 0 {
			err = w.addSplit(tarball, r.split)
		} else {
			err = w.addLayer(func(l *layerWriter) {
				l.copyRootfs(tarball, r.keep)
				if r.edit != nil {
					r.edit(l)
				}
			})
		}
		if err != nil {
			return err
		}
	}
	for i, layer := range r.layers {
		if err := w.addLayer(layer); err != nil {
			return fmt.Errorf("write layer %d: %w", i, err)
		}
	}
	return w.finish(r.cmd, nil)
}

// errEmpty is returned for a layout without a manifest.
var errEmpty = errors.New("the layout has no manifest")
