// Command run measures the snapshotters on test images, with the containerd and the mkfs.erofs of the tests. It writes
// the results to DIR/YYYY-MM-DD.md, and a chart for each workload; files of the same day are replaced. It needs root,
// and everything that setup installs.
//
//	go run ./bench/run [flags] [-- flags of "ostree-snapshotter bench"]
//	go run ./bench/run -layouts DIR
//
// The second form makes the OCI layouts of all workloads and links to them in a directory, which is the argument of the
// option --layouts of "ostree-snapshotter bench". It measures nothing.
//
// A workload that could only be measured in part is on the page, and is named at the end.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/bench/pull/workload"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/images"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/testhost"
)

func main() {
	var b bench
	flag.StringVar(&b.binary, "binary", "bin/ostree-snapshotter", "the program; make build makes it")
	flag.StringVar(&b.results, "results", "bench/results", "the directory of the page")
	flag.BoolVar(&b.keep, "keep", false, "keep report.html and report.json too")
	layouts := flag.String("layouts", "", "make the layouts of all workloads in this directory, and measure nothing")
	workloads := flag.String("workloads", "debian,layers,os-update,small,zstd", "what is measured")
	flag.Parse()
	b.workloads, b.flags = strings.Split(*workloads, ","), flag.Args()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	var err error
	if *layouts != "" {
		err = linkLayouts(ctx, *layouts, workload.Names()...)
	} else {
		err = b.run(ctx)
	}
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "bench: error: %v\n", err)
		os.Exit(1)
	}
}

// A bench is one run of the command.
type bench struct {
	binary    string
	results   string
	keep      bool
	workloads []string
	flags     []string // given by the user

	env    []string
	tmp    string
	day    string
	page   bytes.Buffer
	partly []string // names of the workloads that were measured in part
}

func (b *bench) run(ctx context.Context) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("needs root: file systems are mounted and containers run")
	}
	if b.binary, err = filepath.Abs(b.binary); err != nil {
		return err
	}
	if b.env, err = environment(ctx); err != nil {
		return err
	}
	if b.tmp, err = os.MkdirTemp("", "bench"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.tmp)) }()
	if err := linkLayouts(ctx, b.layouts(), b.workloads...); err != nil {
		return err
	}
	b.day = time.Now().UTC().Format(time.DateOnly)
	if err := os.MkdirAll(b.results, 0o755); err != nil {
		return err
	}
	for _, w := range b.workloads {
		if err := b.measure(ctx, w); err != nil {
			return fmt.Errorf("measure %s: %w", w, err)
		}
		// Write after each workload, since the next may take an hour and fail.
		if err := b.write(w); err != nil {
			return fmt.Errorf("write the results of %s: %w", w, err)
		}
	}
	for _, w := range b.partly {
		fmt.Fprintf(os.Stderr, "bench: %s could not be measured completely; its report says what is missing\n", w)
	}
	return nil
}

// linkLayouts makes the layouts of workloads, and links to them in a directory.
func linkLayouts(ctx context.Context, dir string, workloads ...string) error {
	var names []string
	for _, name := range workloads {
		w, ok := workload.Builtin(name)
		if !ok {
			return fmt.Errorf("no workload %q", name)
		}
		for _, img := range w.Images {
			if layout, ok := img.Layout(); ok {
				names = append(names, layout)
			}
		}
	}
	return images.Link(ctx, os.Stderr, dir, names...)
}

// environment returns our environment with the programs of the tests first in PATH.
func environment(ctx context.Context) ([]string, error) {
	tools, err := testhost.BuildTools(ctx, os.Stderr)
	if err != nil {
		return nil, err
	}
	erofs, err := testhost.ErofsUtils(ctx, os.Stderr)
	if err != nil {
		return nil, err
	}
	path := []string{filepath.Dir(tools.Containerd), erofs, os.Getenv("PATH"), filepath.Dir(tools.Runc)}
	return append(os.Environ(), "PATH="+strings.Join(path, string(filepath.ListSeparator))), nil
}

func (b *bench) layouts() string { return filepath.Join(b.tmp, "layouts") }

func (b *bench) out(name string) string { return filepath.Join(b.tmp, "out-"+name) }

// partial is the exit status of a command that did part of its work.
const partial = 3

// measure runs the benchmark of a workload.
func (b *bench) measure(ctx context.Context, name string) error {
	args := []string{"bench", "--images", name, "--layouts", b.layouts(), "--out", b.out(name)}
	for _, f := range []struct{ name, value string }{{"--snapshotters", "ostree,ostree-hardlink,overlayfs,erofs"}, {"--runs", "6"}} {
		if !slices.ContainsFunc(b.flags, func(s string) bool { return s == f.name || strings.HasPrefix(s, f.name+"=") }) {
			args = append(args, f.name, f.value)
		}
	}
	cmd := exec.CommandContext(ctx, b.binary, append(args, b.flags...)...)
	fmt.Fprintf(os.Stderr, "+ %s\n", strings.Join(cmd.Args, " "))
	cmd.Env, cmd.Stdout, cmd.Stderr = b.env, os.Stdout, os.Stderr
	// The benchmark removes its mounts when interrupted. Send it one signal, and not a second one from the terminal.
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 2 * time.Minute
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() == partial && ctx.Err() == nil {
		b.partly = append(b.partly, name)
		return nil
	}
	return err
}

// write adds the report of a workload to the page.
func (b *bench) write(measured string) error {
	text, err := os.ReadFile(filepath.Join(b.out(measured), "report.md"))
	if err != nil {
		return err
	}
	const chart = "chart.svg"
	names := []string{chart}
	if b.keep {
		names = append(names, "report.html", "report.json")
	}
	for _, name := range names {
		data, err := os.ReadFile(filepath.Join(b.out(measured), name))
		if errors.Is(err, fs.ErrNotExist) && name == chart {
			continue // nothing was measured
		}
		if err != nil {
			return err
		}
		kept := b.day + "-" + measured + filepath.Ext(name)
		if err := os.WriteFile(filepath.Join(b.results, kept), data, 0o644); err != nil {
			return err
		}
		if name == chart {
			text = bytes.ReplaceAll(text, []byte("(<"+chart+">)"), []byte("("+kept+")"))
			text = bytes.ReplaceAll(text, []byte("("+chart+")"), []byte("("+kept+")"))
		}
	}
	if b.page.Len() > 0 {
		b.page.WriteByte('\n')
	}
	b.page.Write(text)
	return os.WriteFile(filepath.Join(b.results, b.day+".md"), b.page.Bytes(), 0o644)
}
