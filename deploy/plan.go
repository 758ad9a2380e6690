package deploy

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/kargs"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/oscommit"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
)

// A Request asks for a deployment of an image.
type Request struct {
	Image     *Image
	Reference *Reference  // to the image, for the origin; nil: by its name, with the demand of the deployment before
	Verifier  Verifier    // nil: no signature policy
	Stateroot string      // as for [System.Stateroot]
	Kargs     kargs.Edits // of the kernel arguments that it takes over

	Retain     bool // keep all other deployments
	Stage      bool // finalize it when the system shuts down; needs a booted deployment
	NoSELinux  bool // give files no labels, although the image has an SELinux policy
	NoPrune    bool // leave unneeded objects in the repository
	EarlyPrune bool // see [sysroot.Request]
	Tries      int  // boots in which to prove itself; 0: boots are not counted
	Untried    bool // do nothing if the image was deployed before and failed to boot

	Epoch *oscommit.Epoch // of SELinux labels; nil: that of the deployment that it takes over from

	// Promote is without NoLabels and Epoch. With DryRun the plan cannot be executed, and the sysroot stays as it is.
	Promote PromoteOptions
}

// A Plan is a deployment of an image that has not been made. The caller closes it.
type Plan struct {
	// Plan is the change of the sysroot; nil if there is nothing to do.
	*sysroot.Plan
	// Same is the deployment that boots next, if it equals the requested one and nothing is to do. If nothing is to do
	// and Same is nil, the image has failed to boot.
	Same *sysroot.Deployment
	// OS is the image's OS commit; nil if the image has failed to boot.
	OS *Promoted

	system    *System
	dryRun    bool
	stateroot string
	reference Reference
	verdict   *Verdict
}

// Plan checks the signatures of an image before anything is written. Then it promotes an image and plans its deployment. The deployment takes over /etc, origin and kernel arguments from the
// previous one of the stateroot. Kernel arguments follow the image's changes of its own (usr/lib/bootc/kargs.d); then
// the edits are made.
//
// An image without the signatures that the policy and its reference demand is an ErrRefused, or the verifier's error; an ErrRemote if keys cannot be used.
// Besides the errors of [Promote] and [sysroot.Sysroot.PlanDeploy] it returns ErrNoStateroot, ErrManyStateroots,
// ErrCannotStage, ErrNoBootCounting, bootloader.ErrCannotCount, ErrImageKargs and kargs.ErrEdit. After an error the
// commit has lost its ref. In a dry run a plan with conflicts in /etc is returned along with the error.
//
// The caller holds the sysroot's lock, except for a dry run.
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
	if err := r.labels(newest(st, stateroot)); err != nil {
		return nil, err
	}
	p := &Plan{system: s, dryRun: r.Promote.DryRun, stateroot: stateroot}
	if err := p.verify(ctx, newest(st, stateroot), &r); err != nil {
		return nil, err
	}
	if p.OS, err = Promote(ctx, layers, s.Repo(), r.Image, r.Promote); err != nil {
		return nil, err
	}
	p.verdict = p.verdict.add(p.OS.Signed)
	if err = p.plan(ctx, st, stateroot, &r); err != nil {
		err = p.forget(ctx, err)
	}
	if err != nil && (!p.dryRun || p.Plan == nil || p.Etc == nil) {
		return nil, errors.Join(err, p.Close())
	}
	return p, err
}

// verify determines the reference, and checks what can be checked before the layers are read.
func (p *Plan) verify(ctx context.Context, from *sysroot.Deployment, r *Request) (err error) {
	if r.Reference != nil {
		p.reference = *r.Reference
	} else if p.reference, err = NewReference(r.Image.Name, from); err != nil {
		return err
	}
	if p.verdict, err = verify(ctx, r.Verifier, p.reference, r.Image); err != nil {
		return err
	}
	if p.reference.Demand == DemandCommit {
		r.Promote.covered = p.verdict != nil && len(p.verdict.Signers) > 0
		r.Promote.remote, err = commitKeys(repoOf(p.system.Path), p.reference.Remote)
	}
	return err
}

// labels determines the labels of a deployment that takes over from another, which may be nil.
func (r *Request) labels(from *sysroot.Deployment) (err error) {
	r.Promote.NoLabels = r.NoSELinux
	switch {
	case r.Epoch != nil:
		r.Promote.Epoch = *r.Epoch
	case from != nil:
		r.Promote.Epoch, err = labelEpoch(from.Origin)
	}
	return err
}

