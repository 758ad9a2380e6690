package integration

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/stack"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/tree"
)

// TestImageVolume mounts an image in a pod as a volume, with each kind of checkouts. All containers of the pod see the files of the
// image, after its removal too, and none can write. docs/configuration.md has the reason for the option volatile.
func TestImageVolume(t *testing.T) {
	for checkout, volatile := range map[string]bool{"composefs": false, "hardlink": true} {
		t.Run(checkout, func(t *testing.T) {
			e := start(t, func(o *stack.Options) {
				o.Config, o.SandboxImage = fmt.Sprintf("checkout = %q\n", checkout), push(t, "pause:1")
			})
			app, volume := push(t, "tiny:1"), push(t, "layers:1")
			e.crictl("pull", app)
			e.crictl("pull", volume)
			p := e.startPod()
			mounted := map[string]any{"container_path": "/volume", "readonly": true, "image": map[string]any{"image": volume}}
			first, second := p.start(app, mounted), p.start(app, mounted)
			target := e.imageVolume()
			info, err := mount.Lookup(target)
			e.must(err)
			options := strings.Split(info.VFSOptions, ",")
			t.Logf("mounted with %s; %s", info.Options, info.VFSOptions)
			isSet := slices.Contains(options, "volatile") || slices.Contains(options, "fsync=volatile")
			if info.FSType != "overlay" || isSet != volatile {
				t.Errorf("the volume is %s with %q, want an overlay, and the option volatile to be %t", info.FSType, options, volatile)
			}
			for _, image := range []string{volume, app} {
				e.crictl("rmi", image)
			}
			got, err := tree.Read(t.Context(), target)
			e.must(err)
			e.compare("layers:1", got)
			for _, id := range []string{first, second} {
				out := p.exec(id, "/bin/sh", "-c",
					"cat /volume/data/kept; touch /volume/data/kept 2>&1; touch /volume/new 2>&1; grep ' /volume ' /proc/self/mountinfo")
				if !strings.HasPrefix(out, "content of data/kept\n") || strings.Count(out, "Read-only file system") != 2 || !strings.Contains(out, " /volume ro,") {
					t.Errorf("the container sees the volume as %q", out)
				}
			}
			p.remove()
			if names, err := filepath.Glob(filepath.Dir(target)); err != nil || len(names) > 0 {
				t.Errorf("the pod has left %q, %v", names, err)
			}
			e.crictl("rmi", push(t, "pause:1"))
			e.empty()
		})
	}
}

// imageVolume returns the path where containerd has mounted the only image volume.
func (e *env) imageVolume() string {
	e.t.Helper()
	names, err := filepath.Glob(filepath.Join(e.Dir, "state/*/image-volumes/*/*"))
	e.must(err)
	if len(names) != 1 {
		e.t.Fatalf("got the image volumes %q, want one", names)
	}
	return names[0]
}
