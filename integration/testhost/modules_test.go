package testhost

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// unitTestModules are the modules in go.mod that the product does not use. Unit tests are in the module of their
// directory, so go.mod must require the libraries that they are written with. Programs, clients and second
// implementations for comparison have separate modules below integration.
var unitTestModules = []string{
	"github.com/rogpeppe/go-internal", // testscript, for the txtar scripts of the command line
}

// TestModules keeps modules that only tests use out of go.mod.
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
	slices.Sort(unused)
	if !slices.Equal(unused, unitTestModules) {
		t.Errorf("%s requires %q, which the product does not use, want only %q", filepath.Join(repo, "go.mod"), unused, unitTestModules)
	}
}
