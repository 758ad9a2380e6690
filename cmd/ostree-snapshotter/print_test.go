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

// TestPrintManyProblems: a damaged image has thousands of damaged objects.
func TestPrintManyProblems(t *testing.T) {
	r := &fsckReport{Objects: 3000, Layers: 2, Snapshots: 2}
	for i := range 2742 {
		r.Problems = append(r.Problems, fsckProblem{
			Kind: "object", Name: fmt.Sprint("o", i), Error: "bad", Layers: []string{fmt.Sprint("l", i%2)}, Images: []string{"default/a"},
		})
	}
	r.Problems = append(r.Problems, fsckProblem{Kind: "ref", Name: "r", Error: "bad"})
	for i := range 4 {
		r.Repaired = append(r.Repaired, fsckProblem{Kind: "checkout", Name: fmt.Sprint("c", i), Error: "bad"})
	}
	const want = `object o0: bad
  affects layer l0
  affects image default/a
object o1: bad
  affects layer l1
  affects image default/a
object o2: bad
  affects layer l0
  affects image default/a
object: and 2739 more, which affect 2 layers, 0 snapshots, 1 images; -v lists them
ref r: bad
checkout c0: repaired
checkout c1: repaired
checkout c2: repaired
checkout: and 1 more repaired; -v lists them
checked 3000 objects, 2 layers, 2 snapshots: 2743 problems
`
	var stdout bytes.Buffer
	c := &cli{stdout: &stdout}
	if err := c.showFsck(r, false); err != nil || stdout.String() != want {
		t.Errorf("got %v,\n%s\nwant\n%s", err, stdout.String(), want)
	}
	stdout.Reset()
	err := c.showFsck(r, true)
	if n := strings.Count(stdout.String(), "object o"); err != nil || n != 2742 || strings.Contains(stdout.String(), "-v") {
		t.Errorf("with -v: %v, %d objects, want 2742", err, n)
	}
}
