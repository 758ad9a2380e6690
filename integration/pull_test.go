package integration

import (
	"slices"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/images"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/stack"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// layered are the images with more than one layer, except app:1, whose layers TestConcurrentPulls and TestRepair unpack at
// the same time.
var layered = []string{"layers:1", "layers:zstd", "layers:tar", "layers:docker", "odd:1"}

// pulledStores are the images that TestPull pulls layer by layer into one store, in this order: each begins with the layers
// of the one before it. TestUpdateSharesFiles and TestRepair pull base:2.
var pulledStores = [][]string{
	{"base:1", "app:1"}, {"base:1-zstd"}, {"tiny:1", "pause:1"}, {"layers:1"}, {"layers:zstd"}, {"layers:tar"}, {"layers:docker"}, {"odd:1"},
}

// TestPull pulls the test images with containerd's transfer service, and compares the files of their containers with those
// of overlayfs. Images with several layers are pulled layer by layer, and with all layers unpacked at the same time. With
// checkouts that are not the default, it leaves out images that differ from others only in the format of their layers.
func TestPull(t *testing.T) {
	pull := func(mode string, unpacks int, refs ...string) {
		if testenv.Checkout() != "" {
			// The default checkouts were tested with all formats of layers, which give the same objects.
			refs = slices.DeleteFunc(slices.Clone(refs), func(ref string) bool { return images.SameContent(ref) != ref })
		}
		if len(refs) == 0 {
			return
		}
		t.Run(mode+"/"+strings.Join(refs, ","), func(t *testing.T) {
			e := start(t, func(o *stack.Options) { o.ParallelUnpacks = unpacks })
			for _, ref := range refs {
				full := e.pull(defaultNS, ref)
				e.compare(ref, e.view(defaultNS, full))
				if got := e.run(defaultNS, full, "/bin/sh", "-c", "echo $((40+2))"); strings.TrimSpace(got) != "42" {
					t.Errorf("the container of %s printed %q, want 42", ref, got)
				}
			}
			if refs[0] == "base:1" { // an image of real size
				e.sameDigests(refs...)
			}
		})
	}
	for _, refs := range pulledStores {
		pull("sequential", 1, refs...)
	}
	for _, ref := range layered {
		pull("parallel", 3, ref)
	}
}

// TestPulledImages keeps the list of TestPull whole.
func TestPulledImages(t *testing.T) {
	pulled := append(slices.Concat(pulledStores...), "base:2")
	slices.Sort(pulled)
	if want := images.Names(); !slices.Equal(pulled, want) {
		t.Errorf("TestPull pulls %q, want %q", pulled, want)
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