func (p *Plan) plan(ctx context.Context, st *sysroot.State, stateroot string, r *Request) (err error) {
	from := newest(st, stateroot)
	req := sysroot.Request{
		Stateroot:  stateroot,
		Commit:     p.OS.Commit,
		Origin:     NewOrigin(from, p.reference),
		Merge:      st.MergeDeployment(stateroot),
		Retain:     r.Retain,
		Stage:      r.Stage,
		NoSELinux:  r.NoSELinux,
		NoPrune:    r.NoPrune,
		EarlyPrune: r.EarlyPrune,
		Tries:      r.Tries,
		From:       p.OS.Repo,
	}
	if st.Booted == nil { // a deployment that failed to boot is not the one to fall back to
		req.Merge = from
	}
	var shared kargs.List
	if req.Kargs, shared, err = p.kargs(from, &r.Kargs); err != nil {
		return err
	}
	setSharedKargs(req.Origin, shared)
	setLabelEpoch(req.Origin, r.Promote.Epoch)
	setVerdict(req.Origin, p.verdict)
	if next := bootsNext(st); next != nil && next == from && isSame(next, &req, p.reference) {
		p.Same = next
		return nil
	}
	p.Plan, err = p.system.PlanDeploy(ctx, st, req)
	return err
}

// kargs returns the kernel arguments of a new deployment that takes over from another, which may be nil, and those of
// them that both the image and the machine ask for.
func (p *Plan) kargs(from *sysroot.Deployment, edits *kargs.Edits) (args, shared kargs.List, err error) {
	now, err := imageKargs(p.OS.Repo, p.OS.Commit)
	if err != nil {
		return nil, nil, as(ErrImageKargs, fmt.Errorf("read kernel arguments of the image: %w", err))
	}
	var list, before, sharedBefore kargs.List
	if from != nil {
		list, sharedBefore = from.Kargs, sharedKargs(from.Origin)
		if before, err = p.system.deployedKargs(from); err != nil {
			return nil, nil, err
		}
	}
	return followImage(list, before, now, sharedBefore, edits)
}

// followImage has a list of kernel arguments follow the changes of an image's, and edits it. It returns those that both
// the image and the machine ask for, too.
func followImage(list, before, now, sharedBefore kargs.List, edits *kargs.Edits) (args, shared kargs.List, err error) {
	list, sharedBefore = list.Update(before, now, sharedBefore)
	if args, err = edits.Apply(list); err != nil {
		return nil, nil, err
	}
	return args, edits.Shared(list, args, now, sharedBefore), nil
}

// Execute makes the deployment, as [System.Execute] does, if there is anything to do. If it fails, the commit has lost
// its ref. The plan of a dry run cannot be executed.
func (p *Plan) Execute(ctx context.Context) error {
	switch {
	case p.Plan == nil:
		return nil
	case p.dryRun:
		return errors.New("the plan of a dry run cannot be executed")
	}
	err := p.system.Execute(ctx, p.Plan)
	if err != nil && !errors.Is(err, objectstore.ErrNotRemoved) {
		return p.forget(ctx, err)
	}
	return errors.Join(err, p.system.accept(p.stateroot))
}

// Close releases the OS commit.
func (p *Plan) Close() error {
	if p.OS == nil {
		return nil
	}
	return p.OS.Close()
}

// forget removes the ref of the OS commit unless it is deployed, so that it can be pruned. It returns err, joined with
// its own error.
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

// newest returns the deployment from which a new one of the stateroot takes origin and kernel arguments: the one that
// boots next, so that an administrator's latest changes are kept, unless it has failed to boot.
func newest(st *sysroot.State, stateroot string) *sysroot.Deployment {
	for _, d := range st.All() {
		if d.Stateroot == stateroot && !d.Failed() {
			return d
		}
	}
	return st.MergeDeployment(stateroot)
}

// bootsNext returns the deployment that boots next as things are.
func bootsNext(st *sysroot.State) *sysroot.Deployment {
	if st.Staged != nil {
		return st.Staged.Deployment
	}
	return st.Default()
}

