package sysroot

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
)

// lacksBootSpace reports whether an error of checkBoot is about room that removed kernels give.
func lacksBootSpace(err error) bool { return errors.Is(err, ErrNoSpace) || errors.Is(err, unix.ENOSPC) }

// makeRoom checks the space in /boot. If there is not enough, the plan first removes the kernels that nothing needs, and,
// if prune, the deployments that it removes anyway, as newer versions of ostree do. If that is not enough either, or would
// leave nothing to boot until the new deployment is complete, the error is that of the check without it.
func (s *Sysroot) makeRoom(ctx context.Context, p *Plan, prune bool) error {
	lacks := s.checkBoot(ctx, p, nil)
	if !lacksBootSpace(lacks) {
		return lacks
	}
	dead, err := s.deadKernels(p)
	if err != nil {
		return err
	}
	err = lacks
	if len(dead) > 0 {
		err = s.checkBoot(ctx, p, dead)
	}
	if !lacksBootSpace(err) {
		p.early = p.state.Deployments
		return err
	}
	list := p.Deployments
	if p.Staged {
		list = p.state.listWith(p.New, p.merge, false, false) // when it is finalized
	}
	list = slices.DeleteFunc(slices.Clone(list), func(d *Deployment) bool { return d == p.New })
	gone := p.state.missingFrom(list)
	if !prune || len(gone) == 0 || len(list) == 0 {
		return lacks
	}
	err = s.checkBoot(ctx, p, append(dead, kernelsOnlyOf(gone, append(list, p.New))...))
	if lacksBootSpace(err) {
		return lacks
	}
	p.goFirst(gone, list)
	return err
}

// goFirst has deployments removed before the new one is made, so that a list of them is left.
func (p *Plan) goFirst(gone, list []*Deployment) {
	p.early = list
	if p.Staged {
		p.Deployments = list
		p.Removed = append(p.Removed, gone...)
	}
	var names []string
	for _, d := range gone {
		names = append(names, d.short())
	}
	p.Notes = append(p.Notes, fmt.Sprintf(
		"/boot is full: %s goes first. Until the new deployment is complete, there is only %s to boot.",
		strings.Join(names, ", "), list[0].short()))
}

// deadKernels returns the directories below /boot of kernels that no deployment needs, not even the new one.
func (s *Sysroot) deadKernels(p *Plan) (dirs []string, err error) {
	if p.state.incomplete {
		return nil, nil
	}
	found, err := s.oldKernels(p.state, slices.Concat(p.state.All(), []*Deployment{p.New}))
	for _, l := range found {
		if path.Dir(l.name) == ostreeDir {
			dirs = append(dirs, l.name)
		}
	}
	return dirs, err
}

// kernelsOnlyOf returns the directories below /boot of kernels that others do not need.
func kernelsOnlyOf(list, others []*Deployment) (dirs []string) {
	for _, d := range list {
		dir := kernelDir(d)
		if !slices.Contains(dirs, dir) && !slices.ContainsFunc(others, func(o *Deployment) bool { return kernelDir(o) == dir }) {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

// allocated returns the bytes that directories of /boot take, without links of objects.
func (s *Sysroot) allocated(dirs []string) (size int64, err error) {
	for _, dir := range dirs {
		err := s.boot.Walk(dir, func(st *unix.Stat_t) error {
			if st.Mode&unix.S_IFMT == unix.S_IFDIR || st.Nlink == 1 {
				size += atfs.Allocated(st)
			}
			return nil
		})
		if err = atfs.IgnoreNotExist(err); err != nil {
			return 0, err
		}
	}
	return size, nil
}

// pruneEarly makes the sysroot boot what makeRoom leaves, as a change of its own, and lets the plan go on from there.
func (s *Sysroot) pruneEarly(ctx context.Context, p *Plan) (now *State, err error) {
	first := &Plan{state: p.state, what: "make room in /boot", Deployments: p.early, NoPrune: true}
	if err := s.Execute(ctx, first); err != nil && !isPartly(err) { // the plan's own cleanup tries again
		return nil, err
	}
	if now, err = s.load(ctx); err != nil {
		return nil, err
	}
	st := *p.state
	st.BootVersion, st.SubBootVersion, st.Deployments = now.BootVersion, now.SubBootVersion, p.early
	if !now.equal(&st) {
		return nil, ErrChanged
	}
	p.state, p.early = &st, nil
	return now, nil
}
