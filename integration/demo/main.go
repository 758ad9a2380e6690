// Command demo shows the snapshotter at work on a Debian machine, as root, without touching an installed containerd. In
// a temporary directory it starts a registry, a containerd and the daemon. It pulls an image and its rebuild some
// months later, runs a container on each, shows the files they share, and removes everything again.
//
//	go run ./integration/demo [path of ostree-snapshotter, default bin/ostree-snapshotter]
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/stack"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/testhost"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	err := run(ctx, os.Stdout, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "demo: error: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer, args []string) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("needs root: containers are mounted and run")
	}
	binary := "bin/ostree-snapshotter"
	if len(args) > 0 {
		binary = args[0]
	}
	if binary, err = filepath.Abs(binary); err != nil {
		return err
	}
	if _, err := os.Stat(binary); err != nil {
		return fmt.Errorf("find the daemon (make build makes it): %w", err)
	}
	d := &demo{out: out, binary: binary}
	defer func() { err = errors.Join(err, d.close()) }()
	if err := d.prepare(ctx); err != nil {
		return err
	}
	return d.show(ctx)
}

// A demo is one run of the command.
type demo struct {
	out      io.Writer
	binary   string
	registry *stack.Registry
	stack    *stack.Stack
	first    string // names to pull
	second   string
}

func (d *demo) say(format string, args ...any) { fmt.Fprintf(d.out, format+"\n", args...) }

func (d *demo) prepare(ctx context.Context) error {
	d.say("# Preparing: Debian packages, containerd, two images (a few minutes the first time)")
	if err := testhost.InstallPackages(ctx, os.Stderr); err != nil {
		return err
	}
	tools, err := testhost.BuildTools(ctx, os.Stderr)
	if err != nil {
		return err
	}
	if d.registry, err = stack.StartRegistry(ctx, tools); err != nil {
		return err
	}
	if d.first, err = d.registry.Push(ctx, os.Stderr, "base:1"); err != nil {
		return err
	}
	if d.second, err = d.registry.Push(ctx, os.Stderr, "base:2"); err != nil {
		return err
	}
	d.stack, err = stack.Start(ctx, stack.Options{Tools: tools, Snapshotter: stack.Ostree, Binary: d.binary})
	return err
}

func (d *demo) show(ctx context.Context) error {
	d.say("\n# Debian 12 with Python, Perl and Git as first released ...")
	if err := d.pull(ctx, d.first); err != nil {
		return err
	}
	d.say("\n# ... and the same packages with all updates")
	if err := d.pull(ctx, d.second); err != nil {
		return err
	}
	d.say("\n# What the two share")
	if err := d.command(ctx, 0, d.binary, "df", "--root", d.stack.Root, "--daemon-address", d.stack.Daemon, "--address", d.stack.Containerd); err != nil {
		return err
	}
	d.say("\n# The store is an ostree repository like any other")
	repo := "--repo=" + filepath.Join(d.stack.Root, "repo")
	if err := d.command(ctx, 0, "ostree", "refs", "--list", repo); err != nil {
		return err
	}
	if err := d.command(ctx, 1, "ostree", "fsck", repo); err != nil {
		return err
	}
	d.say("\n# Without images nothing is left of it")
	for _, ref := range []string{d.first, d.second} {
		if _, err := d.stack.Ctr(ctx, "default", "images", "rm", "--sync", ref); err != nil {
			return err
		}
	}
	return d.objectsGone(ctx)
}

// pull pulls an image and runs a container on it.
func (d *demo) pull(ctx context.Context, ref string) error {
	start := time.Now()
	d.say("$ ctr images pull --snapshotter ostree %s", ref)
	if err := d.stack.Pull(ctx, "default", ref); err != nil {
		return err
	}
	d.say("pulled and unpacked in %.1f s", time.Since(start).Seconds())
	const script = `import sys, numpy, subprocess
print("Python", sys.version.split()[0], "numpy", numpy.__version__, subprocess.getoutput("apt --version"))`
	d.say("$ ctr run --rm --snapshotter ostree %s demo python3 -c 'import sys, numpy ...'", ref)
	out, err := d.stack.RunContainer(ctx, "default", ref, fmt.Sprintf("demo-%d", start.UnixNano()), "/usr/bin/python3", "-c", script)
	if err != nil {
		return err
	}
	d.say("%s", strings.TrimSpace(out))
	return nil
}

// command runs a program, and shows the command and its output, or the last lines of it if last is not 0.
func (d *demo) command(ctx context.Context, last int, name string, args ...string) error {
	d.say("$ %s %s", filepath.Base(name), strings.Join(args, " "))
	out, err := d.stack.Run(ctx, name, args...)
	if err != nil {
		return err
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if last > 0 {
		lines = lines[max(0, len(lines)-last):]
	}
	d.say("%s", strings.Join(lines, "\n"))
	return nil
}

// objectsGone waits until containerd's garbage collection has removed the objects from the repository.
func (d *demo) objectsGone(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		objects, err := filepath.Glob(filepath.Join(d.stack.Root, "repo/objects/??/*"))
		if err != nil {
			return err
		}
		if len(objects) == 0 {
			d.say("0 objects in the repository")
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d objects are left in the repository: %w", len(objects), ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// close stops and removes everything.
func (d *demo) close() error {
	var errs []error
	if d.stack != nil {
		errs = append(errs, d.stack.Stop())
	}
	if d.registry != nil {
		errs = append(errs, d.registry.Stop())
	}
	return errors.Join(errs...)
}
