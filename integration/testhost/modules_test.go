package testhost

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestModules keeps modules that only tests use out of go.mod. Unit tests are in the module of their directory, so they
// do without. Programs, clients, second implementations for comparison and libraries to test with have separate modules
// below integration.
func TestModules(t *testing.T) {
	repo, err := RepoDir()
	if err != nil {
		t.Fatal(err)
	}
	output := func(args ...string) []byte {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "go", args...)
		cmd.Dir = repo
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("go %s: %v", strings.Join(args, " "), err)
		}
		return out
	}
	const program = "./cmd/ostree-snapshotter"
	used := strings.Fields(string(output("list", "-deps", "-f", "{{with .Module}}{{.Path}}{{end}}", program, "./plugin/builtin")))
	var mod struct {
		Require []struct {
			Path     string
			Indirect bool
		}
	}
	if err := json.Unmarshal(output("mod", "edit", "-json"), &mod); err != nil {
		t.Fatal(err)
	}
	var unused []string
	for _, m := range mod.Require {
		if !m.Indirect && !slices.Contains(used, m.Path) {
			unused = append(unused, m.Path)
		}
	}
	if len(unused) > 0 {
		t.Errorf("%s requires %q, which the product does not use, want none", filepath.Join(repo, "go.mod"), unused)
	}
}
