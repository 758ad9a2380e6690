package sysroot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/bls"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/etcmerge"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/kargs"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/selinux"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/keyfile"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// A Request asks for a deployment.
type Request struct {
	Stateroot string // must exist
	Commit    objectstore.Checksum
	Origin    *keyfile.File // copied, without the groups that concern a single deployment; nil: no origin file
	Kargs     kargs.List    // without ostree=; nil: those of Merge
	Merge     *Deployment   // of the state: its /etc is merged, and it is kept; nil: no merge

	Retain     bool // keep all deployments
	Stage      bool // to be finalized at shutdown; needs a booted deployment
	NotDefault bool // behind the booted one, or the one whose /etc is merged, or all others
	Deployed   bool // the tree is deployed already, labelled or not, and with whatever policy
	NoPrune    bool // leave unneeded objects in the repository
	Tries      int  // boots it has to prove itself; 0: boots are not counted

	// NoSELinux: deploy a tree with an SELinux policy although its files have no labels, or the policy cannot be used. Files
	// that are not in the commit get none either.
	NoSELinux bool

	// EarlyPrune allows to first remove the deployments that go anyway if /boot has no room for old and new kernels. Never
	// among them are the booted one, pinned ones and Merge.
	EarlyPrune bool

	// From is the repository with the commit for a plan that is not executed; nil: the sysroot's repository. Executing
	// a plan takes the commit from the sysroot's repository.
	From *objectstore.Repo

	// Rehearsal is for a plan that is not executed, in a sysroot on another file system than the one to come: neither
	// fs-verity nor the space for copies is looked at.
	Rehearsal bool
}

// A Plan is a change of a sysroot that has not been made.
type Plan struct {
	Deployments []*Deployment  // as planned, in boot order; without a staged one
	New         *Deployment    // one of Deployments, or staged; nil: none is made
	Staged      bool           // New is staged
	Removed     []*Deployment  // deployments that will go, a staged one among them
	Etc         *etcmerge.Plan // merge of /etc into New; nil: none, or only when it is finalized
	Leftovers   []string       // other paths that will go, since no deployment needs them; of a plan to clean up
	Freed       int64          // allocated bytes of Leftovers, without inodes that have other names, such as objects
	Notes       []string       // other effects, as sentences
	NoPrune     bool           // leave unneeded objects in the repository; may be changed

	what  string // the change in one line
	state *State // from which the plan was made

	tree   *osTree // of New
	kernel *kernel // of New
	merge  *Deployment
	cfs    cfsPlan    // of New
	args   kargs.List // of New, with ostree= in its place; nil: none yet

	early      []*Deployment // what boots before the new one is made, to make room in /boot; nil: as before
	finalize   bool          // New is what was staged
	dropStaged bool          // the staged deployment goes
	pin        *Deployment   // whose origin file changes; nil: none
	pinned     bool          // its new state

	policy    *selinux.Policy // of New, if its tree has labels; at first that of the tree, later with the changes of /etc
	noPolicy  bool            // although the tree has labels, since its policy cannot be used
	noSELinux bool            // as the request has it

	copyRoot bool // the files of New outside of ownDirs are copies

	filledVar, stampedVar bool // during execution: what was done to the stateroot's /var
}

// Remaining returns the deployments that exist once the plan is executed, a staged one among them.
func (p *Plan) Remaining() []*Deployment {
	list := slices.Clone(p.Deployments)
	if p.New != nil && !slices.Contains(list, p.New) {
		list = append(list, p.New)
	}
	if staged := p.state.Staged; staged != nil && !slices.Contains(p.Removed, staged.Deployment) {
		list = append(list, staged.Deployment)
	}
	return list
}

