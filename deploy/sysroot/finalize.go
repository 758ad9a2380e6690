package sysroot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/bls"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
)

// failureFile, below /boot, holds the error of the last attempt to finalize a staged deployment. libostree reads it
// too.
const failureFile = "ostree/finalize-failure.stamp"

// FinalizeStaged makes the staged deployment the default, with the present changes of /etc. Call it when the system
// shuts down. It returns the executed plan, or nil if nothing is staged or the staged deployment is locked. An error is
// also left for the next boot to report, where libostree looks for it, except for an objectstore.ErrNotRemoved, which
// comes with the plan (see [Sysroot.Execute]). Objects are not pruned.
//
// The caller holds the lock. If the process is killed, a repetition finishes it.
func (s *Sysroot) FinalizeStaged(ctx context.Context) (*Plan, error) {
	p, err := s.finalizeStaged(ctx)
	var partly error
	if isPartly(err) {
		partly, err = fmt.Errorf("finalize staged deployment: %w", err), nil
	}
	if err != nil {
		err = fmt.Errorf("finalize staged deployment: %w", err)
		if werr := s.leaveFailure(err); werr != nil {
			err = fmt.Errorf("%w (and it cannot be left for the next boot: %w)", err, werr)
		}
		return nil, err
	}
	if err := atfs.IgnoreNotExist(s.boot.Unlink(failureFile)); err != nil {
		return nil, fmt.Errorf("finalize staged deployment: %w", err)
	}
	return p, partly
}

func (s *Sysroot) leaveFailure(err error) error {
	if err := s.boot.MkdirAll(path.Dir(failureFile), dirMode); err != nil {
		return err
	}
	return s.boot.WriteFile(failureFile, []byte(bounded(err.Error(), maxFailureLen)), fileMode, true)
}

func (s *Sysroot) finalizeStaged(ctx context.Context) (*Plan, error) {
	if s.run == nil {
		return nil, nil
	}
	if err := s.checkChange(); err != nil {
		return nil, err
	}
	st, err := s.load(ctx)
	if err != nil {
		return nil, err
	}
	if st.Staged == nil {
		// The file may still exist if the process was killed after it had finalized the deployment.
		if err := s.forgetStaged(); err != nil {
			return nil, err
		}
		return nil, s.cleanup(ctx, false)
	}
	if st.Staged.Locked {
		return nil, nil
	}
	p, err := s.planFinalize(ctx, st)
	if err != nil {
		return nil, err
	}
	return p, s.execute(ctx, p)
}

func (s *Sysroot) planFinalize(ctx context.Context, st *State) (*Plan, error) {
	d := st.Staged.Deployment
	if lost := st.Staged.lost; lost != nil {
		return nil, fmt.Errorf("%s, whose /etc is to be merged: %w", lost.short(), ErrNotExist)
	}
	p := &Plan{
		state: st, what: "finalize " + d.short(), New: d, merge: st.Staged.Merge, finalize: true, dropStaged: true, NoPrune: true,
		args: st.Staged.kargs, noSELinux: st.Staged.NoSELinux,
	}
	p.Deployments = st.listWith(d, p.merge, false, false)
	p.Removed = st.missingFrom(p.Deployments)
	var err error
	if p.tree, err = openTree(s.repo, d.Commit); err != nil {
		return nil, commitError(d.Commit, err)
	}
	if err := p.planPolicy(p.noSELinux); err != nil {
		return nil, err
	}
	if p.kernel, err = p.tree.findKernel(ctx, ""); err != nil {
		return nil, err
	}
	if p.kernel.csum != d.BootCsum {
		return nil, fmt.Errorf("its kernel has the checksum %s, and was staged with %s: %w", p.kernel.csum, d.BootCsum, ErrCorrupt)
	}
	if err := s.makeRoom(ctx, p, false); err != nil {
		return nil, err
	}
	if err := s.checkCopySpace(ctx, p.tree, false); err != nil {
		return nil, err
	}
	if p.merge == nil {
		return p, nil
	}
	if p.Etc, err = s.planEtc(ctx, p.tree, p.merge); err == nil && p.Etc != nil {
		err = p.Etc.Err()
	}
	return p, err
}

// finishStaged completes the directory of a staged deployment.
func (s *Sysroot) finishStaged(ctx context.Context, p *Plan) error {
	root, err := s.dir.OpenDir(p.New.Path())
	if err != nil {
		return err
	}
	return errors.Join(s.finishDeployment(ctx, p, root), root.Close())
}

// A BootReport is the result of [Sysroot.BootComplete].
type BootReport struct {
	Booted   *Deployment
	Blessed  bool   // its boots were counted, and no longer are
	Finalize string // the error of the last attempt to finalize a staged deployment; "": none
}

// BootComplete records that the system has booted well: boots of the booted deployment are no longer counted. It reads
// and removes the message of a failed [Sysroot.FinalizeStaged]. The caller holds the lock.
func (s *Sysroot) BootComplete(ctx context.Context) (*BootReport, error) {
	r, err := s.bootComplete(ctx)
	if err != nil {
		return nil, fmt.Errorf("complete boot: %w", err)
	}
	return r, nil
}

func (s *Sysroot) bootComplete(ctx context.Context) (*BootReport, error) {
	st, err := s.load(ctx)
	if err != nil {
		return nil, err
	}
	if st.Booted == nil {
		return nil, fmt.Errorf("the system was not booted from this sysroot: %w", ErrNotExist)
	}
	r := &BootReport{Booted: st.Booted}
	if err := s.bless(ctx, st, r); err != nil {
		return nil, err
	}
	text, err := s.boot.ReadFile(failureFile, maxFailureLen)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return nil, err
	}
	r.Finalize = strings.ToValidUTF8(string(text), "?")
	return r, atfs.IgnoreNotExist(s.boot.Unlink(failureFile))
}

// bless removes the counter from the entry of the booted deployment, by renaming it.
func (s *Sysroot) bless(ctx context.Context, st *State, r *BootReport) error {
	d := st.Booted
	name, _ := bls.ParseName(d.file)
	r.Blessed = d.Tries != nil || name.Tries != nil
	if s.opts.Bootloader != nil {
		if err := s.opts.Bootloader.Bless(ctx, d.ostreeArg(st.BootVersion)); err != nil {
			return err
		}
	}
	if name.Tries == nil {
		return nil
	}
	dir, err := s.boot.OpenDir(entriesDir(st.BootVersion))
	if err != nil {
		return err
	}
	err = dir.Rename(d.file, dir, bls.Name{Stem: name.Stem}.String(), 0)
	if err == nil {
		err = dir.Sync()
	}
	if err = errors.Join(err, dir.Close()); err != nil {
		return err
	}
	return s.bump()
}
