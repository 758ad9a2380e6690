package compat

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"runtime"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/images"
)

// The images. The first is an application, the others are versions of an operating system. Only tests pull the third.
const (
	appImage = "example.org/compat/app:1"
	os1Image = "example.org/compat/os:1"
	os2Image = "example.org/compat/os:2"
	os3Image = "example.org/compat/os:3"
)

// A file is an entry of a layer. The zero value of its fields stands for a regular file of root with mode 0644.
type file struct {
	name     string // a directory if it ends in a slash
	content  string
	mode     int64
	uid, gid int
	mtime    time.Duration // after epoch
	link     string        // a hard link to this name
	target   string        // of a symbolic link
	device   byte          // tar.TypeChar, tar.TypeBlock or tar.TypeFifo
	major    int64
	minor    int64
	xattrs   map[string]string
}

var epoch = time.Date(2024, 2, 29, 12, 30, 15, 123456789, time.UTC)

var layers = map[string][]file{
	"base": {
		{name: "./"},
		{name: "bin/"},
		{name: "bin/sh", content: strings.Repeat("a shell\n", 300), mode: 0o755},
		{name: "bin/ash", link: "bin/sh"},
		{name: "etc/"},
		{name: "etc/empty"},
		{name: "etc/passwd", content: "root:x:0:0:root:/root:/bin/sh\n"},
	},
	"odd": {
		{name: "odd/", mtime: time.Hour},
		{name: "odd/setuid", content: "#!/bin/sh\n", mode: 0o4755},
		{name: "odd/none", content: "secret\n", mode: 0o001},
		{name: "odd/owned", content: "of others\n", uid: 1234, gid: 5678},
		{name: "odd/large-ids", content: "of users above 65535\n", uid: 165536, gid: 4000000000},
		{name: "odd/sticky/", mode: 0o1777},
		{name: "odd/capability", content: "#!/bin/sh\n", mode: 0o755, xattrs: map[string]string{
			"security.capability": "\x01\x00\x00\x02\x00\x24\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
		}},
		{name: "odd/xattrs", content: "with attributes\n", xattrs: map[string]string{"user.one": "1", "user.binary": "\x00\x01\xff"}},
		{name: "odd/char", device: tar.TypeChar, major: 1, minor: 3, mode: 0o666},
		{name: "odd/block", device: tar.TypeBlock, major: 7, minor: 70000, mode: 0o660, gid: 6},
		{name: "odd/fifo", device: tar.TypeFifo, mode: 0o620},
		{name: "odd/link", target: "owned", uid: 100000},
		{name: "odd/dangling", target: "/no/such/file"},
		{name: "odd/same-a", content: strings.Repeat("equal\n", 500)},
		{name: "odd/same-b", content: strings.Repeat("equal\n", 500)},
		{name: "odd/same-later", content: strings.Repeat("equal\n", 500), mtime: time.Minute},
		{name: "odd/linked-a", content: "one file, three names\n", mode: 0o604},
		{name: "odd/linked-b", link: "odd/linked-a"},
		{name: "odd/sticky/linked-c", link: "odd/linked-a"},
		{name: "odd/latin1-\xe9", content: "a name that is not UTF-8\n"},
		{name: "odd/" + strings.Repeat("n", 255), content: "the longest name\n"},
		{name: "odd/deleted", content: "gone\n"},
		{name: "odd/opaque/"},
		{name: "odd/opaque/below", content: "hidden\n"},
		{name: "odd/replaced/"},
		{name: "odd/replaced/inside", content: "gone\n"},
	},
	"changes": {
		{name: "odd/", mtime: 2 * time.Hour},
		{name: "odd/.wh.deleted"},
		{name: "odd/opaque/", mode: 0o750, uid: 7, gid: 8},
		{name: "odd/opaque/.wh..wh..opq"},
		{name: "odd/opaque/new", content: "only this is left\n"},
		{name: "odd/replaced", content: "a file now\n"},
		{name: "odd/owned", content: "of others\n", uid: 1, gid: 2},
	},
	"os": {
		{name: "./"},
		{name: "boot/"},
		{name: "dev/"},
		{name: "etc/"},
		{name: "proc/"},
		{name: "run/"},
		{name: "sys/"},
		{name: "sysroot/"},
		{name: "tmp/", mode: 0o1777},
		{name: "usr/"},
		{name: "var/"},
		{name: "ostree", target: "sysroot/ostree"},
		{name: "etc/app.conf", content: "default of 1\n"},
		{name: "usr/bin/"},
		{name: "usr/bin/sh", content: strings.Repeat("a shell\n", 300), mode: 0o755},
		{name: "usr/lib/"},
		{name: "usr/lib/os-release", content: "ID=compat\nNAME=Compat\n"},
		{name: "usr/lib/bootc/"},
		{name: "usr/lib/bootc/kargs.d/"},
		{name: "usr/lib/bootc/kargs.d/10.toml", content: "kargs = [\"quiet\"]\n"},
		{name: "usr/lib/modules/"},
		{name: "usr/lib/modules/6.1.0/"},
		{name: "usr/lib/modules/6.1.0/vmlinuz", content: strings.Repeat("kernel\n", 600)},
		{name: "usr/lib/modules/6.1.0/initramfs.img", content: strings.Repeat("initramfs\n", 600)},
	},
	"os-2": {
		{name: "etc/app.conf", content: "default of 2\n"},
		{name: "etc/new.conf", content: "new in 2\n"},
		{name: "usr/lib/bootc/kargs.d/10.toml", content: "kargs = [\"quiet\", \"loglevel=3\"]\n"},
	},
	"os-3": {
		{name: "etc/new.conf", content: "changed in 3\n"},
		{name: "usr/share/"},
		{name: "usr/share/three", content: "version 3\n"},
	},
}

