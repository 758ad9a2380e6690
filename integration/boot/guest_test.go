package boot

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/images"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/stack"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/testhost"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/vm"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/process"
)

// diskSize is the size of the disk. It has room for two deployments, the blobs of an image, and its layers in the
// guest's store.
const diskSize = "3GiB"

// A bed is a machine with an image on its disk, and a registry with the other images.
type bed struct {
	machine  *vm.Machine
	registry string // its address in the guest
	host     string // its address on the host, which is part of the name that was installed
	images   map[string]*images.Image
}

// A maker makes the images of a bed below a directory, with the given files.
type maker func(ctx context.Context, log io.Writer, dir string, files []images.File) (map[string]*images.Image, error)

// newBed makes a bed of images. It pushes them, and pulls and installs one.
func newBed(t *testing.T, makeImages maker, first string) *bed {
	t.Helper()
	dir := t.TempDir()
	tools, err := testhost.BuildTools(t.Context(), t.Output())
	if err != nil {
		t.Fatal(err)
	}
	binary, err := testhost.BuildBinary(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	registry, err := stack.StartRegistry(t.Context(), tools)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := registry.Stop(); err != nil {
			t.Error(err)
		}
	})
	systems, err := makeImages(t.Context(), t.Output(), dir, guestFiles(t, tools, binary))
	if err != nil {
		t.Fatal(err)
	}
	for ref, img := range systems {
		if err := img.Push(t.Context(), registry.Address, ref); err != nil {
			t.Fatal(err)
		}
	}
	disk := filepath.Join(dir, "disk.img")
	install(t, stack.Options{Tools: tools, Snapshotter: stack.Ostree, Binary: binary, Registry: registry.Address}, registry.Address+"/"+first, disk)
	machine, err := vm.New(disk, t.ArtifactDir(), t.Output())
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := strings.Cut(registry.Address, ":")
	return &bed{machine: machine, registry: vm.Host + ":" + port, host: registry.Address, images: systems}
}

// install pulls an image with a containerd of its own and installs it on a new disk.
func install(t *testing.T, opts stack.Options, image, disk string) {
	t.Helper()
	s, err := stack.Start(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if t.Failed() {
			t.Logf("the last of the daemon's log:\n%s", process.Tail(s.DaemonLog(), 40))
		}
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	}()
	if err := s.Pull(t.Context(), "default", image); err != nil {
		t.Fatal(err)
	}
	args := []string{"install", "--root", s.Root, "--address", s.Containerd, "--size", diskSize, image, disk}
	out, err := s.Run(t.Context(), opts.Binary, args...)
	t.Logf("ostree-snapshotter %s\n%s", strings.Join(args, " "), out)
	if err != nil {
		t.Fatal(err)
	}
}

// pull returns the commands that pull an image in the guest.
func (b *bed) pull(image string) []vm.Command {
	return []vm.Command{
		{Name: "network", Line: "/usr/lib/systemd/systemd-networkd-wait-online --timeout=60"},
		{Name: "pull", Line: "ctr images pull --plain-http --snapshotter ostree " + b.registry + "/" + image + " >/dev/null"},
	}
}

// deploy returns the commands that deploy an image in the guest.
func (b *bed) deploy(image string, flags ...string) []vm.Command {
	return []vm.Command{
		{Name: "deploy", Line: strings.Join(append([]string{"ostree-snapshotter", "deploy"}, append(flags, b.registry+"/"+image)...), " ")},
	}
}

// boot boots the machine once. The test ends if the guest cannot run all commands.
func (b *bed) boot(t *testing.T, run vm.Run) *bootCheck {
	t.Helper()
	r, err := b.machine.Boot(t.Context(), run)
	if r != nil {
		t.Cleanup(func() {
			if t.Failed() {
				t.Logf("%s", r)
			}
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	return &bootCheck{Report: r, t: t, name: run.Name}
}

// guestUnits is the directory of an image's units.
const guestUnits = "usr/lib/systemd/system/"

// guestFiles returns the files of the OS images: the script that runs the commands, containerd, our program, and the
// units and configuration of both.
func guestFiles(t *testing.T, tools *testhost.Tools, binary string) []images.File {
	t.Helper()
	files := append(vm.GuestFiles(),
		images.File{Name: "usr/bin/containerd", Mode: 0o755, Source: tools.Containerd},
		images.File{Name: "usr/bin/ctr", Mode: 0o755, Source: tools.Ctr},
		images.File{Name: "usr/bin/ostree-snapshotter", Mode: 0o755, Source: binary},
		images.File{Name: "etc/containerd/config.toml", Mode: 0o644, Source: "testdata/containerd.toml"},
		images.File{Name: "etc/ostree-snapshotter/config.toml", Mode: 0o644, Source: "testdata/ostree-snapshotter.toml"},
		images.File{Name: "etc/systemd/network/20-dhcp.network", Mode: 0o644, Source: "testdata/20-dhcp.network"},
		images.File{Name: "usr/lib/bootc/kargs.d/10-console.toml", Mode: 0o644, Source: "testdata/10-console.toml"},
		images.File{Name: guestUnits + "containerd.service", Mode: 0o644, Source: "testdata/containerd.service"},
		images.File{Name: guestUnits + "ostree-snapshotter.service", Mode: 0o644, Data: daemonUnit(t)},
	)
	for _, unit := range []string{"containerd.service", "ostree-snapshotter.service", "systemd-networkd.service"} {
		files = append(files, wanted(unit))
	}
	return append(files, deployUnits(t)...)
}

// wanted returns the link that starts a unit at boot.
func wanted(unit string) images.File {
	return images.File{Name: "etc/systemd/system/multi-user.target.wants/" + unit, Target: "/" + guestUnits + unit}
}

// deployUnits returns our units for an image, enabled by the preset.
func deployUnits(t *testing.T) (files []images.File) {
	t.Helper()
	const dir = "../../deploy/systemd"
	for _, pattern := range []string{"*.service", "*.path", "*.timer", "*.d/*.conf"} {
		names, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil || len(names) == 0 {
			t.Fatalf("find the units to ship: got %q, %v", names, err)
		}
		for _, name := range names {
			files = append(files, images.File{Name: guestUnits + strings.TrimPrefix(name, dir+"/"), Mode: 0o644, Source: name})
		}
	}
	preset, err := os.ReadFile(filepath.Join(dir, "80-ostree-snapshotter.preset"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(preset)) {
		unit, ok := strings.CutPrefix(strings.TrimSpace(line), "enable ")
		if !ok {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, unit))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(text), "\nWantedBy=multi-user.target\n") {
			t.Fatalf("%s is to be enabled, but not for multi-user.target", unit)
		}
		files = append(files, wanted(unit))
	}
	return files
}

// daemonUnit returns our unit of the daemon with the daemon's path changed, because an image owns no files in
// /usr/local.
func daemonUnit(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("../../cmd/ostree-snapshotter/dist/ostree-snapshotter.service")
	if err != nil {
		t.Fatal(err)
	}
	const shipped = "/usr/local/bin/"
	if !strings.Contains(string(b), shipped) {
		t.Fatalf("the daemon's unit does not name %s", shipped)
	}
	return strings.ReplaceAll(string(b), shipped, "/usr/bin/")
}
