package sysroot

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/prepareroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// ownDirs are the directories of a root that no running system writes to as files of the tree: they are read-only, or
// something else is mounted there.
var ownDirs = []string{"boot", "dev", "efi", "etc", "ostree", "proc", "run", "sys", "sysroot", "tmp", "usr", "var"}

// isOwnDir reports whether an entry of the root is one of ownDirs.
func isOwnDir(name string) bool { return slices.Contains(ownDirs, name) }

// planRoot decides what becomes of the files that the new deployment's tree has outside of ownDirs. Unless the root is a
// composefs image for certain, the running system can write to them. They become copies then: otherwise a change would damage
// the repository, other deployments and, with the object, everything else that has the file.
func (s *Sysroot) planRoot(p *Plan) error {
	config, err := p.tree.bootConfig(p.New.Kargs)
	if err != nil {
		return err
	}
	if config.TransientRoot && config.Composefs != prepareroot.Yes && config.Composefs != prepareroot.Maybe {
		return fmt.Errorf("/%s: a transient root needs composefs, else ostree-prepare-root fails: %w", config.File, ErrInvalid)
	}
	p.copyRoot = config.Composefs != prepareroot.Yes
	dirs, err := p.tree.stateDirs()
	if err != nil {
		return err
	}
	switch {
	case p.copyRoot && config.Composefs != prepareroot.Maybe:
		p.noteDirs(dirs, "what the running system writes there is lost with the next deployment")
	case !config.TransientRoot:
		dirs = slices.DeleteFunc(dirs, func(name string) bool { return !slices.Contains(homeDirs, name) })
		p.noteDirs(dirs, "the running system cannot write there")
	}
	return nil
}

// noteEtc notes local changes of /etc that the new deployment has in vain.
func (p *Plan) noteEtc() error {
	config, err := p.tree.prepareRoot()
	if err == nil && config.TransientEtc && len(p.Etc.Changes) > 0 {
		p.Notes = append(p.Notes, fmt.Sprintf(
			"/etc is the tree's at each boot (/%s): local changes of it are kept, without effect.", config.File))
	}
	return err
}

// maxNoted is the number of directories that a note names.
const maxNoted = 8

// noteDirs notes what becomes of directories of the root.
func (p *Plan) noteDirs(dirs []string, fate string) {
	if len(dirs) == 0 {
		return
	}
	var names []string
	for _, name := range dirs[:min(len(dirs), maxNoted)] {
		names = append(names, fmt.Sprintf("/%.60s", name))
	}
	if more := len(dirs) - maxNoted; more > 0 {
		names = append(names, fmt.Sprintf("%d more", more))
	}
	text := "The directory " + names[0] + " is"
	if last := len(names) - 1; last > 0 {
		text = "The directories " + strings.Join(names[:last], ", ") + " and " + names[last] + " are"
	}
	p.Notes = append(p.Notes, fmt.Sprintf("%s part of the tree: %s.", text, fate))
}

// homeDirs are the directories of the root whose only purpose is to be written to. Trees made for ostree have links to
// /var instead.
var homeDirs = []string{"home", "root", "srv"}

// stateDirs returns the directories outside of ownDirs that systems write to or that have content.
func (t *osTree) stateDirs() (names []string, err error) {
	root, err := t.rootOutside()
	if err != nil {
		return nil, err
	}
	for _, d := range root.Dirs {
		content, err := t.repo.DirTree(d.Tree)
		if err != nil {
			return nil, err
		}
		if len(content.Files)+len(content.Dirs) > 0 || d.Name == "opt" || slices.Contains(homeDirs, d.Name) {
			names = append(names, d.Name)
		}
	}
	return names, nil
}

// outsideSize returns the minimal size of copies of the files outside of ownDirs.
func (t *osTree) outsideSize(ctx context.Context, block uint64) (int64, error) {
	root, err := t.rootOutside()
	if err != nil {
		return 0, err
	}
	return t.contentSize(ctx, root, block)
}

// rootOutside returns the root of the tree without ownDirs.
func (t *osTree) rootOutside() (*objectstore.DirTree, error) {
	root, err := t.repo.DirTree(t.commit.Tree)
	if err != nil {
		return nil, err
	}
	return &objectstore.DirTree{
		Files: root.Files,
		Dirs:  slices.DeleteFunc(slices.Clone(root.Dirs), func(d objectstore.TreeDir) bool { return isOwnDir(d.Name) }),
	}, nil
}
