package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// cleanupReport is what "cleanup" removes.
type cleanupReport struct {
	Paths   []string `json:"paths"`
	Objects int      `json:"objects"`
	Freed   int64    `json:"freed_bytes"` // on the disk
}

func (c *cli) cleanupCommand() *cobra.Command {
	var f systemFlags
	var noPrune bool
	cmd := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove what interrupted changes of the system have left",
		Long: `Remove deployments, boot files and objects that no deployment needs: what changes have left that were interrupted.
Every change does so too when it is done.` + exitHelp(changeStatuses...),
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.cleanupSystem(cmd.Context(), &f, noPrune) },
	}
	f.addChange(cmd)
	cmd.Flags().BoolVar(&noPrune, "no-prune", false, "leave objects in the repository that nothing needs any more")
	c.jsonFlag(cmd)
	return cmd
}

func (c *cli) cleanupSystem(ctx context.Context, f *systemFlags, noPrune bool) error {
	return c.lockSystem(ctx, f, func(s *system, st *sysroot.State) error {
		p, err := s.PlanCleanup(ctx, st)
		if err != nil {
			return explain(err)
		}
		p.NoPrune = true // here, so that it can be said what that was
		r := newChangeReport(p, f.dryRun)
		if r.Cleanup, err = c.measureLeftovers(p.Leftovers); err != nil {
			return err
		}
		if !f.dryRun {
			if err := s.Execute(ctx, p); err != nil {
				return explain(err)
			}
		}
		if !noPrune {
			if err := r.Cleanup.prune(ctx, s, st, f.dryRun); err != nil {
				return err
			}
		}
		r.Changed = len(r.Cleanup.Paths)+r.Cleanup.Objects > 0
		if c.json {
			return c.writeJSON(r)
		}
		return c.printCleanup(r)
	})
}

// prune removes objects that nothing needs, or with dryRun finds them.
func (r *cleanupReport) prune(ctx context.Context, s *system, st *sysroot.State, dryRun bool) error {
	unused, err := s.unusedImages(deployments(st)...)
	if err != nil {
		return err
	}
	plan, err := s.Repo().PlanPrune(ctx, objectstore.PruneOptions{Without: unused})
	if err != nil {
		return err
	}
	if len(unused) > 0 && !dryRun {
		if err := s.Repo().DeleteRefs(ctx, unused...); err != nil {
			return err
		}
	}
	stats := plan.Stats()
	if !dryRun {
		stats, err = plan.Execute(ctx)
	}
	r.Objects += stats.Objects
	r.Freed += stats.Bytes
	return err
}

func (c *cli) printCleanup(r *changeReport) error {
	verb := "removed"
	if r.DryRun {
		verb = "would remove"
	}
	for _, name := range r.Cleanup.Paths {
		if _, err := fmt.Fprintf(c.stdout, "%s %s\n", verb, name); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(c.stdout, "%s %d paths, %d objects: %s\n", verb, len(r.Cleanup.Paths), r.Cleanup.Objects, size(r.Cleanup.Freed))
	return err
}

// measureLeftovers says what goes with some paths. What has other names elsewhere, as objects have, does not.
func (c *cli) measureLeftovers(paths []string) (*cleanupReport, error) {
	r := &cleanupReport{Paths: append([]string{}, paths...)}
	for _, name := range paths {
		dir, err := c.openDir(filepath.Dir(name))
		if err != nil {
			return nil, err
		}
		bytes, err := allocatedAlone(dir, filepath.Base(name))
		if err = errors.Join(err, dir.Close()); err != nil {
			return nil, err
		}
		r.Freed += bytes
	}
	return r, nil
}

// allocatedAlone returns what a file or directory has allocated on the disk, without inodes that have several names.
func allocatedAlone(dir *atfs.Dir, name string) (bytes int64, err error) {
	st, err := dir.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		if st.Nlink > 1 {
			return 0, nil
		}
		return st.Blocks * blockSize, nil
	}
	bytes = st.Blocks * blockSize
	sub, err := dir.OpenDir(name)
	if err != nil {
		return 0, err
	}
	defer sub.Close()
	names, err := sub.ReadNames()
	for _, n := range names {
		below, berr := allocatedAlone(sub, n)
		bytes += below
		err = errors.Join(err, berr)
	}
	return bytes, err
}
