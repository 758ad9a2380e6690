package sysroot

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/kargs"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/ostreehost"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/keyfile"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// open opens the sysroot with our package: as the running system's through the host's /run and a /boot, if a system was
// started.
func (s *system) open() (_ *sysroot.Sysroot, err error) {
	dir, err := atfs.Open(s.root)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	opts := sysroot.Options{NewEntryNames: s.host.Release() != ostreehost.Bookworm}
	if s.booted != nil {
		if opts.Run, err = atfs.Open(s.booted.Path("run")); err != nil {
			return nil, err
		}
		defer opts.Run.Close()
		if opts.Boot, err = atfs.Open(s.writableBoot()); err != nil {
			return nil, err
		}
		defer opts.Boot.Close()
		opts.Root = s.booted.Root()
	}
	return sysroot.Open(dir, opts)
}

// writableBoot returns another mount of /boot, as the program makes of that of the running system, which may be read-only.
func (s *system) writableBoot() string {
	s.t.Helper()
	if s.bootMount == "" {
		s.bootMount = s.t.TempDir()
		if err := unix.Mount(s.bootDir(), s.bootMount, "", unix.MS_BIND, ""); err != nil {
			s.t.Fatalf("mount /boot: %v", err)
		}
		s.t.Cleanup(func() {
			if err := unix.Unmount(s.bootMount, unix.MNT_DETACH); err != nil {
				s.t.Errorf("unmount /boot: %v", err)
			}
		})
	}
	return s.bootMount
}

// locked calls f with the sysroot opened and locked.
func (s *system) locked(ctx context.Context, f func(sr *sysroot.Sysroot) error) (err error) {
	sr, err := s.open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sr.Close()) }()
	unlock, err := sr.Lock(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	return f(sr)
}

// change plans a change of the sysroot and executes it.
func (s *system) change(ctx context.Context, plan func(sr *sysroot.Sysroot, st *sysroot.State) (*sysroot.Plan, error)) error {
	return s.locked(ctx, func(sr *sysroot.Sysroot) error {
		st, err := sr.Load(ctx)
		if err != nil {
			return err
		}
		p, err := plan(sr, st)
		if err != nil {
			return err
		}
		return sr.Execute(ctx, p)
	})
}

// A deployOp describes a deployment to make.
type deployOp struct {
	ref        string
	stateroot  string
	set        []string // kernel arguments that replace those with the same key
	add        []string // kernel arguments that are appended
	retain     bool
	notDefault bool
	stage      bool
	tries      int // for ours only: number of counted boots
}

func (d *deployOp) args() []string {
	args := []string{"--os=" + d.stateroot}
	for _, arg := range d.set {
		args = append(args, "--karg="+arg)
	}
	for _, arg := range d.add {
		args = append(args, "--karg-append="+arg)
	}
	for option, on := range map[string]bool{"--retain": d.retain, "--not-as-default": d.notDefault, "--stage": d.stage} {
		if on {
			args = append(args, option)
		}
	}
	return append(args, d.ref)
}

// ours makes the deployment with our package.
func (d *deployOp) ours(ctx context.Context, s *system) error {
	return s.change(ctx, func(sr *sysroot.Sysroot, st *sysroot.State) (*sysroot.Plan, error) { return d.plan(ctx, sr, st) })
}

func (d *deployOp) plan(ctx context.Context, sr *sysroot.Sysroot, st *sysroot.State) (*sysroot.Plan, error) {
	commit, err := sr.Repo().Ref(d.ref)
	if err != nil {
		return nil, err
	}
	return sr.PlanDeploy(ctx, st, d.request(st, commit))
}

func (d *deployOp) request(st *sysroot.State, commit objectstore.Checksum) sysroot.Request {
	origin := new(keyfile.File)
	origin.Set("origin", "refspec", d.ref)
	r := sysroot.Request{
		Stateroot: d.stateroot, Commit: commit, Origin: origin, Merge: st.MergeDeployment(d.stateroot),
		Retain: d.retain, NotDefault: d.notDefault, Stage: d.stage, Tries: d.tries,
	}
	if len(d.set)+len(d.add) == 0 {
		return r // takes the arguments of Merge
	}
	if r.Merge != nil {
		r.Kargs = r.Merge.Kargs
	}
	for _, arg := range d.set {
		r.Kargs = setKarg(r.Kargs, arg)
	}
	r.Kargs = r.Kargs.Append(d.add...)
	return r
}

// setKarg does the same as --karg.
func setKarg(list kargs.List, arg string) kargs.List {
	key, _, _ := strings.Cut(arg, "=")
	i := slices.IndexFunc(list, func(a string) bool { return a == key || strings.HasPrefix(a, key+"=") })
	if i < 0 {
		return list.Append(arg)
	}
	list = slices.Clone(list)
	list[i] = arg
	return list
}

// fsck checks a repository with our package.
func fsck(t *testing.T, repo *objectstore.Repo) {
	t.Helper()
	report, err := repo.Fsck(t.Context(), objectstore.FsckOptions{})
	if err == nil {
		err = report.Err()
	}
	if err != nil {
		t.Errorf("our fsck: %v", err)
	}
}
