package sysroot

import (
	"context"
	"errors"
	"fmt"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/keyfile"
)

// Execute makes the change. The caller holds the lock, and has held it since before the plan's state was loaded: a
// sysroot that has changed since is an ErrChanged. After an error, or if the process is killed, the sysroot boots as
// before or as planned; planning and executing the same again finishes it. An error before the switch leaves nothing
// behind; what was removed to make room in /boot is gone. If the error is an objectstore.ErrNotRemoved, the change is made, and the files that it names could not be
// removed: every later change tries again.
func (s *Sysroot) Execute(ctx context.Context, p *Plan) error {
	if err := s.execute(ctx, p); err != nil {
		return fmt.Errorf("%s: %w", p.what, err)
	}
	return nil
}

func (s *Sysroot) execute(ctx context.Context, p *Plan) error {
	if err := s.checkWritable(); err != nil {
		return err
	}
	if p.Etc != nil && p.Etc.Err() != nil {
		return p.Etc.Err()
	}
	now, err := s.load(ctx)
	if err != nil {
		return err
	}
	if !now.equal(p.state) {
		return ErrChanged
	}
	if p.early != nil {
		if now, err = s.pruneEarly(ctx, p); err != nil {
			return err
		}
	}
	if p.pin != nil {
		if err := s.setPinned(p.pin, p.pinned); err != nil {
			return err
		}
	}
	if p.changesBoot() || p.New != nil {
		if err := s.change(ctx, p, now); err != nil {
			return err
		}
	}
	if p.dropStaged {
		if err := s.forgetStaged(); err != nil {
			return err
		}
	}
	if p.changesBoot() || p.New != nil || p.dropStaged {
		if err := s.bump(); err != nil {
			return err
		}
	}
	return s.cleanup(ctx, !p.NoPrune)
}

// changesBoot reports whether the deployments to boot change.
func (p *Plan) changesBoot() bool {
	if len(p.Deployments) != len(p.state.Deployments) {
		return true
	}
	for i, d := range p.Deployments {
		if d != p.state.Deployments[i] {
			return true
		}
	}
	return false
}

// change makes the new deployment and switches to the new list of deployments. If it fails before the switch, it
// removes the new deployment.
func (s *Sysroot) change(ctx context.Context, p *Plan, now *State) (err error) {
	// Leftovers of an interrupted attempt would change the names of new files.
	var others []*Deployment
	if p.finalize {
		others = append(others, p.New)
	}
	if err := s.removeLeftovers(ctx, now, others); err != nil && !isPartly(err) { // cleanup tries again
		return err
	}
	if p.New != nil && !p.finalize {
		if err := s.skipTaken(p.New); err != nil {
			return err
		}
	}
	defer func() {
		if err == nil {
			return
		}
		if after, lerr := s.load(context.WithoutCancel(ctx)); lerr == nil && after.equal(now) {
			// The next plan that is executed removes the rest.
			if p.stampedVar {
				_ = s.unlabelVar(p.New.Stateroot)
			}
			if p.filledVar {
				_ = s.emptyVar(p.New.Stateroot)
			}
			_ = s.removeLeftovers(context.WithoutCancel(ctx), after, others)
		}
	}()
	switch {
	case p.finalize:
		err = s.finishStaged(ctx, p)
	case p.New != nil:
		err = s.makeDeployment(ctx, p)
	}
	if err != nil {
		return err
	}
	if p.Staged {
		return s.writeStaged(p)
	}
	return s.writeList(ctx, p)
}

// skipTaken gives a new deployment another serial if a directory of its name could not be removed.
func (s *Sysroot) skipTaken(d *Deployment) error {
	for {
		taken, err := s.dir.Exists(d.Path())
		if !taken || err != nil {
			return err
		}
		d.Serial++
	}
}

func (s *Sysroot) setPinned(d *Deployment, pinned bool) error {
	if d.Pinned() == pinned {
		return nil
	}
	changed := *d
	changed.Origin = &keyfile.File{}
	if d.Origin != nil {
		changed.Origin = d.Origin.Clone()
	}
	if pinned {
		changed.Origin.Set(transientGroup, pinnedKey, "true")
	} else {
		changed.Origin.Remove(transientGroup, pinnedKey)
	}
	return errors.Join(s.writeOrigin(&changed, nil, true), s.bump())
}
