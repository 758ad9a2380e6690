package tenants

import (
	"archive/tar"
	"os"
	"path/filepath"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/images"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/tree"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/snaptest"
)

// A hostile is an image that attacks who unpacks it, or who runs beside it. It may be refused.
type hostile struct {
	name        string
	entries     []tar.Header      // of a layer over the common one
	annotations map[string]string // of that layer
	claims      *ocispec.Image    // the configuration, if it is not that of the layers
	disks       []string          // devices in the image
}

// outside is the directory on the host that hostile images lead to.
func (w *world) outside() string { return filepath.Join(w.public, "outside") }

func symlink(name, target string) tar.Header {
	return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}
}

func device(typ byte, name string, dev uint64) tar.Header {
	return tar.Header{
		Typeflag: typ, Name: name, Mode: 0o666, Devmajor: int64(unix.Major(dev)), Devminor: int64(unix.Minor(dev)),
	}
}

func hostileImages(w *world) []hostile {
	up := strings.Repeat("../", 16)
	outside := w.outside()
	canary := filepath.Join(outside, "canary")
	object := w.object(secrets["etc/secret"])
	stolen := func(prefix string) tar.Header {
		return xattr(xattr(file("etc/stolen", "", 0o644, 0), prefix+"redirect", "/"+object), prefix+"metacopy", "")
	}
	private := configOf(commonLayer(w.t), privateLayer(w.t))
	files := func(names ...string) (headers []tar.Header) {
		for _, name := range names {
			headers = append(headers, file(name, written, 0o666, 0))
		}
		return headers
	}
	through := func(parent tar.Header, names ...string) []tar.Header {
		return append([]tar.Header{parent}, files(names...)...)
	}
	list := []hostile{
		{name: "dot dot", entries: files(up+outside+"/planted", "etc/"+up+outside+"/planted", "./../planted")},
		{name: "absolute", entries: files(outside+"/planted", canary, "//"+outside+"//planted")},
		{name: "through an absolute link", entries: through(symlink("out", outside), "out/planted", "out/canary")},
		{name: "through a relative link", entries: through(symlink("out", up+outside), "out/planted", "out/canary")},
		{name: "directory becomes a link", entries: append([]tar.Header{dir("d", 0o755, 0)},
			through(symlink("d", outside), "d/planted", "d/canary")...)},
		{name: "root becomes a link", entries: append([]tar.Header{symlink(".", outside)},
			through(symlink("./", outside), "planted", "canary")...)},
		{name: "hard link outside", entries: []tar.Header{snaptest.Link("etc/stolen", canary)}},
		{name: "hard link up", entries: []tar.Header{snaptest.Link("etc/stolen", up+canary)}},
		{name: "hard link through a link", entries: []tar.Header{
			symlink("out", outside), snaptest.Link("etc/stolen", "out/canary"),
		}},
		{name: "hard link to the object", entries: []tar.Header{
			snaptest.Link("etc/stolen", filepath.Join(w.repo, "objects", object)),
		}},
		{name: "whiteouts of parents", entries: files(".wh..", "etc/.wh..", "srv/../../.wh.etc", "etc/"+up+outside+"/.wh.canary")},
		{name: "whiteout without a name", entries: files(".wh.")},
		{name: "whiteouts through a link", entries: through(symlink("out", outside), "out/.wh.canary", "out/.wh..wh..opq")},
		{name: "devices", disks: []string{"/disk", "/memory"}, entries: []tar.Header{
			device(tar.TypeBlock, "disk", w.disk()), device(tar.TypeChar, "memory", unix.Mkdev(1, 1)),
			device(tar.TypeChar, "etc/passwd", 0),
		}},
		{name: "set-user-ID of host users", entries: []tar.Header{
			file("home/user/suid", "#!/bin/sh\n", 0o6777, user), file("home/user/nobody", "#!/bin/sh\n", 0o6777, nobody),
			dir("home/user/open", 0o777, user),
		}},
		{name: "capability", entries: []tar.Header{
			xattr(file("srv/all", "#!/bin/sh\n", 0o777, 0), "security.capability", "\x01\x00\x00\x02"+strings.Repeat("\xff", 16)),
		}},
		{name: "control characters", entries: files("srv/a\x1b[31m\nfsck: clean", "srv/\u202egnp.exe", "srv/\x7f\x01")},
		{name: "diff IDs of another image", claims: &private, entries: files("srv/mine")},
		{name: "annotations", entries: files("srv/mine"), annotations: map[string]string{
			"containerd.io/snapshot.ref":                private.RootFS.DiffIDs[1].String(),
			"containerd.io/snapshot/ostree.layer":       "../../../" + outside,
			"containerd.io/snapshot/ostree.checkout":    "../../../" + outside,
			"containerd.io/snapshot/ostree.chain-id":    private.RootFS.DiffIDs[1].String(),
			"containerd.io/snapshot/ostree.blob":        private.RootFS.DiffIDs[1].String(),
			"containerd.io/snapshot/diff-id":            private.RootFS.DiffIDs[1].String(),
			"containerd.io/snapshot/parent-chain-id":    private.RootFS.DiffIDs[0].String(),
			"containerd.io/snapshot/uidmapping":         "0:0:4294967295",
			"containerd.io/snapshot/gidmapping":         "0:0:4294967295",
			"containerd.io/snapshot/cri.layer-digest":   private.RootFS.DiffIDs[1].String(),
			"containerd.io/snapshot/remote/stargz.hint": outside,
		}},
	}
	for _, prefix := range overlayPrefixes {
		opaque := dir("srv", 0o755, 0)
		opaque.PAXRecords = map[string]string{}
		list = append(list, hostile{name: prefix, entries: []tar.Header{
			stolen(prefix), xattr(opaque, prefix+"opaque", "y"), xattr(file("etc/passwd", "", 0, 0), prefix+"whiteout", ""),
		}})
	}
	return list
}

// hostileImage unpacks an image. Whether it is refused or not, nothing outside the store changes, and the image shows
// nothing of Alice's.
func hostileImage(w *world, h hostile) {
	w.must(os.MkdirAll(w.outside(), 0o755))
	canary := filepath.Join(w.outside(), "canary")
	w.must(os.WriteFile(canary, []byte(secrets["etc/secret"]), 0o600))
	before, err := tree.Read(w.t.Context(), w.outside())
	w.must(err)

	name := "example.org/mallory/hostile:" + sum(h.name)
	base, layer := commonLayer(w.t), snaptest.Tar(w.t, h.entries...)
	config := configOf(base, layer)
	if h.claims != nil {
		config = *h.claims
	}
	err = w.addConfigured(mallory, name, config,
		images.Layer{MediaType: ocispec.MediaTypeImageLayer, Blob: base},
		images.Layer{MediaType: ocispec.MediaTypeImageLayer, Blob: layer, Annotations: h.annotations})
	w.t.Logf("unpacking: %v", err)

	after, rerr := tree.Read(w.t.Context(), w.outside())
	w.must(rerr)
	for _, line := range tree.Diff(before, after, tree.Options{ExactLinks: true}) {
		w.t.Errorf("outside the store: %s", line)
	}
	if err != nil {
		return
	}
	id, err := w.ChainID(w.t.Context(), mallory, name)
	w.must(err)
	files, err := w.ReadActive(w.t.Context(), mallory, id)
	w.must(err)
	if got := leaked(files); len(got) > 0 {
		w.t.Errorf("the image shows secrets in %q", got)
	}
	if len(h.disks) > 0 {
		w.contained(w.attack(mallory, name, "hostile", nil, "", Order{Search: []string{"/"}, Disks: h.disks}), 0)
	}
}
