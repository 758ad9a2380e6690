package boot

import (
	"path/filepath"
	"slices"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/encapsulate"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/images"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/stack"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/testhost"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/vm"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// TestBootNative installs and boots an ostree-native image: a whole Debian system in 65 layers, as ostree-ext writes them,
// and an ordinary layer on top.
func TestBootNative(t *testing.T) {
	testenv.SkipShort(t, "needs qemu and minutes")
	testenv.NeedsRoot(t)
	testenv.NeedsOverlay(t)
	testenv.NeedsLoop(t)
	vm.Needs(t)
	dir := t.TempDir()
	tools, err := testhost.BuildTools(t.Context(), t.Output())
	testenv.Must(t, err)
	binary, err := testhost.BuildBinary(t.Context(), dir)
	testenv.Must(t, err)
	registry, err := stack.StartRegistry(t.Context(), tools)
	testenv.Must(t, err)
	t.Cleanup(func() { testenv.Must(t, registry.Stop()) })

	base, err := encapsulate.OS(t.Context(), t.Output())
	testenv.Must(t, err)
	ordinary, err := images.OS(t.Context(), t.Output(), dir, guestFiles(t, tools, binary))
	testenv.Must(t, err)
	first := ordinary["os:1"]
	top := first.Manifest.Layers[len(first.Manifest.Layers)-1]
	img, err := encapsulate.Derive(filepath.Join(dir, "native"), base, encapsulate.Blob(first.Blob(top.Digest)))
	testenv.Must(t, err)
	testenv.Must(t, img.Push(t.Context(), registry.Address, "os:1"))
	disk := filepath.Join(dir, "disk.img")
	install(t, stack.Options{
		Tools: tools, Snapshotter: stack.Ostree, Binary: binary, Registry: registry.Address, ParallelUnpacks: 3,
	}, registry.Address+"/os:1", disk)
	machine, err := vm.New(disk, t.ArtifactDir(), t.Output())
	testenv.Must(t, err)

	b := &bed{machine: machine}
	const ref = `$(ostree refs --repo=/sysroot/ostree/repo --list ostree/container/image)`
	booted := b.boot(t, vm.Run{Name: "native", Commands: slices.Concat(look, []vm.Command{
		{Name: "inside", Line: "ostree rev-parse --repo=/sysroot/ostree/repo " + ref + "^"},
	})})
	booted.wantVersion("1")
	booted.wantDeployments(want{image: "os:1", booted: true})
	booted.wantMounts()
	if got, want := booted.output("inside"), base.Config.Config.Labels["ostree.commit"]; got != want {
		t.Errorf("the parent of the booted commit is %s, want %s: the commit inside the image", got, want)
	}
}
