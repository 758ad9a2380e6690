package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"path"
	"runtime"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/bootloader"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/install"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/kargs"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/oscommit"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// installFlags are those of "install".
type installFlags struct {
	stateroot     string
	filesystem    string
	size, espSize sizeValue
	wipe          bool
	dryRun        bool
	noSELinux     bool
	verbose       bool
	kargs         kargs.Edits
}

// installing is one installation.
type installing struct {
	*cli
	flags *installFlags
	store *store
	img   *resolved
	plan  *install.Plan
}

func (c *cli) installCommand() *cobra.Command {
	f := installFlags{espSize: install.DefaultESPSize}
	cmd := &cobra.Command{
		Use:   "install IMAGE DISK",
		Short: "Install an image that was pulled on an empty disk",
		Long: `Make partitions and file systems on a disk, and an image that was pulled with this snapshotter the system that it boots.
DISK is a block device, or a file that is or becomes the image of one. It gets an EFI system partition with systemd-boot,
and a root partition.

A disk that anything is on is refused, and what that is is said: --wipe gives it up. A disk that is in use is always refused.
The partition table is written last: until then the disk counts as empty, also after a failure or an interruption.

IMAGE is what "ctr images ls" calls it; "ostree-snapshotter upgrade" in the installed system asks for it again.` +
			exitHelp(exitNoRepo, exitLocked, exitCorrupt, exitNotBootable, exitNoImage, exitInterrupted),
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 2 {
				return nil
			}
			return withHint(usagef("%q takes two arguments, IMAGE and DISK", cmd.CommandPath()), "\"%s --help\" describes it", cmd.CommandPath())
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 1 {
				return nil, cobra.ShellCompDirectiveDefault // the shell's files
			}
			return c.completeImage(cmd, args, word)
		},
		RunE: func(cmd *cobra.Command, args []string) error { return c.install(cmd.Context(), &f, args[0], args[1]) },
	}
	fl := cmd.Flags()
	fl.StringVar(&f.stateroot, "stateroot", defaultStateroot, "`NAME` of the stateroot that the system gets")
	fl.StringVar(&f.filesystem, "filesystem", install.Filesystems[0], "file system of the root partition: "+strings.Join(install.Filesystems, ", "))
	fl.Var(&f.size, "size", "make DISK an image file of this `SIZE`, or extend it to that: 8G")
	fl.Var(&f.espSize, "esp-size", "`SIZE` of the EFI system partition, which has to hold the kernels of all deployments")
	fl.StringArrayVar(&f.kargs.Set, "karg", nil, "have the kernel argument `KEY[=VALUE]` instead of all with this key; repeatable")
	fl.StringArrayVar(&f.kargs.Append, "karg-append", nil, "have the kernel argument `KEY[=VALUE]` beside others; repeatable")
	fl.StringArrayVar(&f.kargs.Delete, "karg-delete", nil, "remove the kernel argument `KEY[=VALUE]`; repeatable")
	fl.BoolVar(&f.wipe, "wipe", false, "give up what is on the disk")
	fl.BoolVar(&f.dryRun, "dry-run", false, "say what would happen and change nothing")
	fl.BoolVar(&f.noSELinux, "no-selinux", false, "install an image with an SELinux policy, though files get no labels")
	fl.BoolVarP(&f.verbose, "verbose", "v", false, "name each file of the image that a deployment does not have")
	c.daemonFlag(cmd)
	c.containerdFlags(cmd)
	c.imageNamespaceFlag(cmd)
	return cmd
}

func (c *cli) install(ctx context.Context, f *installFlags, image, disk string) (err error) {
	if err := f.kargs.Check(); err != nil {
		return err
	}
	src, err := c.openImages()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.close()) }()
	img, err := c.resolveImage(ctx, src.conn, src.store, image)
	if err != nil {
		return err
	}
	i := &installing{cli: c, flags: f, store: src.store, img: img}
	if i.plan, err = i.newPlan(ctx, disk); err != nil {
		return explainInstall(err)
	}
	if err := i.rehearse(ctx); err != nil {
		return explain(err)
	}
	if f.dryRun {
		_, err := fmt.Fprintf(c.stdout, "%sdeployment: %s, in the stateroot %s\n", i.plan, image, f.stateroot)
		return err
	}
	err = i.plan.Execute(ctx, &install.OS{
		Stateroot: f.stateroot,
		Origin:    newOrigin(nil, image),
		NoSELinux: f.noSELinux,
		Store: func(ctx context.Context, repo *objectstore.Repo) (sum objectstore.Checksum, args kargs.List, err error) {
			sum, args, _, err = i.storeOS(ctx, repo)
			return sum, args, err
		},
	})
	if err != nil {
		return explainInstall(err)
	}
	_, err = fmt.Fprintf(c.stdout, "installed %s on %s\n", image, disk)
	return err
}