// isSame reports whether a deployment equals the requested one.
func isSame(d *sysroot.Deployment, r *sysroot.Request, ref Reference) bool {
	text, _ := d.ImageReference()
	old, parseErr := ParseReference(text)
	before, err := labelEpoch(d.Origin)
	after, _ := labelEpoch(r.Origin)
	return err == nil && parseErr == nil && before == after && d.Commit == r.Commit && old == ref && slices.Equal(d.Kargs, r.Kargs) &&
		slices.Equal(sharedKargs(d.Origin), sharedKargs(r.Origin))
}

// hasFailed reports whether an image was deployed and has used up the boots in which to prove itself.
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

// Execute carries out any plan for the sysroot. Images that are no longer deployed first lose their refs, so that the
// plan prunes their commits. A staged deployment is finalized when the running system shuts down; an ErrNotArmed means
// that everything is done but no unit will finalize it. Other errors are those of [sysroot.Sysroot.Execute].
func (s *System) Execute(ctx context.Context, p *sysroot.Plan) error {
	if err := s.dropImages(ctx, p.Remaining()...); err != nil {
		return err
	}
	kept := s.Sysroot.Execute(ctx, p)
	if kept != nil && !errors.Is(kept, objectstore.ErrNotRemoved) || !p.Staged {
		return kept
	}
	return errors.Join(kept, s.arm(ctx))
}

// Newest returns the deployment of a stateroot, chosen as by [System.Stateroot], that boots next. If it has none the
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

// Current returns the booted deployment, else the one that boots next. Without any the error is an ErrNothingDeployed.
func Current(st *sysroot.State) (*sysroot.Deployment, error) {
	switch {
	case st.Booted != nil:
		return st.Booted, nil
	case st.Default() != nil:
		return st.Default(), nil
	}
	return nil, as(ErrNothingDeployed, errors.New("there is no deployment"))
}

// PlanKargs plans a deployment that differs from another one only in its kernel arguments, or in who asks for them: the
// image or the machine. It replaces a staged one by a staged one. The plan is nil if the edits change nothing. Edits
// that do not apply are a *KargsError.
func (s *System) PlanKargs(ctx context.Context, st *sysroot.State, d *sysroot.Deployment, edits *kargs.Edits) (*sysroot.Plan, error) {
	list, err := edits.Apply(d.Kargs)
	if err != nil {
		return nil, &KargsError{d.Kargs, err}
	}
	origin := d.Origin
	if origin != nil {
		image, err := s.deployedKargs(d)
		if err != nil {
			return nil, err
		}
		origin = origin.Clone()
		setSharedKargs(origin, edits.Shared(d.Kargs, list, image, sharedKargs(origin)))
	}
	staged := st.Staged != nil && d == st.Staged.Deployment
	switch {
	case slices.Equal(list, d.Kargs) && slices.Equal(sharedKargs(origin), sharedKargs(d.Origin)):
		return nil, nil
	case !staged:
		return s.Sysroot.PlanKargs(ctx, st, d, list, origin)
	case st.Staged.Locked:
		return nil, errors.New("the staged deployment is locked")
	}
	return s.PlanDeploy(ctx, st, sysroot.Request{
		Stateroot: d.Stateroot, Commit: d.Commit, Origin: origin, Kargs: list, Merge: st.Staged.Merge,
		Stage: true, NoSELinux: st.Staged.NoSELinux, Deployed: true,
	})
}

// FinalizeStaged is [sysroot.Sysroot.FinalizeStaged], and removes the refs of images that are no longer deployed. If
// that fails, the error comes with the plan.
func (s *System) FinalizeStaged(ctx context.Context) (*sysroot.Plan, error) {
	p, err := s.Sysroot.FinalizeStaged(ctx)
	if p == nil {
		return nil, err
	}
	return p, errors.Join(err, s.dropImages(ctx, p.Deployments...))
}

// BootComplete is [sysroot.Sysroot.BootComplete]. If the last shutdown failed to finalize a staged deployment, an
// ErrNotFinalized comes with the report.
func (s *System) BootComplete(ctx context.Context) (*sysroot.BootReport, error) {
	found, err := s.Sysroot.BootComplete(ctx)
	if err == nil && found.Finalize != "" {
		err = as(ErrNotFinalized, fmt.Errorf("the staged deployment was not finalized at the last shutdown: %s", found.Finalize))
	}
	return found, err
}
