package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/kargs"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/oscommit"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
)

// deployFlags are the flags of the commands that deploy an image.
type deployFlags struct {
	systemFlags
	daemonFlags
	imageFlags
	init       bool
	stage      bool
	retain     bool
	noPrune    bool
	earlyPrune bool
	noSELinux  bool
	epoch      epochValue
	verbose    bool
	tries      int
	kargs      kargs.Edits
	policy     policyFlags
	verifier   *verifier
	untried    bool // do nothing if the image failed to boot before
}

// addDeploy adds the flags common to the commands that deploy an image.
func (f *deployFlags) addDeploy(c *cli, cmd *cobra.Command) {
	f.addChange(cmd)
	f.addStateroot(cmd, "deploy into the stateroot `NAME` instead of the one that runs or boots")
	fl := cmd.Flags()
	fl.BoolVar(&f.stage, "stage", false, "finalize when the system shuts down, with /etc as it is then")
	fl.BoolVar(&f.retain, "retain", false, "keep all other deployments")
	fl.IntVar(&f.tries, "boot-tries", 0, "fall back to the previous deployment if this one does not boot well in `N` tries")
	fl.BoolVar(&f.earlyPrune, "early-prune", false,
		"if /boot is full, first remove the deployments that go anyway, such as the rollback")
	fl.BoolVar(&f.noPrune, "no-prune", false, "leave unneeded objects in the repository")
	fl.BoolVar(&f.noSELinux, "no-selinux", false, "give files no SELinux labels, even if the image has a policy")
	f.epoch.addEpoch(cmd)
	fl.BoolVarP(&f.verbose, "verbose", "v", false, "list the files of the image that a deployment cannot have")
	c.jsonFlag(cmd)
	f.addDaemon(cmd)
	f.addImage(cmd)
	f.policy.addPolicy(cmd)
}

// addKargs adds the flags that edit kernel arguments to a command that deploys an image.
func addKargs(cmd *cobra.Command, edits *kargs.Edits) { addKargEdits(cmd, edits, "karg", "karg-") }

// addKargEdits adds the flags that edit kernel arguments: set, and the others with a prefix.
func addKargEdits(cmd *cobra.Command, edits *kargs.Edits, set, prefix string) {
	fl := cmd.Flags()
	fl.StringArrayVar(&edits.Set, set, nil, "set the kernel argument `KEY[=VALUE]` in place of all with this key; repeatable")
	fl.StringArrayVar(&edits.Append, prefix+"append", nil, "add the kernel argument `KEY[=VALUE]`; repeatable")
	fl.StringArrayVar(&edits.Replace, prefix+"replace", nil, "replace a value: `KEY=VALUE`, or KEY=OLD=NEW; repeatable")
	fl.StringArrayVar(&edits.Delete, prefix+"delete", nil, "remove the kernel argument `KEY[=VALUE]`; repeatable")
}

// deployStatuses are the exit statuses of commands that deploy an image.
var deployStatuses = []int{
	exitPartly, exitNoRepo, exitLocked, exitCorrupt, exitNoSysroot, exitNotBootable, exitConflict, exitNoImage, exitRefused,
	exitInterrupted,
}

func (c *cli) deployCommand() *cobra.Command {
	var f deployFlags
	var r registryFlags
	cmd := &cobra.Command{
		Use:   "deploy IMAGE",
		Short: "Make a pulled image the system that boots next",
		Long: `Make a bootable deployment of an image that was pulled with this snapshotter, and boot it next. The deployment that boots
now stays, to fall back to. The image's files are hard links to the snapshotter's, if both are on one file system. /etc is
merged: local changes are kept.

The kernel arguments are those of the deployment that boots now, with the changes of the image's /usr/lib/bootc/kargs.d,
then those of --karg and related flags. IMAGE is the name in "ctr images ls"; "ostree-snapshotter upgrade" pulls it again.

The image must have the signatures that the signature policy of the running system demands, and that its reference does:
"ostree-image-signed:docker://NAME" or "ostree-remote-registry:REMOTE:NAME". A plain name keeps the demand of the
deployment before; "ostree-unverified-registry:NAME" has none.` +
			exitHelp(deployStatuses...),
		Args:              oneArg("IMAGE"),
		ValidArgsFunction: c.completeImage(&f.imageFlags),
		RunE: func(cmd *cobra.Command, args []string) error {
			f.verifier = c.newVerifier(cmd, &verifyFlags{policyFlags: f.policy, registryFlags: r})
			return c.deploy(cmd.Context(), &f, args[0])
		},
	}
	f.addDeploy(c, cmd)
	addKargs(cmd, &f.kargs)
	r.addRegistry(cmd)
	cmd.Flags().BoolVar(&f.init, "init", false, "create sysroot and stateroot if they do not exist")
	return cmd
}

func (c *cli) deploy(ctx context.Context, f *deployFlags, image string) (err error) {
	if err := f.check(); err != nil {
		return err
	}
	src, err := c.openImages(&f.daemonFlags, &f.imageFlags)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.close()) }()
	if f.init {
		missing, err := deploy.Init(f.sysroot, c.options(&f.systemFlags), true)
		if missing && f.dryRun {
			return c.wouldInit(ctx, src, f, image)
		}
		if missing {
			if _, err = checkFirst(ctx, src, f, image); err == nil {
				_, err = deploy.Init(f.sysroot, c.options(&f.systemFlags), false)
			}
		}
		if err != nil {
			return err
		}
	}
	return c.lockSystem(ctx, &f.systemFlags, func(s *deploy.System, st *sysroot.State) error {
		if f.init {
			stateroot, missing, err := s.EnsureStateroot(f.stateroot, true)
			if missing && f.dryRun {
				return c.wouldInit(ctx, src, f, image)
			}
			if missing {
				if _, err = checkFirst(ctx, src, f, image); err == nil {
					stateroot, _, err = s.EnsureStateroot(f.stateroot, false)
				}
			}
			if f.stateroot = stateroot; err != nil {
				return err
			}
		}
		ref, err := imageReference(s, st, f, image)
		if err != nil {
			return err
		}
		return c.deployImage(ctx, src, s, st, f, ref)
	})
}

