package sysroot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/selinux"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// updatedFile in /etc and /var tells systemd that the tasks after an update are done.
const updatedFile = ".updated"

// makeDeployment writes the plan's new deployment: its tree, its own /etc, its origin file. No name leads to it that
// boots. With the plan's merge of /etc, the deployment is finished.
func (s *Sysroot) makeDeployment(ctx context.Context, p *Plan) error {
	d := p.New
	if err := s.dir.MkdirAll(deploysDir(d.Stateroot), dirMode); err != nil {
		return err
	}
	if err := s.dir.MkdirAll(backingDir(d.Stateroot), 0o700); err != nil {
		return err
	}
	parent, err := s.dir.OpenDir(deploysDir(d.Stateroot))
	if err != nil {
		return err
	}
	defer parent.Close()
	opts := objectstore.CheckoutOptions{PassthroughWhiteouts: true}
	if p.copyRoot {
		opts.CopyTop = func(name string) bool { return !isOwnDir(name) }
	}
	if err := s.repo.Checkout(ctx, d.Commit, parent, d.Name(), opts); err != nil {
		return err
	}
	root, err := parent.OpenDir(d.Name())
	if err != nil {
		return err
	}
	defer root.Close()
	if err := s.giveCfs(ctx, p, root); err != nil {
		return err
	}
	if err := s.makeEtc(ctx, p.tree, root); err != nil {
		return err
	}
	if p.filledVar, err = s.fillVar(ctx, p.tree, d.Stateroot); err != nil {
		return err
	}
	if err := s.makeTmp(p.tree); err != nil {
		return err
	}
	if err := s.writeOrigin(d, p.policy, false); err != nil {
		return err
	}
	if p.Staged {
		return nil
	}
	return s.finishDeployment(ctx, p, root)
}

// makeTmp creates /tmp of the sysroot for a tree whose own leads there, as with rpm-ostree.
func (s *Sysroot) makeTmp(t *osTree) error {
	n, err := t.lookup("tmp")
	if isAbsent(err) || err == nil && n.Dir {
		return nil
	}
	if err != nil {
		return err
	}
	m, err := t.repo.FileMeta(n.Checksum)
	if err != nil || m.Target != "sysroot/tmp" {
		return err
	}
	if err = s.dir.Mkdir("tmp", 0o1777); errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

// makeEtc gives a deployment a writable /etc: a copy of its /usr/etc. Older trees have it as /etc.
func (s *Sysroot) makeEtc(ctx context.Context, t *osTree, root *atfs.Dir) error {
	etc, err := t.lookup("etc")
	if err == nil && etc.Dir {
		usrEtc, uerr := t.lookup("usr/etc")
		switch {
		case isAbsent(uerr):
			err = root.Rename("etc", root, "usr/etc", 0)
		case uerr != nil:
			err = uerr
		default:
			etc = usrEtc
			err = root.Rmdir("etc") // which is empty
		}
	} else if isAbsent(err) {
		etc, err = t.lookup("usr/etc")
	}
	if isAbsent(err) || err == nil && !etc.Dir {
		return nil
	}
	if err != nil {
		return err
	}
	return s.repo.CheckoutTree(ctx, etc.Checksum, etc.Meta, root, "etc", objectstore.CheckoutOptions{ForceCopy: true, PassthroughWhiteouts: true})
}

// varTmp holds the new /var until it is complete, and then the old /var until it is no longer needed.
const varTmp = "var.tmp-init"

// fillVar replaces an empty /var of a stateroot by the commit's, atomically, and reports whether it did. A later
// deployment merges nothing.
func (s *Sysroot) fillVar(ctx context.Context, t *osTree, stateroot string) (filled bool, err error) {
	names, err := readNames(s.dir, varDir(stateroot))
	if len(names) > 0 || err != nil {
		return false, err
	}
	parent, err := s.dir.OpenDir(staterootDir(stateroot))
	if err != nil {
		return false, err
	}
	defer parent.Close()
	if err := parent.RemoveAll(varTmp); err != nil {
		return false, err
	}
	if err := s.writeVar(ctx, t, parent); err != nil {
		return false, err
	}
	if names, err = readNames(parent, varTmp); err != nil {
		return false, err
	}
	if len(names) == 0 {
		return false, parent.Rmdir(varTmp) // it would change only attributes
	}
	err = parent.Rename(varTmp, parent, "var", unix.RENAME_EXCHANGE)
	if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EXDEV) {
		err = fmt.Errorf("%s is an empty file system of its own, which the commit's /var must be copied to by hand: %w", varDir(stateroot), err)
	}
	return err == nil, err
}

