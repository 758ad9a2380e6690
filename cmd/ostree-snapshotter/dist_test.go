package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/plugin"
)

// TestDistConfig keeps the configuration that is shipped what "config default" prints.
func TestDistConfig(t *testing.T) {
	got, err := os.ReadFile("dist/config.toml")
	if err != nil {
		t.Fatal(err)
	}
	want, err := plugin.DefaultConfig().Encode()
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Error("dist/config.toml is not what \"ostree-snapshotter config default\" prints: write it again with that")
	}
}

// TestDocsNameEveryKey keeps docs/configuration.md complete.
func TestDocsNameEveryKey(t *testing.T) {
	doc, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	config, err := plugin.DefaultConfig().Encode()
	if err != nil {
		t.Fatal(err)
	}
	section := ""
	for line := range strings.Lines(string(config)) {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, "["); ok {
			section = strings.TrimSuffix(name, "]") + "."
		}
		key, value, ok := strings.Cut(line, " = ")
		if !ok || strings.HasPrefix(line, "#") {
			continue
		}
		if row := "| `" + section + key + "` | `" + strings.ReplaceAll(value, "'", `"`) + "` |"; !strings.Contains(string(doc), row) {
			t.Errorf("docs/configuration.md has no row %q", row)
		}
	}
}

// TestUnitHasNoMountNamespace keeps options out of the systemd unit under which containerd could not see our mounts
// nor we the paths it gives us, and those in it that bound what the daemon may do.
func TestUnitHasNoMountNamespace(t *testing.T) {
	b, err := os.ReadFile("dist/ostree-snapshotter.service")
	if err != nil {
		t.Fatal(err)
	}
	options := make(map[string]string)
	for line := range strings.Lines(string(b)) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(line, "#") {
			options[key] = value
		}
	}
	// All that imply a namespace; see systemd.exec(5).
	for key := range options {
		for _, prefix := range []string{
			"Private", "Protect", "ReadOnly", "ReadWrite", "Inaccessible", "Exec", "Bind", "TemporaryFileSystem", "Root",
			"Mount", "Dynamic",
		} {
			if strings.HasPrefix(key, prefix) && key != "ExecStart" && key != "ExecReload" {
				t.Errorf("%s= gives the daemon a mount namespace of its own", key)
			}
		}
	}
	for key, want := range map[string]string{
		"Type": "notify", "Before": "containerd.service", "KillMode": "mixed",
		"OOMScoreAdjust": "-500", "MemoryHigh": "50%", "NoNewPrivileges": "yes", "RestrictAddressFamilies": "AF_UNIX",
	} {
		if options[key] != want {
			t.Errorf("%s is %q, want %q", key, options[key], want)
		}
	}
}

// TestUnitVerifies has systemd check the unit, with a program that exists here.
func TestUnitVerifies(t *testing.T) {
	verify := testenv.NeedsTool(t, "systemd-analyze")
	b, err := os.ReadFile("dist/ostree-snapshotter.service")
	testenv.Must(t, err)
	name := filepath.Join(t.TempDir(), "ostree-snapshotter.service")
	testenv.Must(t, os.WriteFile(name, []byte(strings.ReplaceAll(string(b), "/usr/local/bin/ostree-snapshotter", "/bin/true")), 0o600))
	if out, err := exec.Command(verify, "verify", "--man=no", name).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestMakeVersion builds the program as a release does, and asks for its version.
func TestMakeVersion(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "ostree-snapshotter")
	out, err := exec.Command(testenv.NeedsTool(t, "make"), "-C", "../..", "build", "VERSION=v9.8.7", "BIN="+bin).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if out, err := exec.Command(bin, "version").Output(); err != nil || !strings.HasPrefix(string(out), "ostree-snapshotter v9.8.7") {
		t.Errorf("got %q (%v), want version v9.8.7", out, err)
	}
}

// TestPlatforms compiles for a processor that the program cannot run on. The error tells why.
func TestPlatforms(t *testing.T) {
	cmd := exec.Command(testenv.NeedsTool(t, "go"), "vet", "../../internal/atfs")
	cmd.Env = append(os.Environ(), "GOARCH=386", "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "needs a processor of 64 bits") {
		t.Errorf("GOARCH=386: got %v\n%s", err, out)
	}
}
