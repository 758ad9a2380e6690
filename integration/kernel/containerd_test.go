package kernel

import (
	"bufio"
	"bytes"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/images"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/testhost"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/vm"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

const imageName = "docker.io/library/layers:1"

// start returns a script that starts the daemon with a value of the key verity, and waits until it answers. The first
// time it also starts containerd, with the configuration that our program prints.
func start(verity string) string {
	return `killall ostree-snapshotter 2>/dev/null; sleep 1
printf 'version = 1\nroot = "/tmp/store"\nverity = "` + verity + `"\n' > /tmp/config.toml
setsid ostree-snapshotter serve --config /tmp/config.toml >> /tmp/daemon.log 2>&1 &
ostree-snapshotter config containerd --config /tmp/config.toml --version 4 > /tmp/containerd.toml
pidof containerd || setsid containerd --config /tmp/containerd.toml --root /tmp/containerd > /tmp/containerd.log 2>&1 &
for i in $(seq 100); do ctr --connect-timeout 1s snapshots --snapshotter ostree ls > /tmp/wait.log 2>&1 && exit; sleep 0.5; done
tail /tmp/wait.log /tmp/daemon.log /tmp/containerd.log; exit 1`
}

// run returns the command that runs a command in a new container and removes it.
func run(id, command string) string {
	return "ctr run --rm --no-pivot --snapshotter ostree --runc-root /run/runc " + imageName + " " + id + " " + command
}

// TestVerityWithContainerd runs containers of a real containerd and runc on an image, first without fs-verity and then
// with it. It replaces an object, which must be found and repaired.
func TestVerityWithContainerd(t *testing.T) {
	testenv.SkipShort(t, "needs qemu")
	needs(t)
	dir := t.TempDir()
	const sum = "/bin/sha256sum /bin/busybox"
	const ours = "ostree-snapshotter --config /tmp/config.toml "
	m, err := vm.NewWithKernel(t.Context(), containerdFiles(t, dir), dir, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	report, err := m.Boot(t.Context(), vm.Run{Name: "containerd", Commands: []vm.Command{
		{Name: "prepare", Line: "mkdir -p /run/lock /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup && ip link set lo up"},
		{Name: "off", Line: start("off")},
		{Name: "import", Line: "ctr images import --snapshotter ostree --index-name " + imageName + " /image.tar"},
		{Name: "plain", Line: run("plain", sum)},
		{Name: "plain-size", Line: "du -s /tmp/store/repo"},
		{Name: "require", Line: start("require")},
		{Name: "protected", Line: run("protected", sum)},
		{Name: "mounts", Line: run("mounts", "/bin/mount")},
		{Name: "size", Line: "du -s /tmp/store/repo"},
		{Name: "df", Line: ours + "df"},
		{Name: "digest", Line: ours + "image digest " + imageName + " && cat /tmp/store/rootfs/*/digest"},
		{Name: "change", Line: strings.Replace(run("changed", "/bin/chmod 0700 /bin/busybox"), "--rm", "", 1)},
		{Name: "diff", Line: "ctr snapshots --snapshotter ostree diff changed | tar -tvz"},
		{Name: "fsck", Line: ours + "fsck"},
		{Name: "exchange", Line: "f=/tmp/store/repo/objects/$(" + ours + "image digest --dump " + imageName + ` | awk '$1 == "/bin/busybox" { print $9 }')` +
			" && cp -p $f /tmp/copy && mv /tmp/copy $f"},
		{Name: "refused", Line: run("refused", sum), Fails: true},
		{Name: "found", Line: ours + "fsck", Fails: true},
		{Name: "repair", Line: ours + "fsck --repair", Fails: true},
		{Name: "whole", Line: ours + "fsck"},
		{Name: "mended", Line: run("mended", sum)},
	}})
	if err != nil {
		t.Fatalf("%v\n%s", err, report)
	}
	out := func(name string) string { return report.Results[name].Output }
	if got, want := out("protected"), out("plain"); got != want || !strings.HasSuffix(want, "  /bin/busybox\n") {
		t.Errorf("the container reads %q, and did %q before", got, want)
	}
	for name, want := range map[string]string{
		"mounts": "verity=require", "df": "verity=require", "diff": "-rwx------", "refused": "input/output error",
		"found": "does not have fs-verity", "mended": out("plain"),
	} {
		if !strings.Contains(strings.ToLower(out(name)), want) {
			t.Errorf("%s: got %q, want %q in it", name, out(name), want)
		}
	}
	if f := strings.Fields(out("digest")); len(f) != 2 || f[0] != f[1] {
		t.Errorf("image digest and the image say %q", f)
	}
	for _, name := range []string{"refused", "found"} {
		if report.Results[name].Status == 0 {
			t.Errorf("%s: exit status 0\n%s", name, out(name))
		}
	}
	t.Logf("the repository takes without fs-verity %s, with it %s", out("plain-size"), out("size"))
	if t.Failed() {
		t.Log(report)
	}
}

// containerdFiles returns the files of a machine with containerd, runc, our program and an image.
func containerdFiles(t *testing.T, dir string) map[string]string {
	t.Helper()
	tools, err := testhost.BuildTools(t.Context(), t.Output())
	if err != nil {
		t.Fatal(err)
	}
	binary, err := testhost.BuildBinary(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	layout, err := images.Layout(t.Context(), t.Output(), "layers:1")
	if err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(dir, "image.tar")
	if out, err := exec.CommandContext(t.Context(), "tar", "-C", layout, "-cf", image, ".").CombinedOutput(); err != nil {
		t.Fatalf("tar: %v\n%s", err, out)
	}
	bin := filepath.Dir(tools.Containerd)
	files := map[string]string{
		"/bin/containerd": tools.Containerd, "/bin/ctr": tools.Ctr, "/bin/containerd-shim-runc-v2": filepath.Join(bin, "containerd-shim-runc-v2"),
		"/bin/runc": tools.Runc, "/bin/ostree-snapshotter": binary, "/image.tar": image,
	}
	for _, name := range libraries(t, tools.Runc) {
		files[name] = name
	}
	return files
}

// libraries returns the shared libraries of a program, as the dynamic loader finds them.
func libraries(t *testing.T, program string) (names []string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "ldd", program).Output()
	if err != nil {
		t.Fatalf("ldd %s: %v", program, err)
	}
	for s := bufio.NewScanner(bytes.NewReader(out)); s.Scan(); {
		for _, word := range strings.Fields(s.Text()) {
			if filepath.IsAbs(word) {
				names = append(names, word)
			}
		}
	}
	return names
}

// needs ends the test if a machine cannot be made.
func needs(t *testing.T) {
	t.Helper()
	testenv.NeedsRoot(t)
	vm.Needs(t)
	testenv.NeedsTool(t, "mmdebstrap")
	testenv.NeedsTool(t, "mkfs.ext4")
}
