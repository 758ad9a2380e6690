// Package systemd_test checks the units for the image of an operating system. They are in this directory, and are
// installed in /usr/lib/systemd/system/ and, the preset, in /usr/lib/systemd/system-preset/.
package systemd_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

const program = "/usr/bin/ostree-snapshotter"

// install copies the units into a root of their own, with some texts replaced, and returns it.
func install(t *testing.T, replace ...string) (root string) {
	t.Helper()
	root = t.TempDir()
	files, err := filepath.Glob("*.[pst]*")
	if err != nil {
		t.Fatal(err)
	}
	dropIns, err := filepath.Glob("*.d/*.conf")
	if err != nil || len(dropIns) == 0 {
		t.Fatalf("find drop-ins: got %q, %v", dropIns, err)
	}
	files = append(files, dropIns...)
	n := 0
	for _, name := range files {
		dir := "usr/lib/systemd/system"
		switch filepath.Ext(name) {
		case ".service", ".path", ".timer":
			n++
		case ".preset":
			dir = "usr/lib/systemd/system-preset"
		case ".conf":
		default:
			continue
		}
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(root, dir, name), strings.NewReplacer(replace...).Replace(string(b)))
	}
	if n < 6 {
		t.Fatalf("got %d units, want 6 or more", n)
	}
	return root
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// run runs a program that searches root for units, and then the host.
func run(t *testing.T, root, name string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), testenv.NeedsTool(t, name), args...)
	cmd.Dir = root // systemd-analyze also searches its working directory
	cmd.Env = append(os.Environ(), "LC_ALL=C", "SYSTEMD_UNIT_PATH="+filepath.Join(root, "etc/systemd/system")+":"+
		filepath.Join(root, "usr/lib/systemd/system")+":")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// enable applies the preset.
func enable(t *testing.T, root string) {
	t.Helper()
	if out, err := run(t, root, "systemctl", "--root="+root, "preset-all"); err != nil {
		t.Fatalf("preset-all: %v\n%s", err, out)
	}
}

// The units are without errors, alone and as part of a boot: the units that they want exist, and their order has no
// cycle.
func TestVerify(t *testing.T) {
	root := install(t, program, "/bin/true")
	enable(t, root)
	units := []string{"verify", "--man=no", "multi-user.target", "ostree-snapshotter-hold@boot-efi.service", "systemd-bless-boot.service"}
	names, err := filepath.Glob(filepath.Join(root, "usr/lib/systemd/system/*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if !strings.Contains(name, "@.") && filepath.Ext(name) != ".d" {
			units = append(units, name)
		}
	}
	// Messages about the host's own units, and a success owed to them, do not count.
	out, _ := run(t, root, "systemd-analyze", units...)
	for line := range strings.Lines(out) {
		if strings.Contains(line, "ostree-snapshotter") || strings.Contains(line, "cycle") {
			t.Error(line)
		}
	}
}

func TestPreset(t *testing.T) {
	root := install(t)
	enable(t, root)
	var got []string
	etc := filepath.Join(root, "etc/systemd/system")
	links, err := filepath.Glob(filepath.Join(etc, "*/*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		got = append(got, strings.TrimPrefix(l, etc+"/"))
	}
	want := []string{
		"multi-user.target.wants/ostree-snapshotter-boot-complete.service",
		"multi-user.target.wants/ostree-snapshotter-finalize-staged.path",
		"multi-user.target.wants/ostree-snapshotter-mirror.service",
	}
	if !slices.Equal(got, want) {
		t.Errorf("enabled: got %q, want %q", got, want)
	}
}

// Exactly one of ostree's unit and ours finalizes a staged deployment.
func TestOnlyOneFinalizes(t *testing.T) {
	for _, tc := range []struct {
		name                           string
		booted, ostree, masked, active bool
	}{
		{name: "without ostree", booted: true, active: true},
		{name: "with ostree", booted: true, ostree: true},
		{name: "ostree's is masked", booted: true, ostree: true, masked: true, active: true},
		{name: "no ostree system"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			root := install(t)
			const theirs = "systemd/system/ostree-finalize-staged.service"
			if tc.booted {
				write(t, filepath.Join(root, "run/ostree-booted"), "")
			}
			if tc.ostree {
				write(t, filepath.Join(root, "usr/lib", theirs), "[Service]\nExecStart=/bin/true\n")
			}
			if tc.masked {
				if err := os.MkdirAll(filepath.Join(root, "etc/systemd/system"), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.Symlink("/dev/null", filepath.Join(root, "etc", theirs)); err != nil {
					t.Fatal(err)
				}
			}
			for _, unit := range []string{"ostree-snapshotter-finalize-staged.path", "ostree-snapshotter-finalize-staged.service"} {
				checkConditions(t, root, unit, 3, tc.active)
			}
		})
	}
}

// checkConditions evaluates the n conditions of a unit, with paths in root.
func checkConditions(t *testing.T, root, unit string, n int, want bool) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, "usr/lib/systemd/system", unit))
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"condition"}
	for line := range strings.Lines(string(b)) {
		if key, path, ok := strings.Cut(strings.TrimSpace(line), "/"); ok && strings.HasPrefix(key, "Condition") {
			args = append(args, key+root+"/"+path)
		}
	}
	if len(args) != n+1 {
		t.Fatalf("%s: got conditions %q, want %d", unit, args[1:], n)
	}
	out, err := run(t, root, "systemd-analyze", args...)
	if active := strings.Contains(out, "Conditions succeeded."); active != want || active != (err == nil) {
		t.Errorf("%s: got active %v, %v, want %v\n%s", unit, active, err, want, out)
	}
}

// systemd's unit that keeps a good boot stays as it is on a system that was not booted by ostree, wherever that has its
// entries.
func TestBlessBoot(t *testing.T) {
	const dropIn = "systemd-bless-boot.service.d/ostree-snapshotter.conf"
	root := install(t)
	checkConditions(t, root, dropIn, 3, true)
	write(t, filepath.Join(root, "run/ostree-booted"), "")
	checkConditions(t, root, dropIn, 3, false)
}