// String lists the effects, one a line.
func (p *Plan) String() string {
	lines := []string{p.what}
	if p.New != nil {
		lines = append(lines, "kernel arguments: "+p.New.Kargs.String())
	}
	if p.Etc != nil {
		modified, removed, added := p.Etc.Counts()
		lines = append(lines, fmt.Sprintf("merge /etc of %s: %d modified, %d removed, %d added", p.merge.short(), modified, removed, added))
	}
	for _, d := range p.Removed {
		lines = append(lines, "remove "+d.short())
	}
	for _, name := range p.Leftovers {
		lines = append(lines, "remove "+name)
	}
	if len(p.Deployments) > 0 {
		lines = append(lines, "then boots "+p.Deployments[0].short())
	}
	return strings.Join(append(lines, p.Notes...), "\n")
}

// short returns a name of a deployment for people.
func (d *Deployment) short() string {
	return fmt.Sprintf("%s %s.%d", d.Stateroot, d.Commit.String()[:12], d.Serial)
}

// PlanDeploy plans a new deployment of a commit in the repository. It verifies the commit, its kernel, and the room in
// /boot and for /etc. It also plans the merge of /etc; conflicts are an error (see [etcmerge.Plan.Err]), returned
// together with the plan.
func (s *Sysroot) PlanDeploy(ctx context.Context, st *State, r Request) (*Plan, error) {
	p, err := s.planDeploy(ctx, st, r)
	if err != nil {
		err = fmt.Errorf("plan deployment of %s: %w", r.Commit, commitError(r.Commit, err))
	}
	return p, err
}

func (s *Sysroot) planDeploy(ctx context.Context, st *State, r Request) (*Plan, error) {
	if err := s.checkRequest(st, &r); err != nil {
		return nil, err
	}
	p := &Plan{state: st, Staged: r.Stage, NoPrune: r.NoPrune, merge: r.Merge, noSELinux: r.NoSELinux}
	anyLabels := r.NoSELinux || r.Deployed
	var err error
	if p.tree, err = openTree(cmp.Or(r.From, s.repo), r.Commit); err != nil {
		return nil, err
	}
	if err := p.tree.checkTree(anyLabels); err != nil {
		return nil, err
	}
	if err := p.planPolicy(anyLabels); err != nil {
		return nil, err
	}
	if _, err := p.tree.systemName(); err != nil {
		return nil, err
	}
	if p.kernel, err = p.tree.findKernel(ctx, ""); err != nil {
		return nil, err
	}
	d := &Deployment{
		Stateroot: r.Stateroot, Commit: r.Commit, Serial: st.nextSerial(r.Stateroot, r.Commit), BootCsum: p.kernel.csum,
		Origin: originOf(r.Origin), Kargs: r.Kargs,
	}
	d.Version, _ = p.tree.commit.MetaString("version")
	if r.Kargs == nil && r.Merge != nil {
		d.Kargs = r.Merge.Kargs
	}
	if r.Tries > 0 {
		d.Tries = &bls.Tries{Left: r.Tries}
	}
	p.New = d
	if p.cfs, err = s.planCfs(st, p, &r); err != nil {
		return nil, err
	}
	p.arrange(&r)
	if err := s.makeRoom(ctx, p, r.EarlyPrune); err != nil {
		return nil, err
	}
	if err := s.planRoot(p); err != nil {
		return nil, err
	}
	if !r.Rehearsal {
		if err := s.checkCopySpace(ctx, p.tree, p.copyRoot); err != nil {
			return nil, err
		}
	}
	if err := s.noteLostCfs(p); err != nil {
		return nil, err
	}
	if err := s.checkLimits(p); err != nil {
		return nil, err
	}
	if r.Merge == nil || r.Stage && p.policy == nil {
		return p, nil
	}
	etc, err := s.planEtc(ctx, p.tree, r.Merge)
	if err != nil || etc == nil {
		return p, err
	}
	if err := s.checkLocalPolicy(p, etc, anyLabels); err != nil || r.Stage {
		return p, err
	}
	p.Etc = etc
	if err := p.noteEtc(); err != nil {
		return nil, err
	}
	return p, p.Etc.Err()
}

