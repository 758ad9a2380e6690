package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/log"
	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/ostree-snapshotter/ostree-snapshotter/bench/pull"
	"github.com/ostree-snapshotter/ostree-snapshotter/bench/pull/node"
	"github.com/ostree-snapshotter/ostree-snapshotter/bench/pull/probe"
	benchreport "github.com/ostree-snapshotter/ostree-snapshotter/bench/pull/report"
	"github.com/ostree-snapshotter/ostree-snapshotter/bench/pull/workload"
	"github.com/ostree-snapshotter/ostree-snapshotter/plugin/containerd"
)

// benchOptions are the flags of "bench".
type benchOptions struct {
	daemonFlags
	containerdFlags
	images       []string
	snapshotters []string
	rounds       int
	out          string
	layouts      string
	tmp          string
	fileSystem   string
	diskSize     string
	containerd   string
	verbose      bool
}

func (c *cli) benchCommand() *cobra.Command {
	var o benchOptions
	cmd := &cobra.Command{
		Use:   "bench --images NAME|FILE|REF...",
		Short: "Compare the costs of images with several snapshotters",
		Long: `Compare the costs of images with several snapshotters of containerd: the time to unpack, to start the first container and
to remove; blocks and inodes on disk; processor time, memory, and page cache.

--images can be repeated. It takes a built-in workload (` + strings.Join(workload.Names(), ", ") + `), a workload FILE.toml, or an
image: a reference, which is fetched without credentials, or oci:DIR[:TAG], an OCI layout. All measured pulls come from this
machine.

Each run starts a new containerd with one snapshotter, below a temporary directory and on a new file system. Nothing else on
the machine is changed. "containerd", its shim and "runc" are found in $PATH. With -a, a running containerd is measured as it
is configured, in separate namespaces. Images that it already has make the measured ones cheaper.

Snapshotters take turns in each of the --runs rounds. Ratios are formed within a round, to overlayfs if it is measured, else to
the first snapshotter. The report shows medians with 95 % confidence intervals. After each pull, a container lists and hashes
all of its files; if they are not those of the image, the pull is an error and has no figures. A failure is one line, and the
rest is still measured.

With --out, DIR gets report.html, report.md, chart.svg, and report.json, which has every run.` + exitHelp(exitPartly, exitInterrupted),
		Args: knownCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.bench(cmd.Context(), o) },
	}
	f := cmd.Flags()
	f.StringArrayVar(&o.images, "images", nil, "workload `NAME|FILE` or reference of an image to measure; repeatable")
	f.StringSliceVar(&o.snapshotters, "snapshotters", []string{node.Ostree, "overlayfs"}, "comma-separated `LIST` of snapshotters to measure")
	f.IntVar(&o.rounds, "runs", 6, "number of rounds; confidence intervals need at least six")
	f.StringVar(&o.out, "out", "", "write reports to `DIR`, which is created if necessary")
	f.StringVar(&o.layouts, "layouts", "", "`DIR` with the oci: images of a workload, instead of the directory of the workload's file")
	f.StringVar(&o.tmp, "tmp", os.TempDir(), "`DIR` for temporary files, with room for the images with each snapshotter")
	f.StringVar(&o.fileSystem, "filesystem", "ext4", "file system to make for each run: ext4, xfs or btrfs; or none, to use that of --tmp")
	f.StringVar(&o.diskSize, "disk-size", "64GiB", "size of that file system, in a sparse file")
	f.StringVar(&o.containerd, "containerd", "containerd", "containerd `PROGRAM` to start")
	f.StringVarP(&o.address, "address", "a", "", "`SOCKET` of a running containerd to measure, instead of starting one")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "print the result of each run")
	o.addDaemon(cmd)
	c.jsonFlag(cmd)
	cmd.AddCommand(c.benchDedupCommand(), c.benchProbeCommand())
	_ = cmd.RegisterFlagCompletionFunc("images", cobra.FixedCompletions(workload.Names(), cobra.ShellCompDirectiveDefault))
	completeValues(cmd, "snapshotters", node.Known()...)
	completeValues(cmd, "filesystem", "ext4", "xfs", "btrfs", "none")
	return cmd
}

// benchProbeCommand returns the command that runs in the benchmark's containers.
func (c *cli) benchProbeCommand() *cobra.Command {
	return &cobra.Command{
		Use:    pull.ProbeCommand[1] + " nothing|wait|list|evict|read",
		Short:  "List the files of this container; \"bench\" runs it in containers",
		Long:   "List or read the files of this container. \"bench\" runs this command in containers; it has no other use." + exitHelp(),
		Hidden: true,
		RunE:   func(cmd *cobra.Command, args []string) error { return probe.Run(cmd.Context(), c.stdout, args) },
	}
}