var imageLayers = map[string][]string{
	appImage: {"base", "odd", "changes"},
	os1Image: {"os"},
	os2Image: {"os", "os-2"},
	os3Image: {"os", "os-2", "os-3"},
}

// imageArchive returns an image as an OCI archive.
func imageArchive(name string) ([]byte, error) {
	_, version, _ := strings.Cut(name, ":")
	config := ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH},
		Config:   ocispec.ImageConfig{Labels: map[string]string{ocispec.AnnotationVersion: version}},
		RootFS:   ocispec.RootFS{Type: "layers"},
	}
	var blobs []images.Layer
	for _, name := range imageLayers[name] {
		plain, compressed, err := layerTar(layers[name])
		if err != nil {
			return nil, fmt.Errorf("make layer %s: %w", name, err)
		}
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(plain))
		blobs = append(blobs, images.Layer{MediaType: ocispec.MediaTypeImageLayerGzip, Blob: compressed})
	}
	return images.Archive(name, config, blobs...)
}

// diffIDs returns the digests of an image's layers, lowest first.
func diffIDs(name string) (ids []digest.Digest, err error) {
	for _, name := range imageLayers[name] {
		plain, _, err := layerTar(layers[name])
		if err != nil {
			return nil, fmt.Errorf("make layer %s: %w", name, err)
		}
		ids = append(ids, digest.FromBytes(plain))
	}
	return ids, nil
}

// layerTar returns the tar of a layer, and the same compressed.
func layerTar(files []file) (plain, compressed []byte, err error) {
	var b, z bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := f.header(files)
		if err := w.WriteHeader(h); err != nil {
			return nil, nil, err
		}
		if h.Size > 0 {
			if _, err := io.WriteString(w, f.content); err != nil {
				return nil, nil, err
			}
		}
	}
	if err := w.Close(); err != nil {
		return nil, nil, err
	}
	gz := gzip.NewWriter(&z)
	if _, err := gz.Write(b.Bytes()); err != nil {
		return nil, nil, err
	}
	err = gz.Close()
	return b.Bytes(), z.Bytes(), err
}

// header returns the header of an entry; files are those of its layer.
func (f file) header(files []file) *tar.Header {
	h := &tar.Header{
		Typeflag: tar.TypeReg, Name: f.name, Mode: f.mode, Uid: f.uid, Gid: f.gid, ModTime: epoch.Add(f.mtime),
		Devmajor: f.major, Devminor: f.minor, Format: tar.FormatPAX,
	}
	mode := int64(0o644)
	switch {
	case f.link != "":
		h.Typeflag, h.Linkname = tar.TypeLink, f.link
		for _, other := range files { // like tar, repeat the attributes of the file
			if other.name == f.link {
				h.Mode, h.Uid, h.Gid = other.mode, other.uid, other.gid
			}
		}
	case f.target != "":
		h.Typeflag, h.Linkname, mode = tar.TypeSymlink, f.target, 0o777
	case f.device != 0:
		h.Typeflag, mode = f.device, 0o600
	case strings.HasSuffix(f.name, "/"):
		h.Typeflag, mode = tar.TypeDir, 0o755
	default:
		h.Size = int64(len(f.content))
	}
	if h.Mode == 0 {
		h.Mode = mode
	}
	for name, value := range f.xattrs {
		if h.PAXRecords == nil {
			h.PAXRecords = make(map[string]string)
		}
		h.PAXRecords["SCHILY.xattr."+name] = value
	}
	return h
}
