package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/kargs"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/oscommit"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/plugin/containerd"
)

// deployFlags are those of the commands that make a deployment of an image.
type deployFlags struct {
	systemFlags
	init      bool
	stage     bool
	retain    bool
	noPrune   bool
	noSELinux bool
	verbose   bool
	tries     int
	kargs     kargs.Edits
	untried   bool // nothing is deployed if the image has failed to boot before
}

// addDeploy gives a command the flags that all have that deploy an image.
func (f *deployFlags) addDeploy(c *cli, cmd *cobra.Command) {
	f.addChange(cmd)
	f.addStateroot(cmd, "deploy into the stateroot `NAME` instead of the one that runs or boots")
	fl := cmd.Flags()
	fl.BoolVar(&f.stage, "stage", false, "finish when the system shuts down, with /etc as it is then")
	fl.BoolVar(&f.retain, "retain", false, "keep all deployments that there are")
	fl.IntVar(&f.tries, "boot-tries", 0, "fall back to what booted before if this does not boot well in `N` tries")
	fl.BoolVar(&f.noPrune, "no-prune", false, "leave objects in the repository that nothing needs any more")
	fl.BoolVar(&f.noSELinux, "no-selinux", false, "deploy an image with an SELinux policy, though files get no labels")
	fl.BoolVarP(&f.verbose, "verbose", "v", false, "name each file of the image that a deployment does not have")
	c.jsonFlag(cmd)
	c.daemonFlag(cmd)
	c.containerdFlags(cmd)
	c.imageNamespaceFlag(cmd)
}

// addKargs adds the flags that edit kernel arguments to a command that deploys an image.
func addKargs(cmd *cobra.Command, edits *kargs.Edits) { addKargEdits(cmd, edits, "karg", "karg-") }

// addKargEdits adds the flags that edit kernel arguments: one to set them, the others with a prefix.
func addKargEdits(cmd *cobra.Command, edits *kargs.Edits, set, prefix string) {
	fl := cmd.Flags()
	fl.StringArrayVar(&edits.Set, set, nil, "have the kernel argument `KEY[=VALUE]` instead of all with this key; repeatable")
	fl.StringArrayVar(&edits.Append, prefix+"append", nil, "have the kernel argument `KEY[=VALUE]` beside others; repeatable")
	fl.StringArrayVar(&edits.Replace, prefix+"replace", nil, "replace the value: `KEY=VALUE`, or KEY=OLD=NEW; repeatable")
	fl.StringArrayVar(&edits.Delete, prefix+"delete", nil, "remove the kernel argument `KEY[=VALUE]`; repeatable")
}

// imageNamespaceFlag gives a command the flag for the namespace that its image is in.
func (c *cli) imageNamespaceFlag(cmd *cobra.Command) {
	namespace := os.Getenv("CONTAINERD_NAMESPACE")
	if namespace == "" {
		namespace = namespaces.Default
	}
	cmd.Flags().StringVarP(&c.imageNamespace, "namespace", "n", namespace,
		"`NAMESPACE` of containerd that has the image [$CONTAINERD_NAMESPACE]")
}

// deployStatuses are the exit statuses of commands that deploy an image.
var deployStatuses = []int{
	exitPartly, exitNoRepo, exitLocked, exitCorrupt, exitNoSysroot, exitNotBootable, exitConflict, exitNoImage, exitInterrupted,
}

func (c *cli) deployCommand() *cobra.Command {
	var f deployFlags
	cmd := &cobra.Command{
		Use:   "deploy IMAGE",
		Short: "Make an image that was pulled the system that boots next",
		Long: `Make a bootable deployment of an image that was pulled with this snapshotter, and have it boot next. What boots now is
kept to fall back to. Files of the image are hard links of those that the snapshotter has, if both are on one file
system. /etc is merged: what was changed there since the image was deployed stays as it is.

Kernel arguments are those of the deployment that boots now, changed as the image's /usr/lib/bootc/kargs.d has changed and
as --karg and its like say. IMAGE is what "ctr images ls" calls it; "ostree-snapshotter upgrade" asks for it again.` +
			exitHelp(deployStatuses...),
		Args:              oneArg("IMAGE"),
		ValidArgsFunction: c.completeImage,
		RunE:              func(cmd *cobra.Command, args []string) error { return c.deploy(cmd.Context(), &f, args[0]) },
	}
	f.addDeploy(c, cmd)
	addKargs(cmd, &f.kargs)
	cmd.Flags().BoolVar(&f.init, "init", false, "make sysroot and stateroot if they are not there yet")
	return cmd
}

