package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestPrintedNames prints names of an image that would forge lines or control the terminal.
func TestPrintedNames(t *testing.T) {
	evil := "a\x1b[2J\nostree-snapshotter: error: forged\u202eb\u2028\x7f"
	const shown = "a?[2J?ostree-snapshotter: error: forged?b??"
	var stdout, stderr bytes.Buffer
	c := &cli{stdout: &stdout, stderr: &stderr}
	perr := &fs.PathError{Op: "open", Path: evil, Err: unix.EIO}
	failed := fmt.Errorf("fsck: %w", errors.Join(perr, fmt.Errorf("again: %w", perr), errors.New("third")))
	for _, tt := range []struct {
		name, want string
		print      func() error
	}{
		{"error", "ostree-snapshotter: error: fsck: open " + shown + ": input/output error\n" +
			"ostree-snapshotter: error: again: open " + shown + ": input/output error\n" +
			"ostree-snapshotter: error: third\n", func() error { report(&stderr, failed); return nil }},
		{"two kinds", "ostree-snapshotter: error: kind: fsck: open " + shown + ": input/output error\n" +
			"ostree-snapshotter: error: again: open " + shown + ": input/output error\n" +
			"ostree-snapshotter: error: third\n", func() error { report(&stderr, fmt.Errorf("%w: %w", errors.New("kind"), failed)); return nil }},
		{"note", "ostree-snapshotter: " + shown + ": dropped\n", func() error { c.note("%s: dropped", evil); return nil }},
		{"table", "NAME" + strings.Repeat(" ", len(shown)-2) + "SIZE\n" + shown + "  1\n", func() error { return c.table("NAME\tSIZE", evil+"\t1") }},
		{"line", shown + "\n", func() error { return c.println(evil) }},
	} {
		stdout.Reset()
		stderr.Reset()
		err := tt.print()
		if got := stdout.String() + stderr.String(); err != nil || got != tt.want {
			t.Errorf("%s: got %q (%v), want %q", tt.name, got, err, tt.want)
		}
	}
}
