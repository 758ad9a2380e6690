package deploy

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/kargs"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
)

// A Request asks for a deployment of an image.
type Request struct {
	Image     *Image
	Stateroot string      // as for [System.Stateroot]
	Kargs     kargs.Edits // of the kernel arguments that it takes over

	Retain    bool // keep all other deployments
	Stage     bool // finalize it when the system shuts down; needs a booted deployment
	NoSELinux bool // deploy an image with an SELinux policy though files get no labels
	NoPrune   bool // leave objects in the repository that nothing needs any more
	Tries     int  // boots it has to prove itself; 0: boots are not counted
	Untried   bool // do nothing if the image was deployed before and has failed to boot

	Promote PromoteOptions // with DryRun the plan is only to be looked at, and the sysroot stays as it is
}

// A Plan is a deployment of an image that has not been made. Close it.
type Plan struct {
	// Plan is the change of the sysroot; nil if there is nothing to do.
	*sysroot.Plan
	// Same is the deployment that boots next and is what was asked for, if that is why there is nothing to do. Otherwise the
	// image has failed to boot.
	Same *sysroot.Deployment
	// OS is the image's OS commit; nil if the image has failed to boot.
	OS *Promoted

	system *System
	dryRun bool
}

// Plan promotes an image and plans its deployment: in the stateroot that is meant, with the /etc, origin and kernel arguments
// of the deployment that it takes over from. Kernel arguments follow what the image changed in its own
// (usr/lib/bootc/kargs.d), then the edits are made.
//
// Besides the errors of [Promote] and [sysroot.Sysroot.PlanDeploy] there are ErrNoStateroot, ErrManyStateroots, ErrCannotStage,
// ErrNoBootCounting, bootloader.ErrCannotCount, ErrImageKargs and kargs.ErrEdit. After an error the commit has no name any
// more. In a dry run a plan whose merge of /etc has conflicts is returned with the error, to be looked at.
//
// The caller holds the sysroot's lock, or only looks.
func (s *System) Plan(ctx context.Context, st *sysroot.State, layers *layer.Store, r Request) (_ *Plan, err error) {
	stateroot, err := s.Stateroot(st, r.Stateroot)
	if err != nil {
		return nil, err
	}
	if r.Tries > 0 {
		if err := s.checkCounting(); err != nil {
			return nil, err
		}
	}
	if r.Stage && st.Booted == nil {
		return nil, as(ErrCannotStage, fmt.Errorf("only the running system can stage a deployment, and it was not booted from %s", s.Path))
	}
	if r.Untried {
		switch failed, err := s.hasFailed(st, r.Image.ManifestDigest); {
		case err != nil:
			return nil, err
		case failed:
			return &Plan{}, nil
		}
	}
	promoted, err := Promote(ctx, layers, s.Repo(), r.Image, r.Promote)
	if err != nil {
		return nil, err
	}
	p := &Plan{OS: promoted, system: s, dryRun: r.Promote.DryRun}
	if err = p.plan(ctx, st, stateroot, &r); err != nil {
		err = p.forget(ctx, err)
	}
	if err != nil && (!p.dryRun || p.Plan == nil || p.Etc == nil) {
		return nil, errors.Join(err, p.Close())
	}
	return p, err
}

func (p *Plan) plan(ctx context.Context, st *sysroot.State, stateroot string, r *Request) (err error) {
	from := newest(st, stateroot)
	req := sysroot.Request{
		Stateroot: stateroot,
		Commit:    p.OS.Commit,
		Origin:    NewOrigin(from, r.Image.Name),
		Merge:     st.MergeDeployment(stateroot),
		Retain:    r.Retain,
		Stage:     r.Stage,
		NoSELinux: r.NoSELinux,
		NoPrune:   r.NoPrune,
		Tries:     r.Tries,
		From:      p.OS.Repo,
	}
	if st.Booted == nil { // what has failed to boot is not what stays to fall back to
		req.Merge = from
	}
	if req.Kargs, err = p.kargs(from, &r.Kargs); err != nil {
		return err
	}
	if next := bootsNext(st); next != nil && next == from && isSame(next, &req, r.Image.Name) {
		p.Same = next
		return nil
	}
	p.Plan, err = p.system.PlanDeploy(ctx, st, req)
	return err
}

// kargs returns the kernel arguments of a new deployment that takes over from another, which may be nil.
func (p *Plan) kargs(from *sysroot.Deployment, edits *kargs.Edits) (kargs.List, error) {
	now, err := imageKargs(p.OS.Repo, p.OS.Commit)
	if err != nil {
		return nil, as(ErrImageKargs, fmt.Errorf("read kernel arguments of the image: %w", err))
	}
	if from == nil {
		return edits.Apply(kargs.List(nil).AppendIfMissing(now...))
	}
	before, err := imageKargs(p.system.Repo(), from.Commit)
	if err != nil && !errors.Is(err, objectstore.ErrNotExist) { // a system boots without its commit
		return nil, fmt.Errorf("read kernel arguments of the image of %s: %w", Title(from), err)
	}
	return edits.Apply(from.Kargs.Update(before, now))
}

// Execute makes the deployment, as [System.Execute] does. If it fails, the commit has no name any more.
func (p *Plan) Execute(ctx context.Context) error {
	err := p.system.Execute(ctx, p.Plan)
	if err != nil {
		err = p.forget(ctx, err)
	}
	return err
}

// Close lets go of the OS commit.
func (p *Plan) Close() error {
	if p.OS == nil {
		return nil
	}
	return p.OS.Close()
}

