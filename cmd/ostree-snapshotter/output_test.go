package main

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// TestOutputFull: a full file system that standard output is on is none of the store's, which "prune" would help.
func TestOutputFull(t *testing.T) {
	f, s := newFixture(t)
	f.stopDaemon(t)
	for _, args := range [][]string{
		{"layers"},
		{"layers", "--json"},
		{"df"},
		{"fsck"},
		{"prune"},
		{"config", "default"},
		{"config", "check", "--json"},
		{"version"},
	} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
			testenv.Must(t, err)
			defer full.Close()
			var stderr bytes.Buffer
			status := execute(t.Context(), append(args, "--root", s.Root.Path()), full, &stderr)
			const want = "ostree-snapshotter: error: write output: write /dev/full: no space left on device\n"
			if got := stderr.String(); status != exitFailed || !strings.HasSuffix(got, want) {
				t.Errorf("exit status is %d, stderr %q, want %d, and at the end %q", status, got, exitFailed, want)
			}
		})
	}
}
