package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
)

// upgradeReport is the output of "upgrade --check --json".
type upgradeReport struct {
	Image     string        `json:"image"`
	Deployed  digest.Digest `json:"deployed_digest,omitempty"` // of the deployment that boots next
	Available digest.Digest `json:"available_digest"`          // in the registry
	Update    bool          `json:"update_available"`
	Failed    bool          `json:"has_failed"` // it was deployed and did not boot: no update
}

func (c *cli) upgradeCommand() *cobra.Command {
	var f deployFlags
	var p pullFlags
	var check bool
	cmd := &cobra.Command{
		Use:   "upgrade",
		Short: "Pull the image of the system again and deploy it if it has changed",
		Long: `Have containerd pull the system's image again, by the name it was deployed by, and deploy it if the name stands for
another image now. Otherwise the system stays as it is, also if the new image was deployed with --boot-tries and failed to
boot.

A new image must have the signatures that the signature policy of the running system demands, and that the deployment's
origin does. They are checked before the pull, by digest: what was checked is what is pulled. A refused image changes
nothing; "ostree-snapshotter status" reports it.

--check only asks the registry, and pulls nothing: the exit status is 0 if there is an update and 77 if there is none.
It does not check signatures: the policy may refuse the update. --dry-run pulls nothing either, checks signatures, and
reports what would happen.` + exitHelp(append([]int{exitNoUpdate}, deployStatuses...)...),
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f.verifier = c.newVerifier(cmd, &verifyFlags{policyFlags: f.policy, registryFlags: p.registryFlags})
			if check {
				return c.checkUpgrade(cmd.Context(), &f, &p)
			}
			return c.upgrade(cmd.Context(), &f, &p)
		},
	}
	f.addDeploy(c, cmd)
	addKargs(cmd, &f.kargs)
	p.addPull(cmd)
	cmd.Flags().BoolVar(&check, "check", false, "only ask the registry whether there is an update")
	return cmd
}

func (c *cli) switchCommand() *cobra.Command {
	var f deployFlags
	var p pullFlags
	cmd := &cobra.Command{
		Use:   "switch IMAGE",
		Short: "Deploy another image, and upgrade from it from now on",
		Long: `Deploy another image than the system's present one. containerd pulls it first if it does not have it. From then on
"ostree-snapshotter upgrade" pulls it again. Changes of /etc, and /var, stay. Signatures are demanded as by
"ostree-snapshotter deploy".` + exitHelp(deployStatuses...),
		Args:              oneArg("IMAGE"),
		ValidArgsFunction: c.completeImage(&f.imageFlags),
		RunE: func(cmd *cobra.Command, args []string) error {
			f.verifier = c.newVerifier(cmd, &verifyFlags{policyFlags: f.policy, registryFlags: p.registryFlags})
			return c.switchTo(cmd.Context(), &f, &p, args[0])
		},
	}
	f.addDeploy(c, cmd)
	addKargs(cmd, &f.kargs)
	p.addPull(cmd)
	return cmd
}

// update asks the registry whether an image differs from a deployed one.
func (c *cli) update(
	ctx context.Context, s *deploy.System, st *sysroot.State, p *pullFlags, from *sysroot.Deployment, image string,
) (*deploy.Update, error) {
	available, err := p.Manifest(ctx, image)
	if err != nil {
		return nil, err
	}
	return s.Update(st, from, available)
}

const failedUpdate = "it was deployed and has failed to boot; \"ostree-snapshotter deploy\" tries it again"

func (c *cli) checkUpgrade(ctx context.Context, f *deployFlags, p *pullFlags) error {
	return c.viewSystem(ctx, &f.systemFlags, func(s *deploy.System, st *sysroot.State) error {
		from, ref, err := s.UpgradeFrom(st, f.stateroot)
		if err != nil {
			return err
		}
		image := ref.Name
		u, err := c.update(ctx, s, st, p, from, image)
		if err != nil {
			return err
		}
		switch {
		case c.json:
			err = c.writeJSON(upgradeReport{image, u.Deployed, u.Available, u.Wanted(), u.Failed})
		case u.Wanted():
			err = c.println(fmt.Sprintf("update of %s: %s", image, u.Available))
		case u.Failed:
			err = c.println(fmt.Sprintf("no update of %s: %s: %s", image, u.Available, failedUpdate))
		default:
			err = c.println("no update of " + image)
		}
		if err == nil && !u.Wanted() {
			err = withStatus(exitNoUpdate, errQuiet)
		}
		return err
	})
}

func (c *cli) upgrade(ctx context.Context, f *deployFlags, p *pullFlags) (err error) {
	f.untried = true
	if err := f.check(); err != nil {
		return err
	}
	src, err := c.openImages(&f.daemonFlags, &f.imageFlags)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.close()) }()
	return c.lockSystem(ctx, &f.systemFlags, func(s *deploy.System, st *sysroot.State) error {
		_, ref, err := s.UpgradeFrom(st, f.stateroot)
		if err != nil {
			return err
		}
		return c.pullAndDeploy(ctx, src, s, st, f, p, ref)
	})
}

// pullAndDeploy pulls the image that a reference stands for now, after the signature policy has accepted it, and deploys it.
func (c *cli) pullAndDeploy(
	ctx context.Context, src *imageSource, s *deploy.System, st *sysroot.State, f *deployFlags, p *pullFlags, ref deploy.Reference,
) error {
	policy, err := f.verifier.load()
	if err != nil {
		return err
	}
	var manifest, target digest.Digest
	if f.dryRun || policy != nil || ref.Demand == deploy.DemandPolicy {
		if manifest, target, err = p.Target(ctx, ref.Name); err != nil {
			return err
		}
		if err := f.verifier.check(ctx, ref, manifest, target); err != nil {
			return refused(s, st, f, ref.Name, manifest, err)
		}
	}
	if f.dryRun {
		return c.planPull(ctx, src, s, st, f, ref, manifest)
	}
	if err := c.pull(ctx, src, p, ref.Name, target); err != nil {
		return err
	}
	return c.deployImage(ctx, src, s, st, f, ref)
}

// planPull prints what pulling and deploying an image would do. If the registry's image is here already, that includes
// the plan.
func (c *cli) planPull(ctx context.Context, src *imageSource, s *deploy.System, st *sysroot.State, f *deployFlags, ref deploy.Reference, manifest digest.Digest) error {
	image := ref.Name
	img, err := src.resolve(ctx, image)
	if err == nil && img.ManifestDigest == manifest {
		return c.deployImage(ctx, src, s, st, f, ref)
	}
	if err != nil && statusOf(err) != exitNoImage {
		return err
	}
	return c.wouldDeploy(st, manifest,
		fmt.Sprintf("%s would be pulled: %s; what deploying it changes is known once it is pulled", image, manifest))
}

func (c *cli) switchTo(ctx context.Context, f *deployFlags, p *pullFlags, image string) (err error) {
	if err := f.check(); err != nil {
		return err
	}
	src, err := c.openImages(&f.daemonFlags, &f.imageFlags)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.close()) }()
	return c.lockSystem(ctx, &f.systemFlags, func(s *deploy.System, st *sysroot.State) error {
		ref, err := imageReference(s, st, f, image)
		if err != nil {
			return err
		}
		_, err = src.resolve(ctx, ref.Name)
		switch {
		case err == nil:
			return c.deployImage(ctx, src, s, st, f, ref)
		case statusOf(err) != exitNoImage:
			return err
		}
		return c.pullAndDeploy(ctx, src, s, st, f, p, ref)
	})
}