func (s *Sysroot) checkRequest(st *State, r *Request) error {
	if err := validateStateroot(r.Stateroot); err != nil {
		return fmt.Errorf("stateroot %q: %w", r.Stateroot, err)
	}
	if err := s.checkWritable(); err != nil {
		return err
	}
	if err := s.checkSupported(); err != nil {
		return err
	}
	switch ok, err := s.dir.Exists(staterootDir(r.Stateroot)); {
	case err != nil:
		return err
	case !ok:
		return fmt.Errorf("stateroot %q: %w", r.Stateroot, ErrNotExist)
	}
	switch {
	case r.Merge != nil && !slices.Contains(st.Deployments, r.Merge):
		return fmt.Errorf("%s, whose /etc is to be merged: %w", r.Merge.short(), ErrNotExist)
	case r.Stage && r.NotDefault:
		return fmt.Errorf("%w: a staged deployment becomes the default", ErrInvalid)
	case r.Stage && (st.Booted == nil || s.run == nil):
		return fmt.Errorf("%w: only a system that was booted from this sysroot can stage a deployment", ErrInvalid)
	case r.Stage && r.Tries > 0:
		return fmt.Errorf("%w: boots of a staged deployment cannot be counted", ErrInvalid)
	case r.Tries < 0:
		return fmt.Errorf("%w: %d boots", ErrInvalid, r.Tries)
	}
	args := r.Kargs
	if args == nil && r.Merge != nil {
		args = r.Merge.Kargs
	}
	for _, arg := range args {
		if kargs.Sets(arg, "ostree") {
			return fmt.Errorf("%w: kernel argument %.300q: ostree= is set by the deployment", ErrInvalid, arg)
		}
	}
	return nil
}

// arrange decides which deployments stay.
func (p *Plan) arrange(r *Request) {
	st := p.state
	if r.Stage {
		p.what = "stage " + p.New.short()
		p.Deployments = st.Deployments
		p.Notes = append(p.Notes, "It becomes the default when the system shuts down; /etc is merged then.")
		if st.Staged != nil {
			p.Removed = []*Deployment{st.Staged.Deployment}
			p.Notes = append(p.Notes, fmt.Sprintf("It takes the place of %s, which is staged now.", st.Staged.short()))
		}
		return
	}
	p.what = "deploy " + p.New.short()
	p.Deployments = st.listWith(p.New, r.Merge, r.Retain, r.NotDefault)
	p.Removed = st.missingFrom(p.Deployments)
	if st.Staged == nil {
		return
	}
	if r.NotDefault && (r.Retain || st.Staged.Stateroot != r.Stateroot) {
		p.Notes = append(p.Notes, fmt.Sprintf("%s stays staged.", st.Staged.short()))
		return
	}
	p.drop("the new deployment")
}

// drop removes a staged deployment, since it would become the default instead of another.
func (p *Plan) drop(other string) {
	staged := p.state.Staged
	if staged == nil {
		return
	}
	p.dropStaged = true
	p.Removed = append(p.Removed, staged.Deployment)
	p.Notes = append(p.Notes, fmt.Sprintf("%s, which is staged, is dropped: at shutdown it would become the default in place of %s.", staged.short(), other))
}

// nextSerial returns a serial larger than all of the same commit.
func (st *State) nextSerial(stateroot string, commit objectstore.Checksum) int {
	next := 0
	for _, d := range st.All() {
		if d.Stateroot == stateroot && d.Commit == commit {
			next = max(next, d.Serial+1)
		}
	}
	return next
}

// originOf returns the origin file of a new deployment, without the groups that concern only the old one.
func originOf(f *keyfile.File) *keyfile.File {
	if f == nil {
		return nil
	}
	f = f.Clone()
	f.RemoveGroup(transientGroup)
	f.Remove(OriginGroup, "unlocked")
	return f
}

