package kernel

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/vm"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// The kernel of Debian 13, Linux 6.12: its overlayfs needs metacopy=on for composefs, and it has fs-verity.
var debian13 = vm.Kernel{Release: "trixie", Modules: []string{"virtio_blk", "qemu_fw_cfg", "loop", "netfs", "libcrc32c", "erofs", "overlay"}}

// What is run there, by package. Verity says that it is run with fs-verity too.
var suites = []struct {
	pkg, tests string
	verity     bool
}{
	{"internal/atfs", "Verity", false},
	{"objectstore", "Verity", false},
	{"objectstore/layer", "Verity", false},
	{"plugin", "TestChoose", false},
	{"snapshotter/erofs", ".", false},
	{"snapshotter", "^Test(SuiteInProcess|Commit|RootfsLifetime|RootfsIs|SwitchOfCheckouts|UserNamespace|Verity)", true},
}

// TestDebian13 runs tests that the kernel makes a difference for on that of Debian 13.
func TestDebian13(t *testing.T) {
	if testing.Short() {
		t.Skip("needs qemu and minutes, left out by -short")
	}
	vm.Needs(t)
	testenv.NeedsRoot(t)
	testenv.NeedsTool(t, "mmdebstrap")
	testenv.NeedsTool(t, "mkfs.ext4")
	dir := t.TempDir()
	files := make(map[string]string)
	var commands []vm.Command
	for _, s := range suites {
		name := strings.ReplaceAll(s.pkg, "/", "-")
		files[name] = build(t, "../../"+s.pkg, filepath.Join(dir, name))
		for _, mode := range []string{"composefs", "composefs-verity"} {
			if mode == "composefs" || s.verity {
				commands = append(commands, vm.Command{
					Name: name + "/" + mode, Fails: true,
					Line: "cd /tmp && OSTREE_SNAPSHOTTER_TEST_CHECKOUT=" + mode + " /" + name + " -test.v -test.run='" + s.tests + "'",
				})
			}
		}
	}
	m, err := vm.NewWithKernel(t.Context(), debian13, files, dir, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	report, err := m.Boot(t.Context(), vm.Run{Name: "debian13", Commands: commands})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range commands {
		res := report.Results[c.Name]
		if res.Status != 0 {
			t.Errorf("%s: exit status %d\n%s", c.Name, res.Status, res.Output)
		}
		passed := strings.Count(res.Output, "\n--- PASS")
		if passed == 0 {
			t.Errorf("%s: no test was run", c.Name)
		}
		t.Logf("%s: %d tests passed after %.0f s\n%s", c.Name, passed, res.Ended, skips(res.Output))
	}
}

// build makes the test program of a package.
func build(t *testing.T, dir, name string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "test", "-c", "-ldflags=-s -w", "-o", name, dir)
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the tests of %s: %v\n%s", dir, err, out)
	}
	return name
}

// skips returns what was not run, and why.
func skips(output string) string {
	var b strings.Builder
	before := ""
	for line := range strings.Lines(output) {
		if strings.Contains(line, "--- SKIP") {
			b.WriteString(before + line)
		}
		before = line
	}
	return b.String()
}