// imageReference returns the reference that the image of a command line stands for.
func imageReference(s *deploy.System, st *sysroot.State, f *deployFlags, image string) (deploy.Reference, error) {
	from, _, err := s.UpgradeFrom(st, f.stateroot)
	if err != nil && !is(err, deploy.ErrNothingDeployed, deploy.ErrNotFromImage, deploy.ErrTransport) {
		return deploy.Reference{}, err
	}
	return deploy.NewReference(image, from)
}

// wouldInit ends "deploy --init --dry-run" without a sysroot or stateroot to plan with.
func (c *cli) wouldInit(ctx context.Context, src *imageSource, f *deployFlags, image string) error {
	manifest, err := checkFirst(ctx, src, f, image)
	if err != nil {
		return err
	}
	return c.wouldDeploy(&sysroot.State{}, manifest, fmt.Sprintf("%s gets the stateroot %s, and %s is the first deployment in it",
		f.sysroot, cmp.Or(f.stateroot, deploy.DefaultStateroot), image))
}

// checkFirst asks the policy about the first image of a sysroot or stateroot, before that is made. It returns the manifest.
func checkFirst(ctx context.Context, src *imageSource, f *deployFlags, image string) (digest.Digest, error) {
	ref, err := deploy.NewReference(image, nil)
	if err != nil {
		return "", err
	}
	img, err := src.resolve(ctx, ref.Name)
	if err != nil {
		return "", err
	}
	f.verifier.keepIn(src, f.dryRun)
	return img.ManifestDigest, f.verifier.check(ctx, ref, img.ManifestDigest, img.Target)
}

// wouldDeploy ends a dry run that has no plan.
func (c *cli) wouldDeploy(st *sysroot.State, manifest digest.Digest, what string) error {
	r := unchanged(st, true)
	r.Changed = true
	r.Image = newImageReport(manifest, nil)
	r.Notes = append(r.Notes, what)
	if c.json {
		return c.writeJSON(r)
	}
	return c.println(what)
}

// check finds wrong flags before anything is done.
func (f *deployFlags) check() error {
	if f.tries < 0 || f.tries > maxTries {
		return usagef("--boot-tries %d: it can be up to %d", f.tries, maxTries)
	}
	if f.stage && f.tries > 0 {
		return usagef("--stage and --boot-tries: boots of a staged deployment cannot be counted")
	}
	return f.kargs.Check()
}

// maxTries is libostree's limit of boot tries.
const maxTries = 5

// deployImage deploys an image of containerd's, or with --dry-run prints the plan.
func (c *cli) deployImage(
	ctx context.Context, src *imageSource, s *deploy.System, st *sysroot.State, f *deployFlags, ref deploy.Reference,
) (err error) {
	img, err := src.resolve(ctx, ref.Name)
	if err != nil {
		return err
	}
	f.verifier.keepIn(src, f.dryRun)
	bar := c.newProgress("storing files")
	p, err := s.Plan(ctx, st, src.store.Layers, deploy.Request{
		Image: img, Reference: &ref, Verifier: f.verifier, Stateroot: f.stateroot, Kargs: f.kargs,
		Retain: f.retain, Stage: f.stage, NoSELinux: f.noSELinux, Epoch: f.epoch.epoch,
		NoPrune: f.noPrune, EarlyPrune: f.earlyPrune, Tries: f.tries, Untried: f.untried,
		Promote: deploy.PromoteOptions{DryRun: f.dryRun, Progress: bar.stored},
	})
	bar.stop()
	if p == nil {
		if errors.Is(err, deploy.ErrCannotStage) {
			err = fmt.Errorf("--stage: %w", err)
		}
		return refused(s, st, f, ref.Name, img.ManifestDigest, err)
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	switch {
	case p.Same != nil:
		return c.noChange(st, &f.systemFlags, fmt.Sprintf("%s is what boots next", deploy.Title(p.Same)))
	case p.Plan == nil:
		return c.noChange(st, &f.systemFlags, fmt.Sprintf("%s: %s", ref.Name, failedUpdate))
	}
	c.dropped(p.OS.Dropped, f.verbose)
	var failed error
	if !f.dryRun {
		failed = p.Execute(ctx)
	}
	r := newChangeReport(p.Plan, f.dryRun)
	r.Image = newImageReport(img.ManifestDigest, p.OS.Dropped)
	return errors.Join(c.executed(r, p.Plan, deployed(p.Plan), failed), err) // a plan with conflicts is printed too
}

// dropped reports the files of an image that its deployment does not have.
func (c *cli) dropped(list []oscommit.Dropped, verbose bool) {
	if verbose {
		for _, d := range list {
			c.note("%s %s: dropped", deploy.Printable(d.Path), d.Reason)
		}
		return
	}
	if len(list) > 0 {
		c.note("dropped %d of the image's files and directories, which a deployment cannot have; -v lists them", len(list))
	}
}