// writeVar writes the initial contents of /var.
func (s *Sysroot) writeVar(ctx context.Context, t *osTree, parent *atfs.Dir) error {
	n, err := t.lookup("var")
	switch {
	case isAbsent(err) || err == nil && !n.Dir:
		err = parent.Mkdir(varTmp, dirMode)
	case err == nil:
		err = s.repo.CheckoutTree(ctx, n.Checksum, n.Meta, parent, varTmp, objectstore.CheckoutOptions{ForceCopy: true})
	}
	if err != nil {
		return err
	}
	if _, err := t.lookup("usr/lib/tmpfiles.d"); !isAbsent(err) {
		return err
	}
	return legacyVar(parent, varTmp)
}

// emptyVar undoes fillVar. The contents become a leftover.
func (s *Sysroot) emptyVar(stateroot string) error {
	parent, err := s.dir.OpenDir(staterootDir(stateroot))
	if err != nil {
		return err
	}
	return errors.Join(parent.Rename(varTmp, parent, "var", unix.RENAME_EXCHANGE), parent.Close())
}

// legacyVar creates the directories that every system expects in /var, for systems that do not create them.
func legacyVar(parent *atfs.Dir, name string) error {
	for _, d := range []struct {
		name string
		mode uint32
	}{{"tmp", 0o1777}, {"lib", dirMode}, {"log", dirMode}} {
		err := parent.Mkdir(path.Join(name, d.name), d.mode)
		if errors.Is(err, fs.ErrExist) && d.mode&unix.S_ISVTX != 0 {
			err = parent.Chmod(path.Join(name, d.name), d.mode)
		}
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	for _, l := range []struct{ name, target string }{{"run", "../run"}, {"lock", "../run/lock"}} {
		if err := parent.Symlink(l.target, path.Join(name, l.name)); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// finishDeployment does the last steps of a deployment: it merges the changes of /etc, labels files, and makes the root
// immutable. It can be repeated.
func (s *Sysroot) finishDeployment(ctx context.Context, p *Plan, root *atfs.Dir) error {
	d := p.New
	if p.Etc != nil {
		if err := s.mergeEtc(ctx, p, root); err != nil {
			return err
		}
	}
	for _, name := range []string{d.Path() + "/etc/" + updatedFile, varDir(d.Stateroot) + "/" + updatedFile} {
		if err := atfs.IgnoreNotExist(s.dir.Unlink(name)); err != nil {
			return err
		}
	}
	if err := s.labelDeployment(ctx, p, root); err != nil {
		return err
	}
	if err := s.makeBacking(d); err != nil {
		return err
	}
	if err := s.labelSysroot(d, p.policy); err != nil {
		return err
	}
	return root.SetImmutable(true)
}

func (s *Sysroot) mergeEtc(ctx context.Context, p *Plan, root *atfs.Dir) error {
	current, err := s.dir.OpenDir(p.merge.Path() + "/etc")
	if err != nil {
		return err
	}
	defer current.Close()
	to, err := root.OpenDir("etc")
	if err != nil {
		return err
	}
	return errors.Join(p.Etc.Apply(ctx, current, to), to.Close())
}

// Directories of a deployment in the stateroot's backing directory.
const (
	transientUpper = "root-transient/upper"
	transientWork  = "root-transient/work"
)

// makeBacking creates the directories for the upper layer of a transient root, as ostree does since 2023.9.
func (s *Sysroot) makeBacking(d *Deployment) error {
	root, err := s.dir.Lstat(d.Path())
	if err != nil {
		return err
	}
	base := path.Join(backingDir(d.Stateroot), d.Name())
	if err := s.dir.MkdirAll(path.Join(base, transientWork), 0o700); err != nil {
		return err
	}
	return s.dir.MkdirAll(path.Join(base, transientUpper), root.Mode&0o7777)
}

// originLabel is the path whose label origin files get, as with libostree.
const originLabel = "/etc/ostree/remotes.d/dummy.conf"

// writeOrigin writes the origin file of a deployment that has one. It keeps its label; a new one gets that of the policy.
func (s *Sysroot) writeOrigin(d *Deployment, policy *selinux.Policy, sync bool) error {
	if d.Origin == nil {
		return nil
	}
	label, err := labelOf(s.dir, originPath(d))
	if atfs.IgnoreNotExist(err) != nil {
		return err
	}
	if label == "" && policy != nil {
		label, _ = policy.Label(originLabel, 0)
	}
	if err := s.dir.WriteFile(originPath(d), d.Origin.Marshal(), fileMode, sync); err != nil || label == "" {
		return err
	}
	return setLabel(s.dir, originPath(d), label)
}
