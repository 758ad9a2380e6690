package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// TestDryRunRefuses: what the policy refuses, a dry run without a system refuses too.
func TestDryRunRefuses(t *testing.T) {
	b := newImageBed(t)
	name := b.osImage(t).Name
	dir := t.TempDir()
	policy := filepath.Join(dir, "policy.json")
	testenv.Must(t, os.WriteFile(policy, []byte(`{"default":[{"type":"reject"}]}`), 0o600))
	status, out, errs := b.run(t, "deploy", "--init", "--dry-run", "--sysroot", dir, "--signature-policy", policy, name)
	if status != exitRefused || out != "" || !strings.Contains(errs, `is refused by rule "default"`) {
		t.Errorf("got status %d, %q, %q, want %d", status, out, errs, exitRefused)
	}
}
