package integration

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/images"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/stack"
)

// layered are the images with more than one layer.
var layered = []string{"app:1", "layers:1", "layers:zstd", "layers:tar", "layers:docker", "odd:1"}

// TestPull pulls every test image with containerd's transfer service, and compares the files of its containers with
// those of overlayfs. Images with several layers are pulled layer by layer, and with all layers unpacked at the same
// time. With checkouts that are not the default, it leaves out images that differ from others only in the format of
// their layers.
func TestPull(t *testing.T) {
	for _, mode := range []struct {
		name    string
		unpacks int
		refs    []string
	}{
		{"sequential", 1, images.Names()},
		{"parallel", 3, layered},
	} {
		for _, ref := range mode.refs {
			if os.Getenv(checkoutVariable) != "" && images.SameContent(ref) != ref {
				continue // the default checkouts were tested with all formats of layers, which give the same objects
			}
			t.Run(mode.name+"/"+ref, func(t *testing.T) {
				e := start(t, func(o *stack.Options) { o.ParallelUnpacks = mode.unpacks })
				full := e.pull(defaultNS, ref)
				e.compare(ref, e.view(defaultNS, full))
				if got := e.run(defaultNS, full, "/bin/sh", "-c", "echo $((40+2))"); strings.TrimSpace(got) != "42" {
					t.Errorf("the container printed %q, want 42", got)
				}
			})
		}
	}
}

// TestPullLocal pulls with the unpacker of the client, which gives the snapshotter no labels.
func TestPullLocal(t *testing.T) {
	e := start(t, nil)
	for _, ref := range []string{"layers:1", "odd:1"} {
		full := e.pull(defaultNS, ref, "--local")
		e.compare(ref, e.view(defaultNS, full))
	}
}

// TestCanonicalMtime pulls with modification times that need not be kept. Everything else must be the same.
func TestCanonicalMtime(t *testing.T) {
	e := start(t, func(o *stack.Options) { o.Config = "mtime = \"canonical\"\n" })
	full := e.pull(defaultNS, "odd:1")
	want, options := reference(t, "odd:1")
	got := e.view(defaultNS, full)
	for path, g := range got {
		if w := want[path]; w != nil {
			if w.Mtime != g.Mtime && g.SHA256 == "" && !slices.Contains(options.IgnoreMtime, path) {
				t.Errorf("%q: the time of something that is not a regular file changed", path)
			}
			g.Mtime = w.Mtime
		}
	}
	for _, line := range diffTrees(want, got, options) {
		t.Error(line)
	}
}