// planEtc plans to carry the changes of a deployment's /etc into a new one's. It returns nil if one of them has no /etc
// of its own.
func (s *Sysroot) planEtc(ctx context.Context, t *osTree, merge *Deployment) (*etcmerge.Plan, error) {
	etc := "usr/etc"
	n, err := t.lookup(etc)
	if isAbsent(err) {
		etc = "etc" // of an older tree; the deployment gets it as usr/etc
		n, err = t.lookup(etc)
	}
	if isAbsent(err) || err == nil && !n.Dir {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	pristine, err := s.dir.OpenDir(merge.Path() + "/usr/etc")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer pristine.Close()
	current, err := s.dir.OpenDir(merge.Path() + "/etc")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer current.Close()
	return etcmerge.NewPlan(ctx, pristine, current, func(name string) (uint32, error) { return t.fileType(etc + "/" + name) })
}

// EtcChanges returns the changes of a deployment's /etc since its image.
func (s *Sysroot) EtcChanges(ctx context.Context, d *Deployment) (_ []etcmerge.Change, err error) {
	pristine, err := s.dir.OpenDir(d.Path() + "/usr/etc")
	if err != nil {
		return nil, err
	}
	defer pristine.Close()
	current, err := s.dir.OpenDir(d.Path() + "/etc")
	if err != nil {
		return nil, err
	}
	defer current.Close()
	return etcmerge.Diff(ctx, pristine, current)
}

// fileType returns the type of a path, as in st_mode, or fs.ErrNotExist.
func (t *osTree) fileType(name string) (uint32, error) {
	n, err := t.lookup(name)
	switch {
	case isAbsent(err):
		return 0, &fs.PathError{Op: "stat", Path: "/" + name, Err: fs.ErrNotExist}
	case err != nil:
		return 0, err
	case n.Dir:
		return unix.S_IFDIR, nil
	}
	st, err := t.repo.Stat(n.Checksum)
	return st.Mode & unix.S_IFMT, err
}

// PlanKargs plans a deployment with the same commit and /etc as one of the state's, and other kernel arguments. Its
// origin file is given, because it may record who asks for them.
func (s *Sysroot) PlanKargs(ctx context.Context, st *State, of *Deployment, args kargs.List, origin *keyfile.File) (*Plan, error) {
	if args == nil {
		args = kargs.List{}
	}
	return s.PlanDeploy(ctx, st, Request{Stateroot: of.Stateroot, Commit: of.Commit, Origin: origin, Kargs: args, Merge: of, Deployed: true})
}

// PlanUndeploy plans to remove the deployment with this index in the state. A staged deployment has the index 0, and
// the others follow, as "ostree admin status" counts. The booted one is an ErrInUse, and so is one that is pinned, or
// whose /etc the staged one takes over.
func (s *Sysroot) PlanUndeploy(st *State, index int) (*Plan, error) {
	p, err := s.planUndeploy(st, index)
	if err != nil {
		return nil, fmt.Errorf("plan to undeploy: %w", err)
	}
	return p, nil
}

func (s *Sysroot) planUndeploy(st *State, index int) (*Plan, error) {
	if err := s.checkChange(); err != nil {
		return nil, err
	}
	d, err := st.at(index)
	if err != nil {
		return nil, err
	}
	p := &Plan{state: st, what: "undeploy " + d.short(), Removed: []*Deployment{d}, Deployments: st.Deployments}
	switch {
	case d == st.Booted:
		return nil, fmt.Errorf("deployment %d (%s) %w: it is booted", index, d.short(), ErrInUse)
	case d.Pinned():
		return nil, fmt.Errorf("deployment %d (%s) %w: it is pinned", index, d.short(), ErrInUse)
	case st.Staged != nil && d == st.Staged.Deployment:
		p.dropStaged = true
		return p, nil
	case st.Staged != nil && d == st.Staged.Merge:
		return nil, fmt.Errorf("deployment %d (%s) %w: the staged deployment takes over its /etc; undeploy that one (0) first", index, d.short(), ErrInUse)
	}
	p.Deployments = slices.DeleteFunc(slices.Clone(st.Deployments), func(o *Deployment) bool { return o == d })
	if len(p.Deployments) == 0 {
		p.Notes = append(p.Notes, "No bootable deployment is left.")
	}
	return p, nil
}

// PlanRollback plans to make the rollback deployment the default, and the default the rollback. Notes tell what becomes
// of a staged deployment.
func (s *Sysroot) PlanRollback(st *State) (*Plan, error) {
	p, err := s.planRollback(st)
	if err != nil {
		return nil, fmt.Errorf("plan rollback: %w", err)
	}
	return p, nil
}

func (s *Sysroot) planRollback(st *State) (*Plan, error) {
	if err := s.checkChange(); err != nil {
		return nil, err
	}
	to := st.Rollback()
	if st.Booted != nil && st.Default() != st.Booted {
		// Another deployment than the running one boots next: the rollback is to the running one.
		to = st.Booted
	}
	if to == nil {
		return nil, fmt.Errorf("there is no deployment to go back to: %w", ErrNotExist)
	}
	p := &Plan{state: st, what: "roll back to " + to.short(), Deployments: []*Deployment{to}}
	for _, d := range st.Deployments {
		if d != to {
			p.Deployments = append(p.Deployments, d)
		}
	}
	p.drop(to.short())
	return p, nil
}

// PlanPin plans to pin or unpin the deployment with this index, counted as for [Sysroot.PlanUndeploy]. A pinned one
// stays until it is unpinned, whatever is deployed. A staged one cannot be pinned.
func (s *Sysroot) PlanPin(st *State, index int, pinned bool) (*Plan, error) {
	p, err := s.planPin(st, index, pinned)
	if err != nil {
		return nil, fmt.Errorf("plan to pin: %w", err)
	}
	return p, nil
}

func (s *Sysroot) planPin(st *State, index int, pinned bool) (*Plan, error) {
	if err := s.checkWritable(); err != nil {
		return nil, err
	}
	d, err := st.at(index)
	if err != nil {
		return nil, err
	}
	if st.Staged != nil && d == st.Staged.Deployment {
		return nil, fmt.Errorf("deployment %d (%s): %w: a staged deployment cannot be pinned", index, d.short(), ErrInvalid)
	}
	p := &Plan{state: st, what: "pin " + d.short(), Deployments: st.Deployments, pin: d, pinned: pinned, NoPrune: true}
	if !pinned {
		p.what = "unpin " + d.short()
	}
	if d.Pinned() == pinned {
		p.Notes = append(p.Notes, "It already is.")
	}
	return p, nil
}

// PlanCleanup plans to remove what no deployment needs: the remains of interrupted changes and, unless NoPrune is set
// on the plan, objects of the repository.
func (s *Sysroot) PlanCleanup(_ context.Context, st *State) (*Plan, error) {
	if err := s.checkWritable(); err != nil {
		return nil, fmt.Errorf("plan cleanup: %w", err)
	}
	p := &Plan{state: st, what: "clean up", Deployments: st.Deployments}
	leftovers, err := s.leftovers(st, st.Deployments)
	if err != nil {
		return nil, fmt.Errorf("plan cleanup: %w", err)
	}
	for _, l := range leftovers {
		p.Leftovers = append(p.Leftovers, l.String())
		top, err := l.dir.Lstat(l.name)
		if err != nil {
			return nil, fmt.Errorf("plan cleanup: %w", err)
		}
		err = l.dir.Walk(l.name, func(st *unix.Stat_t) error {
			if st.Dev != top.Dev {
				return nil // mounted there, and stays
			}
			if st.Mode&unix.S_IFMT == unix.S_IFDIR || st.Nlink == 1 {
				p.Freed += atfs.Allocated(st)
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("plan cleanup: %w", err)
		}
	}
	return p, nil
}

// checkChange returns an error if the list of deployments cannot be changed.
func (s *Sysroot) checkChange() error {
	if err := s.checkWritable(); err != nil {
		return err
	}
	return s.checkSupported()
}
