package testenv

import (
	"os"
	"path/filepath"
	"testing"
)

func TestHasFilesystem(t *testing.T) {
	const listing = "nodev\tsysfs\nnodev\toverlay\n\text4\n\terofs\n"
	for _, tc := range []struct {
		name string
		want bool
	}{
		{"erofs", true},
		{"overlay", true},
		{"ext", false},
		{"nodev", false},
	} {
		if got := hasFilesystem(listing, tc.name); got != tc.want {
			t.Errorf("hasFilesystem(%q) = %v, want %v", tc.name, got, tc.want)
		}
	}
}

func TestLookTool(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a-tool-of-the-test"), []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir)
	if got, ok := LookTool("a-tool-of-the-test"); !ok || got != filepath.Join(dir, "a-tool-of-the-test") {
		t.Errorf("LookTool of a program in PATH = %q, %v", got, ok)
	}
	if got, ok := LookTool("no-such-tool-anywhere"); ok {
		t.Errorf("LookTool of a program that is not there = %q, want none", got)
	}
}