func (c *cli) bench(ctx context.Context, o benchOptions) (err error) {
	if err := log.SetLevel("error"); err != nil { // containerd's packages log their work
		return err
	}
	w, err := o.workload()
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	nodes, err := c.benchNodes(o, self)
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return withHint(errors.New("measure images: must be root"), "containers are mounted and run; try again as root")
	}
	tmp, err := os.MkdirTemp(o.tmp, "osb")
	if err != nil {
		return fmt.Errorf("make temporary directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	fetching := c.newProgress("fetching images:")
	images, failed, err := pull.Find(containerd.Silent(ctx), w, filepath.Join(tmp, "images"), fetching.update)
	fetching.stop()
	if err != nil {
		return err
	}
	bar := c.newProgress("measuring, runs:")
	r, err := pull.Run(ctx, pull.Options{
		Workload: w, Images: images, Failures: failed, Snapshotters: o.snapshotters, Rounds: o.rounds,
		Nodes: nodes, Self: self, Version: buildVersion().String(),
		Progress: func(done, total int, what string) {
			if o.verbose {
				bar.stop()
				c.note("%d of %d: %s", done, total, what)
				return
			}
			bar.update(int64(done), int64(total))
		},
	})
	bar.stop()
	if err != nil {
		return err
	}
	return errors.Join(c.showBench(r, o.out), benchError(r))
}

// workload returns the images to measure.
func (o benchOptions) workload() (*workload.Workload, error) {
	if len(o.images) == 0 {
		return nil, withHint(usagef("\"ostree-snapshotter bench\" needs images to measure"),
			"--images takes one of %s, a workload FILE.toml, or a reference", strings.Join(workload.Names(), ", "))
	}
	w, err := workload.Join(o.images)
	if err != nil {
		return nil, withStatus(exitUsage, err)
	}
	layouts := o.layouts
	if layouts == "" && strings.HasSuffix(o.images[0], ".toml") {
		layouts = filepath.Dir(o.images[0])
	}
	if layouts != "" {
		w.Resolve(layouts)
	}
	return w, nil
}

// benchNodes returns the nodes to measure on. It refuses flags that do not fit.
func (c *cli) benchNodes(o benchOptions, self string) (pull.Starter, error) {
	if o.rounds < 1 || o.rounds > maxRounds {
		return nil, usagef("--runs is %d, want 1 to %d", o.rounds, maxRounds)
	}
	names := slices.Clone(o.snapshotters)
	slices.Sort(names)
	if len(names) == 0 || len(slices.Compact(names)) < len(o.snapshotters) {
		return nil, usagef("--snapshotters names none, or one twice")
	}
	if o.address != "" {
		cfg, err := c.loadConfig()
		if err != nil {
			return nil, err
		}
		return node.Existing{Address: o.address, Daemon: cmp.Or(o.daemon, cfg.Address)}, nil
	}
	for _, name := range o.snapshotters {
		if !slices.Contains(node.Known(), name) {
			return nil, withHint(usagef("snapshotter %q is not known", name),
				"a containerd of our own can have %s; with -a a running one is measured", strings.Join(node.Known(), ", "))
		}
	}
	p := node.Private{Dir: o.tmp, FileSystem: o.fileSystem, Self: self}
	if p.FileSystem == "none" {
		p.FileSystem = ""
	} else if !node.FileSystem(p.FileSystem) {
		return nil, usagef("--filesystem is %q, want ext4, xfs, btrfs or none", o.fileSystem)
	}
	size, err := humanize.ParseBytes(o.diskSize)
	if err != nil || size < minDisk || size > maxDisk {
		return nil, usagef("--disk-size is %q, want a size like 64GiB, of %s to %s", o.diskSize, humanize.IBytes(minDisk), humanize.IBytes(maxDisk))
	}
	p.DiskSize = int64(size)
	if p.Containerd, err = exec.LookPath(o.containerd); err != nil {
		return nil, withHint(fmt.Errorf("find containerd: %w", err), "--containerd names the program, or -a a containerd that runs")
	}
	return p, nil
}

// Bounds of the flags.
const (
	maxRounds = 1000
	minDisk   = 32 << 20
	maxDisk   = 16 << 40
)

// showBench writes a report to standard output, and all forms of it to a directory.
func (c *cli) showBench(r *benchreport.Report, out string) error {
	show := benchreport.WriteText
	if c.json {
		show = benchreport.WriteJSON
	}
	if err := show(c.stdout, r); err != nil {
		return err
	}
	if out == "" {
		return nil
	}
	return pull.WriteReports(out, r)
}

// benchError returns the error of an incomplete benchmark. The report has the details.
func benchError(r *benchreport.Report) error {
	switch {
	case r.Interrupted:
		return errInterrupted
	case len(r.Runs) == 0:
		return benchFailed(r, exitFailed)
	case len(r.Failures) > 0:
		return benchFailed(r, exitPartly)
	}
	return nil
}

func benchFailed(r *benchreport.Report, status int) error {
	var errs []error
	for _, f := range r.Failures {
		errs = append(errs, f.Err())
	}
	return withStatus(status, errors.Join(errs...))
}