// forget takes the name from the OS commit, if it has not become a deployment, so that it can be pruned. It returns err, and
// why that failed.
func (p *Plan) forget(ctx context.Context, err error) error {
	if p.dryRun {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	st, lerr := p.system.Load(ctx)
	if lerr == nil {
		lerr = p.system.dropImages(ctx, st.All()...)
	}
	return errors.Join(err, lerr)
}

// newest returns the deployment of a stateroot that a new one takes over from: origin and kernel arguments. It is what boots
// next, so that what an administrator has just changed is not lost, unless that has shown that it does not boot.
func newest(st *sysroot.State, stateroot string) *sysroot.Deployment {
	for _, d := range st.All() {
		if d.Stateroot == stateroot && !d.Failed() {
			return d
		}
	}
	return st.MergeDeployment(stateroot)
}

// bootsNext returns the deployment that the system boots next as things are.
func bootsNext(st *sysroot.State) *sysroot.Deployment {
	if st.Staged != nil {
		return st.Staged.Deployment
	}
	return st.Default()
}

// isSame reports whether a deployment is what a request asks for.
func isSame(d *sysroot.Deployment, r *sysroot.Request, image string) bool {
	name, _ := OriginName(d)
	return d.Commit == r.Commit && name == image && slices.Equal(d.Kargs, r.Kargs)
}

// hasFailed reports whether an image was deployed and has used up the boots that it had to prove itself.
func (s *System) hasFailed(st *sysroot.State, manifest digest.Digest) (bool, error) {
	for _, d := range st.All() {
		if !d.Failed() {
			continue
		}
		m, err := manifestDigest(s.Repo(), d.Commit)
		if err != nil && !errors.Is(err, objectstore.ErrNotExist) {
			return false, err
		}
		if m == manifest {
			return true, nil
		}
	}
	return false, nil
}

// Execute carries out a plan, of whatever it is. Images that are deployed no more lose their refs first, so that the plan
// prunes their commits. What is staged is finalized when the running system shuts down; an ErrNotArmed says that nothing
// does that, though all else is done. Other errors are as for [sysroot.Sysroot.Execute].
func (s *System) Execute(ctx context.Context, p *sysroot.Plan) error {
	if err := s.dropImages(ctx, p.Remaining()...); err != nil {
		return err
	}
	if err := s.Sysroot.Execute(ctx, p); err != nil {
		return err
	}
	if p.Staged {
		return s.arm(ctx)
	}
	return nil
}

// Newest returns the deployment of the stateroot that is meant (see [System.Stateroot]) which boots next. If it has none the
// error is an ErrNoDeployment.
func (s *System) Newest(st *sysroot.State, stateroot string) (*sysroot.Deployment, error) {
	stateroot, err := s.Stateroot(st, stateroot)
	if err != nil {
		return nil, err
	}
	for _, d := range st.All() {
		if d.Stateroot == stateroot {
			return d, nil
		}
	}
	return nil, as(ErrNoDeployment, fmt.Errorf("stateroot %s has no deployment", stateroot))
}

// Current returns the booted deployment, else the one that boots next. If there is none the error is an ErrNothingDeployed.
func Current(st *sysroot.State) (*sysroot.Deployment, error) {
	switch {
	case st.Booted != nil:
		return st.Booted, nil
	case st.Default() != nil:
		return st.Default(), nil
	}
	return nil, as(ErrNothingDeployed, errors.New("there is no deployment"))
}

// PlanKargs plans a deployment that is like another one but for its kernel arguments. One that is staged is replaced, and
// stays staged. The plan is nil if the edits change nothing. Edits that cannot be made are a *KargsError.
func (s *System) PlanKargs(ctx context.Context, st *sysroot.State, d *sysroot.Deployment, edits *kargs.Edits) (*sysroot.Plan, error) {
	list, err := edits.Apply(d.Kargs)
	if err != nil {
		return nil, &KargsError{d.Kargs, err}
	}
	switch {
	case slices.Equal(list, d.Kargs):
		return nil, nil
	case st.Staged == nil || d != st.Staged.Deployment:
		return s.Sysroot.PlanKargs(ctx, st, d, list)
	case st.Staged.Locked:
		return nil, errors.New("the staged deployment is locked: it is not to be changed")
	}
	return s.PlanDeploy(ctx, st, sysroot.Request{
		Stateroot: d.Stateroot, Commit: d.Commit, Origin: d.Origin, Kargs: list, Merge: st.Staged.Merge,
		Stage: true, NoSELinux: true, // what was staged was allowed
	})
}

// FinalizeStaged is [sysroot.Sysroot.FinalizeStaged], and takes the refs from images that are deployed no more. An error of
// that comes with the plan.
func (s *System) FinalizeStaged(ctx context.Context) (*sysroot.Plan, error) {
	p, err := s.Sysroot.FinalizeStaged(ctx)
	if err != nil || p == nil {
		return nil, err
	}
	return p, s.dropImages(ctx, p.Deployments...)
}

// BootComplete is [sysroot.Sysroot.BootComplete]. If the last shutdown did not finalize a staged deployment, an
// ErrNotFinalized comes with the report.
func (s *System) BootComplete(ctx context.Context) (*sysroot.BootReport, error) {
	found, err := s.Sysroot.BootComplete(ctx)
	if err == nil && found.Finalize != "" {
		err = as(ErrNotFinalized, fmt.Errorf("the staged deployment was not finalized at the last shutdown: %s", found.Finalize))
	}
	return found, err
}
