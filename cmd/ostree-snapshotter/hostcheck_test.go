package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// A root inside a container's own file system cannot have whiteouts: "config check" reports it in the words with which
// "serve" refuses to start.
func TestConfigCheckSaysWhatServeRefuses(t *testing.T) {
	testenv.NeedsRoot(t)
	testenv.NeedsOverlay(t)
	base := t.TempDir()
	for _, name := range []string{"lower", "upper", "work", "root"} {
		if err := os.Mkdir(filepath.Join(base, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	root := filepath.Join(base, "root")
	options := fmt.Sprintf("lowerdir=%s/lower,upperdir=%s/upper,workdir=%s/work", base, base, base)
	if err := unix.Mount("overlay", root, "overlay", 0, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	run := func(args ...string) (int, string, string) {
		t.Helper()
		var stdout, stderr bytes.Buffer
		status := execute(t.Context(), append(args, "--root", root), &stdout, &stderr)
		return status, stdout.String(), stderr.String()
	}
	const want = "root cannot be used: file system does not support whiteouts: "
	status, stdout, _ := run("config", "check", "--address", filepath.Join(base, "no-containerd"))
	if status != exitFailed || !strings.Contains(stdout, "failed   root ") || !strings.Contains(stdout, want) {
		t.Errorf("config check: status %d, %s, want a root that fails with %q", status, stdout, want)
	}
	status, _, stderr := run("serve", "--address", filepath.Join(base, "socket"))
	if status != exitFailed || !strings.Contains(stderr, want) {
		t.Errorf("serve: status %d, %q, want an error with %q", status, stderr, want)
	}
}
