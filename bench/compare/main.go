// Command compare compares the Go benchmarks of a revision with those of the working tree. It builds both, runs them in
// turn, so that other load on the machine slows both, and prints the output of benchstat.
//
//	go run ./bench/compare -base REV [flags] [package ...]
//
// The revision is checked out in a temporary directory, which is removed at the end. Benchmarks that mount need root.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/testhost"
)

func main() {
	var c comparison
	flag.StringVar(&c.base, "base", "", "the revision to compare with")
	flag.StringVar(&c.bench, "bench", ".", "the benchmarks that match a regular expression")
	flag.IntVar(&c.count, "count", 6, "how often each is run")
	flag.StringVar(&c.benchtime, "benchtime", "", "how long each runs, as for go test")
	flag.Parse()
	if c.packages = flag.Args(); len(c.packages) == 0 {
		c.packages = []string{"./bench", "./objectstore/..."}
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	err := c.run(ctx)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "compare: error: %v\n", err)
		os.Exit(1)
	}
}

// A comparison is one run of the command.
type comparison struct {
	base      string
	bench     string
	count     int
	benchtime string
	packages  []string
}

func (c *comparison) run(ctx context.Context) (err error) {
	if c.base == "" {
		return errors.New("no revision to compare with: -base is empty")
	}
	repo, err := testhost.RepoDir()
	if err != nil {
		return err
	}
	commit, err := output(ctx, repo, "git", "rev-parse", "--verify", "--short", "--end-of-options", c.base+"^{commit}")
	if err != nil {
		return err
	}
	tmp, err := os.MkdirTemp("", "compare")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	worktree := filepath.Join(tmp, "base")
	// An interrupt ends git too, so ignore it here.
	defer func() {
		_, gone := output(context.WithoutCancel(ctx), repo, "git", "worktree", "remove", "--force", worktree)
		if err == nil {
			err = gone // if the comparison failed, there may be nothing to remove
		}
	}()
	if _, err := output(ctx, repo, "git", "worktree", "add", "--detach", worktree, strings.TrimSpace(commit)); err != nil {
		return err
	}
	sides := []*side{
		{label: strings.TrimSpace(commit), dir: worktree, bin: filepath.Join(tmp, "bin-base"), out: filepath.Join(tmp, "base.txt")},
		{label: "working tree", dir: repo, bin: filepath.Join(tmp, "bin-tree"), out: filepath.Join(tmp, "tree.txt")},
	}
	for _, s := range sides {
		if err := s.build(ctx, c.packages); err != nil {
			return fmt.Errorf("build the benchmarks of %s: %w", s.label, err)
		}
	}
	for i := range c.count {
		fmt.Fprintf(os.Stderr, "compare: round %d of %d\n", i+1, c.count)
		for j := range sides {
			s := sides[(i+j)%len(sides)] // each side goes first equally often
			if err := s.run(ctx, c.bench, c.benchtime); err != nil {
				return fmt.Errorf("run the benchmarks of %s: %w", s.label, err)
			}
		}
	}
	table, err := output(ctx, repo, "go", "tool", "-modfile=tools.mod", "benchstat", sides[0].arg(), sides[1].arg())
	if err != nil {
		return err
	}
	if table == "" {
		return fmt.Errorf("no benchmark matches %q", c.bench)
	}
	fmt.Print(table)
	return nil
}

// A side is one of the compared trees.
type side struct {
	label string
	dir   string // of the source
	bin   string // directory of the test binaries
	out   string // file with the output of the benchmarks
	tests []test
}

// A test is the test binary of a package with benchmarks.
type test struct{ binary, dir string }

// arg returns the benchstat argument for the side.
func (s *side) arg() string { return s.label + "=" + s.out }

// build builds the test binaries of the packages that have benchmarks. A package that is missing in the tree is
// skipped.
func (s *side) build(ctx context.Context, packages []string) error {
	if err := os.Mkdir(s.bin, 0o755); err != nil {
		return err
	}
	const format = "{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}} {{.Dir}}{{end}}"
	list, err := output(ctx, s.dir, "go", append([]string{"list", "-f", format}, packages...)...)
	if err != nil {
		return err
	}
	for line := range strings.Lines(list) {
		pkg, dir, _ := strings.Cut(strings.TrimSpace(line), " ")
		t := test{binary: filepath.Join(s.bin, strconv.Itoa(len(s.tests))+".test"), dir: dir}
		if _, err := output(ctx, s.dir, "go", "test", "-c", "-o", t.binary, pkg); err != nil {
			return err
		}
		names, err := output(ctx, t.dir, t.binary, "-test.list=^Benchmark")
		if err != nil {
			return err
		}
		if names != "" {
			s.tests = append(s.tests, t)
		}
	}
	return nil
}

// run runs the benchmarks once.
func (s *side) run(ctx context.Context, bench, benchtime string) (err error) {
	f, err := os.OpenFile(s.out, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for _, t := range s.tests {
		args := []string{"-test.run=^$", "-test.bench=" + bench, "-test.benchmem", "-test.timeout=60m"}
		if benchtime != "" {
			args = append(args, "-test.benchtime="+benchtime)
		}
		text, err := output(ctx, t.dir, t.binary, args...)
		if err != nil {
			return err
		}
		if _, err := io.WriteString(f, text); err != nil {
			return err
		}
	}
	return nil
}

// output runs a program and returns its standard output. If the program fails, the error contains all of its output.
func output(ctx context.Context, dir, name string, args ...string) (string, error) {
	var stdout, stderr strings.Builder
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 30 * time.Second
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("run %s %s: %w\n%s", filepath.Base(name), strings.Join(args, " "), err, stdout.String()+stderr.String())
	}
	return stdout.String(), nil
}