// storeOS makes the OS commit in the repository of a sysroot, and returns it with the kernel arguments of its deployment and
// what the image has beyond it.
func (i *installing) storeOS(ctx context.Context, repo *objectstore.Repo) (
	sum objectstore.Checksum, args kargs.List, dropped []oscommit.Dropped, err error,
) {
	os, err := i.promote(ctx, i.store, repo, i.img, false)
	if err != nil {
		return sum, nil, nil, err
	}
	defer func() { err = errors.Join(err, os.release()) }()
	own, err := imageKargs(repo, os.commit)
	if err != nil {
		return sum, nil, nil, withStatus(exitNotBootable, fmt.Errorf("read kernel arguments of the image: %w", err))
	}
	args, err = i.flags.kargs.Apply(i.plan.Kargs().AppendIfMissing(own...))
	return os.commit, args, os.dropped, err
}

// newPlan plans with what the layers say of the image.
func (i *installing) newPlan(ctx context.Context, disk string) (*install.Plan, error) {
	tree, err := i.store.osTree(ctx, i.img)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", i.img.Name, err)
	}
	hasFile := func(name string) bool {
		_, ok := tree.FileSize(name)
		return ok
	}
	const units = "usr/lib/systemd/system/"
	if hasFile(units+"ostree-finalize-staged.service") && !hasFile(units+"ostree-snapshotter-mirror.service") {
		i.note("the image has ostree's unit that finalizes staged deployments, and not ours that tells systemd-boot: " +
			"mask ostree-finalize-staged.service")
	}
	kernel, _ := tree.FileSize(path.Join("usr/lib/modules", tree.Kernel(), "vmlinuz"))
	initramfs, _ := tree.FileSize(path.Join("usr/lib/modules", tree.Kernel(), "initramfs.img"))
	const block = 4096 // of all file systems that it can be
	opts := install.Options{
		Size: int64(i.flags.size), ESPSize: int64(i.flags.espSize), Filesystem: i.flags.filesystem, Wipe: i.flags.wipe,
		Arch: runtime.GOARCH, Need: tree.Allocated(block), ESPNeed: kernel + initramfs, OSLoader: install.HasLoader(runtime.GOARCH, hasFile),
	}
	if i.newProgress("").w != nil {
		opts.Progress = func(step string) { i.note("%s", step) }
	}
	return install.NewPlan(ctx, disk, opts)
}

// rehearse plans the deployment in a sysroot in the store's tmp/, which is thrown away: what keeps the image from being
// deployed is to be said before the disk is touched.
func (i *installing) rehearse(ctx context.Context) (err error) {
	dir, remove, err := i.store.layers.Scratch("sysroot")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()
	if err := sysroot.Init(dir); err != nil {
		return err
	}
	s, err := sysroot.Open(dir, sysroot.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if err := s.InitStateroot(i.flags.stateroot); err != nil {
		if errors.Is(err, sysroot.ErrInvalid) {
			err = withStatus(exitUsage, err)
		}
		return err
	}
	commit, args, dropped, err := i.storeOS(ctx, s.Repo())
	if err != nil {
		return err
	}
	i.dropped(dropped, i.flags.verbose)
	st, err := s.Load(ctx)
	if err != nil {
		return err
	}
	_, err = s.PlanDeploy(ctx, st, sysroot.Request{
		Stateroot: i.flags.stateroot, Commit: commit, Kargs: args, NoSELinux: i.flags.noSELinux,
	})
	return err
}

// explainInstall adds to an error of package install what can be done about it.
func explainInstall(err error) error {
	var missing *install.MissingToolsError
	var space *bootloader.SpaceError
	switch {
	case errors.As(err, &missing):
		return withHint(err, "Debian has them: apt-get install %s", strings.Join(missing.Packages, " "))
	case errors.As(err, &space):
		return withHint(err, "--esp-size makes the EFI system partition larger")
	case errors.Is(err, install.ErrNotEmpty):
		return withHint(err, "if nothing of that is needed, --wipe gives it up")
	case errors.Is(err, install.ErrNoSize):
		return withHint(err, "--size makes it: --size 8G")
	case errors.Is(err, unix.ENOSPC):
		return withHint(err, "the disk, or the file system that the image file is on, has to be larger")
	}
	return explain(err)
}

// sizeValue is a flag for bytes: a number, with K, M, G or T behind it for powers of 1024.
type sizeValue int64

func (v *sizeValue) Set(text string) error {
	number, shift := text, 0
	if i := strings.IndexAny(strings.ToUpper(text), "KMGT"); i >= 0 {
		unit := strings.ToUpper(text[i:])
		if rest := strings.TrimSuffix(strings.TrimSuffix(unit, "B"), "I"); len(rest) != 1 || strings.HasSuffix(unit, "B") != strings.Contains(unit, "I") {
			return fmt.Errorf("%q is not a size such as 8G", text)
		}
		number, shift = text[:i], 10*(1+strings.Index("KMGT", unit[:1]))
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n <= 0 || n > math.MaxInt64>>shift {
		return fmt.Errorf("%q is not a size such as 8G", text)
	}
	*v = sizeValue(n << shift)
	return nil
}

func (v *sizeValue) String() string {
	if *v == 0 {
		return ""
	}
	n, unit := int64(*v), ""
	for _, u := range []string{"K", "M", "G", "T"} {
		if n%1024 != 0 {
			break
		}
		n, unit = n/1024, u
	}
	return strconv.FormatInt(n, 10) + unit
}

func (v *sizeValue) Type() string { return "size" }