func (c *cli) deploy(ctx context.Context, f *deployFlags, image string) (err error) {
	if err := f.check(); err != nil {
		return err
	}
	src, err := c.openImages()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.close()) }()
	if f.init {
		missing, err := deploy.Init(f.sysroot, c.options(&f.systemFlags), f.dryRun)
		if err != nil {
			return err
		}
		if missing {
			return c.wouldInit(ctx, src, f, image)
		}
	}
	return c.lockSystem(ctx, &f.systemFlags, func(s *deploy.System, st *sysroot.State) error {
		if f.init {
			var missing bool
			if f.stateroot, missing, err = s.EnsureStateroot(f.stateroot, f.dryRun); err != nil {
				return err
			}
			if missing {
				return c.wouldInit(ctx, src, f, image)
			}
		}
		return c.deployImage(ctx, src, s, st, f, image)
	})
}

// wouldInit says what "deploy --init --dry-run" can say before there is a stateroot to plan with.
func (c *cli) wouldInit(ctx context.Context, src *imageSource, f *deployFlags, image string) error {
	img, err := c.resolveImage(ctx, src.client, src.store, image)
	if err != nil {
		return err
	}
	return c.wouldDeploy(&sysroot.State{}, img.ManifestDigest, fmt.Sprintf("%s gets the stateroot %s, and %s is the first deployment in it",
		f.sysroot, cmp.Or(f.stateroot, deploy.DefaultStateroot), image))
}

// wouldDeploy is the end of a dry run that cannot say more than that it would deploy an image.
func (c *cli) wouldDeploy(st *sysroot.State, manifest digest.Digest, what string) error {
	r := unchanged(st, true)
	r.Changed = true
	r.Image = newImageReport(manifest, nil)
	r.Notes = append(r.Notes, what)
	if c.json {
		return c.writeJSON(r)
	}
	_, err := fmt.Fprintln(c.stdout, what)
	return err
}

// check finds what is wrong with flags before anything is done.
func (f *deployFlags) check() error {
	if f.tries < 0 || f.tries > maxTries {
		return usagef("--boot-tries %d: it can be up to %d", f.tries, maxTries)
	}
	if f.stage && f.tries > 0 {
		return usagef("--stage and --boot-tries: boots of a staged deployment cannot be counted")
	}
	return f.kargs.Check()
}

// maxTries is how often a deployment can be tried: libostree's bound.
const maxTries = 5

// imageSource is where images come from: the store that has their files, and containerd that knows their names.
type imageSource struct {
	store  *store
	client *containerd.Client
}

func (c *cli) openImages() (*imageSource, error) {
	s, err := c.openStore()
	if err != nil {
		return nil, err
	}
	client, err := c.dialContainerd(s.cfg)
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	return &imageSource{store: s, client: client}, nil
}

func (s *imageSource) close() error { return errors.Join(s.client.Close(), s.store.close()) }

// deployImage makes a deployment of an image that containerd has, or with --dry-run says what that would do.
func (c *cli) deployImage(
	ctx context.Context, src *imageSource, s *deploy.System, st *sysroot.State, f *deployFlags, image string,
) (err error) {
	img, err := c.resolveImage(ctx, src.client, src.store, image)
	if err != nil {
		return err
	}
	bar := c.newProgress("storing files")
	p, err := s.Plan(ctx, st, src.store.Layers, deploy.Request{
		Image: img, Stateroot: f.stateroot, Kargs: f.kargs, Retain: f.retain, Stage: f.stage, NoSELinux: f.noSELinux,
		NoPrune: f.noPrune, Tries: f.tries, Untried: f.untried,
		Promote: deploy.PromoteOptions{DryRun: f.dryRun, Progress: bar.stored},
	})
	bar.stop()
	if p == nil {
		if errors.Is(err, deploy.ErrCannotStage) {
			err = fmt.Errorf("--stage: %w", err)
		}
		return err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	switch {
	case p.Same != nil:
		return c.noChange(st, &f.systemFlags, fmt.Sprintf("%s is what boots next", deploy.Title(p.Same)))
	case p.Plan == nil:
		return c.noChange(st, &f.systemFlags, fmt.Sprintf("%s: %s", image, failedUpdate))
	}
	c.dropped(p.OS.Dropped, f.verbose)
	var failed error
	if !f.dryRun {
		failed = p.Execute(ctx)
	}
	r := newChangeReport(p.Plan, f.dryRun)
	r.Image = newImageReport(img.ManifestDigest, p.OS.Dropped)
	return errors.Join(c.executed(r, p.Plan, deployed(p.Plan), failed), err) // a plan with conflicts can be looked at
}

// dropped says what an image has and a deployment of it has not.
func (c *cli) dropped(list []oscommit.Dropped, verbose bool) {
	if verbose {
		for _, d := range list {
			c.note("%s %s: dropped", deploy.Printable(d.Path), d.Reason)
		}
		return
	}
	if len(list) > 0 {
		c.note("dropped %d of the image's files and directories, which a deployment cannot have; -v names them", len(list))
	}
}

// completeImage offers a shell the names of containerd's images.
func (c *cli) completeImage(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), completeTime)
	defer cancel()
	cfg, err := c.loadConfig()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	client, err := c.dialContainerd(cfg)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	defer client.Close()
	names, err := client.ImageNames(ctx, c.imageNamespace)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
