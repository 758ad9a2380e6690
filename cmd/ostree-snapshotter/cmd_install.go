package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/install"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/kargs"
)

// installFlags are the flags of "install".
type installFlags struct {
	daemonFlags
	imageFlags
	stateroot     string
	filesystem    string
	size, espSize sizeValue
	wipe          bool
	dryRun        bool
	noSELinux     bool
	epoch         epochValue
	verbose       bool
	kargs         kargs.Edits
	verify        verifyFlags
	verifier      *verifier
}

func (c *cli) installCommand() *cobra.Command {
	f := installFlags{espSize: install.DefaultESPSize}
	cmd := &cobra.Command{
		Use:   "install IMAGE DISK",
		Short: "Install a pulled image on an empty disk",
		Long: `Make partitions and file systems on a disk, and make an image that was pulled with this snapshotter the system that it
boots. DISK is a block device, or a file that is or becomes a disk image. It gets an EFI system partition with
systemd-boot, and a root partition.

A disk with data on it is refused and its contents are named; --wipe erases them. A disk that is in use is always refused.
The partition table is written last: until then the disk counts as empty, also after a failure or an interruption.

The image can choose the root partition's file system, the stateroot and kernel arguments, in the files of bootc-install-config(5):
/usr/lib/bootc/install/*.toml. Flags win.

The image must have the signatures that the signature policy of this host demands, and that its reference does:
"ostree-image-signed:docker://NAME" or "ostree-remote-registry:REMOTE:NAME" with a remote of this host. The installed
system's upgrades keep the demand of the reference.

IMAGE is the name in "ctr images ls"; "ostree-snapshotter upgrade" in the installed system pulls it again.` +
			exitHelp(exitNoRepo, exitLocked, exitCorrupt, exitNotBootable, exitNoImage, exitRefused, exitInterrupted),
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 2 {
				return nil
			}
			return withHint(usagef("%q takes two arguments, IMAGE and DISK", cmd.CommandPath()), "\"%s --help\" describes it", cmd.CommandPath())
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 1 {
				return nil, cobra.ShellCompDirectiveDefault // the shell completes files
			}
			return c.completeImage(&f.imageFlags)(cmd, args, word)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			f.verifier = c.newVerifier(cmd, &f.verify)
			return c.install(cmd.Context(), &f, args[0], args[1])
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&f.stateroot, "stateroot", "", "stateroot `NAME` of the new system, instead of the image's choice or "+deploy.DefaultStateroot)
	fl.StringVar(&f.filesystem, "filesystem", "", "`TYPE` of the root partition's file system, instead of the image's choice or "+
		install.Filesystems[0]+": "+strings.Join(install.Filesystems, ", "))
	fl.Var(&f.size, "size", "create DISK as an image file of this `SIZE`, or extend it to this size: 8G")
	fl.Var(&f.espSize, "esp-size", "`SIZE` of the EFI system partition, which holds the kernels of all deployments")
	addKargs(cmd, &f.kargs)
	fl.BoolVar(&f.wipe, "wipe", false, "erase the contents of the disk")
	fl.BoolVar(&f.dryRun, "dry-run", false, "report what would happen and change nothing")
	fl.BoolVar(&f.noSELinux, "no-selinux", false, "give files no SELinux labels, even if the image has a policy")
	f.epoch.addEpoch(cmd)
	fl.BoolVarP(&f.verbose, "verbose", "v", false, "list the files of the image that a deployment cannot have")
	completeValues(cmd, "filesystem", install.Filesystems...)
	f.addDaemon(cmd)
	f.addImage(cmd)
	f.verify.addVerify(cmd)
	return cmd
}

func (c *cli) install(ctx context.Context, f *installFlags, image, disk string) (err error) {
	if err := f.kargs.Check(); err != nil {
		return err
	}
	ref, err := deploy.NewReference(image, nil)
	if err != nil {
		return err
	}
	image = ref.Name
	src, err := c.openImages(&f.daemonFlags, &f.imageFlags)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.close()) }()
	img, err := src.resolve(ctx, image)
	if err != nil {
		return err
	}
	f.verifier.keepIn(src, f.dryRun)
	opts := install.Options{Size: int64(f.size), ESPSize: int64(f.espSize), Filesystem: f.filesystem, Wipe: f.wipe}
	bar := c.newProgress("storing files")
	if bar.w != nil {
		opts.Progress = func(step string) {
			bar.stop()
			c.note("%s", step)
		}
	}
	promote := deploy.PromoteOptions{Progress: bar.stored}
	if f.epoch.epoch != nil {
		promote.Epoch = *f.epoch.epoch
	}
	p, err := deploy.PlanInstall(ctx, src.store.Layers, disk, deploy.InstallRequest{
		Image: img, Reference: &ref, Verifier: f.verifier, Stateroot: f.stateroot, Kargs: f.kargs, NoSELinux: f.noSELinux, Options: opts,
		Promote: promote,
	})
	bar.stop()
	if err != nil {
		return err
	}
	for _, n := range p.Notes {
		c.note("%s", n)
	}
	c.dropped(p.Dropped, f.verbose)
	if f.dryRun {
		_, err := fmt.Fprintf(c.stdout, "%sdeployment: %s, in the stateroot %s\n", p, image, p.Stateroot)
		return err
	}
	err = p.Execute(ctx)
	bar.stop()
	if err != nil {
		return err
	}
	err = c.println(fmt.Sprintf("installed %s on %s", image, disk))
	return err
}

// sizeValue is a flag for bytes: a number with the suffix K, M, G or T for powers of 1024.
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
