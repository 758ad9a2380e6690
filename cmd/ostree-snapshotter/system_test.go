package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// TestSystemInterrupted interrupts each long command before it begins. The system stays as it is.
func TestSystemInterrupted(t *testing.T) {
	b := newImageBed(t)
	images := []string{"--root", b.root.Path(), "--address", b.containerd.Address, b.osImage(t).Name}
	parent := openDir(t, t.TempDir())
	sys := filepath.Join(parent.Path(), "sys")
	testenv.Must(t, os.Mkdir(sys, 0o755))
	t.Cleanup(func() { testenv.Must(t, parent.RemoveAll("sys")) }) // deployments are immutable
	output(t, exitOK, append([]string{"deploy", "--sysroot", sys, "--init"}, images...)...)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, args := range [][]string{
		append([]string{"deploy", "--karg=x"}, images...), append([]string{"switch", "--karg=x"}, images...),
		{"status"},
		{"kargs", "--append=x"},
		{"rollback"},
		{"cleanup"},
		{"config-diff"},
	} {
		t.Run(args[0], func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			if got := execute(ctx, append(args, "--sysroot", sys), &stdout, &stderr); got != exitInterrupted {
				t.Errorf("exit status is %d, want %d: %s", got, exitInterrupted, stderr.String())
			}
			if stdout.Len() > 0 {
				t.Errorf("stdout is %q, want nothing", stdout.String())
			}
		})
	}
	var r statusReport
	decode(t, output(t, exitOK, "status", "--sysroot", sys, "--json"), &r)
	if len(r.Deployments) != 1 {
		t.Errorf("there are %d deployments, want 1", len(r.Deployments))
	}
}
