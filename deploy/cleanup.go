package deploy

import (
	"context"
	"errors"
	"slices"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// CleanupOptions are those of [System.Cleanup].
type CleanupOptions struct {
	NoPrune bool // leave objects in the repository
	DryRun  bool // only find what would go
}

// A CleanupReport lists what a cleanup removes.
type CleanupReport struct {
	Plan    *sysroot.Plan // its Leftovers are paths that go
	Objects int           // of the repository
	Freed   int64         // bytes on the disk, for both
}

// Cleanup removes what no deployment needs: the remains of interrupted changes, refs of images that are not deployed,
// and objects of the repository. Files that cannot be removed do not stop it: the error is then an
// objectstore.ErrNotRemoved that names them, and comes with the report. The caller holds the lock, except for a dry run.
func (s *System) Cleanup(ctx context.Context, st *sysroot.State, o CleanupOptions) (*CleanupReport, error) {
	plan, err := s.PlanCleanup(ctx, st)
	if err != nil {
		return nil, err
	}
	plan.NoPrune = true // pruned below instead, to report what is freed
	r := &CleanupReport{Plan: plan, Freed: plan.Freed}
	var kept error
	if !o.DryRun {
		kept = s.Sysroot.Execute(ctx, plan)
	}
	if kept != nil {
		if !errors.Is(kept, objectstore.ErrNotRemoved) {
			return nil, kept
		}
		if err := r.leaveOut(ctx, s, st); err != nil {
			return nil, err
		}
	}
	if o.NoPrune {
		return r, kept
	}
	stats, err := s.prune(ctx, st, o.DryRun)
	if err != nil && !errors.Is(err, objectstore.ErrNotRemoved) {
		return nil, err
	}
	r.Objects = stats.Objects
	r.Freed += stats.Bytes
	return r, errors.Join(kept, err)
}

// leaveOut takes the paths out of the report that could not be removed.
func (r *CleanupReport) leaveOut(ctx context.Context, s *System, st *sysroot.State) error {
	left, err := s.PlanCleanup(ctx, st)
	if err != nil {
		return err
	}
	r.Freed = max(r.Freed-left.Freed, 0)
	r.Plan.Leftovers = slices.DeleteFunc(r.Plan.Leftovers, func(name string) bool { return slices.Contains(left.Leftovers, name) })
	return nil
}

// prune removes unneeded objects, or with dryRun finds them.
func (s *System) prune(ctx context.Context, st *sysroot.State, dryRun bool) (objectstore.PruneStats, error) {
	unused, err := s.unusedRefs(st.All()...)
	if err != nil {
		return objectstore.PruneStats{}, err
	}
	plan, err := s.Repo().PlanPrune(ctx, objectstore.PruneOptions{Without: unused, NoHistory: true})
	if err != nil {
		return objectstore.PruneStats{}, err
	}
	if dryRun {
		return plan.Stats(), nil
	}
	if len(unused) > 0 {
		if err := s.Repo().DeleteRefs(ctx, unused...); err != nil {
			return objectstore.PruneStats{}, err
		}
	}
	return plan.Execute(ctx)
}
