package sysroot

import (
	"errors"
	"fmt"
	"io/fs"
	"path"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
)

// cfsName is the name of a deployment's composefs image, which ostree makes of its tree and ostree-prepare-root mounts
// as the root.
const cfsName = ".ostree.cfs"

// cfsSource returns the deployment whose composefs image a new one gets: one of the same commit, whose image is that of
// the same tree. It returns nil if there is none.
func (s *Sysroot) cfsSource(st *State, r *Request) (*Deployment, error) {
	list := st.All()
	if r.Merge != nil { // first: the new one may be meant to differ from it in little
		list = append([]*Deployment{r.Merge}, list...)
	}
	for _, d := range list {
		if d.Commit != r.Commit {
			continue
		}
		if has, err := s.hasCfs(d); has || err != nil {
			return d, err
		}
	}
	return nil, nil
}

func (s *Sysroot) hasCfs(d *Deployment) (bool, error) {
	name := path.Join(d.Path(), cfsName)
	switch st, err := s.dir.Lstat(name); {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil:
		return false, err
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return false, fmt.Errorf("%s is not a regular file: %w", name, ErrInvalid)
	}
	return true, nil
}

// noteLostCfs notes that a new deployment has no composefs image, although the one that it takes over from has.
func (s *Sysroot) noteLostCfs(p *Plan) error {
	if p.cfs != nil || p.merge == nil {
		return nil
	}
	lost, err := s.hasCfs(p.merge)
	if lost {
		p.Notes = append(p.Notes, fmt.Sprintf(
			"%s boots from a composefs image. The new deployment gets none and boots from its files.", p.merge.short()))
	}
	return err
}

// linkCfs gives a new deployment, whose root is given, the composefs image of another. As a link it keeps fs-verity.
func (s *Sysroot) linkCfs(from *Deployment, root *atfs.Dir) error {
	return s.dir.Link(path.Join(from.Path(), cfsName), root, cfsName)
}
