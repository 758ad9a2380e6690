package kernel

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/vm"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// suites are the tests to run on the other kernel, with the kind of checkouts. With fs-verity, everything is needed
// that a kernel needs without it. The package of boot loaders has tests on FAT.
var suites = []struct{ pkg, tests, checkout string }{
	{"internal/atfs", "Verity", ""},
	{"objectstore", "Verity", ""},
	{"objectstore/layer", "Verity", ""},
	{"deploy/bootloader", "^Test(Write|EarlyPrune)$", ""},
	{"deploy/sysroot", "^TestComposefs", ""},
	{"plugin", "^TestChoose", ""},
	{"snapshotter/composefsmount", ".", ""},
	{"snapshotter", "^Test(Commit|RootfsLifetime|UserNamespace)", "composefs"},
	{"snapshotter", "^Test(SuiteInProcess|Commit|RootfsLifetime|RootfsIs|SwitchOfCheckouts|UserNamespace|Verity)", "composefs-verity"},
}

// TestDebian13 runs tests that depend on the kernel on that of Debian 13, Linux 6.12. Its overlayfs needs metacopy=on
// for composefs, and it has fs-verity.
func TestDebian13(t *testing.T) {
	testenv.SkipShort(t, "needs qemu and minutes")
	needs(t)
	dir := t.TempDir()
	files := make(map[string]string)
	var commands []vm.Command
	for _, s := range suites {
		program := strings.ReplaceAll(s.pkg, "/", "-")
		if files[program] == "" {
			files[program] = build(t, "../../"+s.pkg, filepath.Join(dir, program))
		}
		commands = append(commands, vm.Command{
			Name: strings.TrimSuffix(program+"/"+s.checkout, "/"), Fails: true,
			Line: "cd /tmp && OSTREE_SNAPSHOTTER_TEST_CHECKOUT=" + s.checkout + " /" + program + " -test.v -test.run='" + s.tests + "'",
		})
	}
	m, err := vm.NewWithKernel(t.Context(), files, dir, t.Output())
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
	for _, name := range []string{"TestWrite/vfat", "TestEarlyPrune/vfat"} { // which other machines may skip
		if out := report.Results["deploy-bootloader"].Output; !strings.Contains(out, "--- PASS: "+name+" ") {
			t.Errorf("%s has not passed:\n%s", name, out)
		}
	}
}

// build builds the test program of a package.
func build(t *testing.T, dir, name string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "test", "-c", "-ldflags=-s -w", "-o", name, dir)
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the tests of %s: %v\n%s", dir, err, out)
	}
	return name
}

// skips returns the skipped tests with their reasons.
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
