package sysroot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/etcmerge"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/internal/links"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/selinux"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// labelledFile, below /var, records that the files of /var have got their labels. libostree creates it too.
const labelledFile = ".ostree-selabeled"

// hasLabels reports whether the files of the tree have SELinux labels. Those of a deployment then need them too.
func (t *osTree) hasLabels() (bool, error) {
	m, err := t.repo.DirMeta(t.commit.Meta)
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(m.Xattrs, func(x objectstore.Xattr) bool { return x.Name == atfs.XattrSELinux }), nil
}

// policy returns the SELinux policy of a tree whose files have labels. It returns nil if they have none, or if the tree's
// configuration disables the policy.
func (t *osTree) policy() (*selinux.Policy, error) {
	if has, err := t.hasLabels(); !has || err != nil {
		return nil, err
	}
	etc := "etc/selinux"
	if _, err := t.lookup(etc); isAbsent(err) {
		etc = "usr/etc/selinux"
	} else if err != nil {
		return nil, err
	}
	return loadPolicy(etc, func(name string) ([]byte, error) { return t.readFile(name, selinux.MaxFile) })
}

// deployedPolicy returns the policy of a deployment, with the local changes in /etc, or nil if it has none.
func deployedPolicy(root *atfs.Dir) (*selinux.Policy, error) {
	etc := "etc/selinux"
	if ok, err := root.Exists(etc); err != nil {
		return nil, err
	} else if !ok {
		etc = "usr/etc/selinux"
	}
	return loadPolicy(etc, func(name string) ([]byte, error) {
		file, err := links.Resolve(name, func(name string) (here, target string, err error) {
			target, err = linkTarget(root, name)
			return name, target, err
		})
		if err != nil {
			return nil, err
		}
		return root.ReadFile(file, selinux.MaxFile)
	})
}

func loadPolicy(dir string, read selinux.ReadFile) (*selinux.Policy, error) {
	p, err := selinux.Load(func(name string) ([]byte, error) {
		data, err := read(name)
		switch {
		case isAbsent(err):
			err = fs.ErrNotExist
		case err != nil && isUnusable(err):
			err = fmt.Errorf("%w: %w", selinux.ErrInvalid, err)
		}
		return data, err
	}, dir)
	if errors.Is(err, selinux.ErrNoPolicy) {
		return nil, nil
	}
	return p, err
}

// isUnusable reports whether an error says that a path is no file that a policy may have, such as a directory, a loop of
// links, or a file that is too large.
func isUnusable(err error) bool {
	return slices.ContainsFunc([]error{unix.EISDIR, unix.EFBIG, ErrInvalid, unix.ELOOP, unix.ENOTDIR, unix.ENAMETOOLONG},
		func(kind error) bool { return errors.Is(err, kind) })
}

// planPolicy reads the policy of the new deployment's tree. With allowed, one that cannot be used is no error: the files that
// are not in the commit get no labels then.
func (p *Plan) planPolicy(allowed bool) (err error) {
	p.policy, err = p.tree.policy()
	if allowed && errors.Is(err, selinux.ErrInvalid) {
		p.dropPolicy(err)
		err = nil
	}
	return err
}

// dropPolicy makes the plan do without a policy that cannot be used.
func (p *Plan) dropPolicy(err error) {
	if !p.noPolicy {
		p.Notes = append(p.Notes, fmt.Sprintf(
			"Files have the labels of the commit; those of /etc, /var and /boot that are not in it get none: %v.", err))
	}
	p.policy, p.noPolicy = nil, true
}

// checkLocalPolicy refuses changes of /etc/selinux that make the policy unusable. Otherwise a staged deployment would fail when
// it is finalized, and any other in the middle. With allowed, the plan does without the policy, as in planPolicy.
func (s *Sysroot) checkLocalPolicy(p *Plan, etc *etcmerge.Plan, allowed bool) error {
	isPolicy := func(c etcmerge.Change) bool { return c.Path == "selinux" || strings.HasPrefix(c.Path, "selinux/") }
	if p.policy == nil || etc == nil || !slices.ContainsFunc(etc.Changes, isPolicy) {
		return nil
	}
	current, err := s.dir.OpenDir(p.merge.Path() + "/etc")
	if err != nil {
		return err
	}
	defer current.Close()
	_, err = loadPolicy("etc/selinux", mergedReader(p.tree, current, etc.Changes))
	if allowed && errors.Is(err, selinux.ErrInvalid) {
		p.dropPolicy(err)
		err = nil
	}
	return err
}

// mergedReader reads files as a deployment of a tree has them that takes over changes of the current /etc.
func mergedReader(t *osTree, current *atfs.Dir, changes []etcmerge.Change) selinux.ReadFile {
	kinds := make(map[string]etcmerge.Kind, len(changes))
	for _, c := range changes {
		kinds[c.Path] = c.Kind
	}
	type file struct {
		local string // below the current /etc; "": none
		entry objectstore.TreeEntry
	}
	look := func(name string) (f file, target string, err error) {
		below, inEtc := strings.CutPrefix(name, "etc/")
		kind, changed := kinds[below]
		switch {
		case !inEtc || !changed:
			if f.entry, target, err = t.look(name); isAbsent(err) && (inEtc || name == "etc") {
				f.entry, target, err = t.look("usr/" + name)
			}
		case kind == etcmerge.Removed:
			err = objectstore.ErrNoEntry
		default:
			f.local = below
			target, err = linkTarget(current, below)
		}
		return f, target, err
	}
	return func(name string) ([]byte, error) {
		f, err := links.Resolve(name, look)
		switch {
		case err != nil:
			return nil, err
		case f.local != "":
			return current.ReadFile(f.local, selinux.MaxFile)
		}
		return t.readEntry(f.entry, name, selinux.MaxFile)
	}
}

// linkTarget returns the target of a symbolic link, or "" for another file. An absent one is isAbsent.
func linkTarget(dir *atfs.Dir, name string) (string, error) {
	st, err := dir.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		err = errors.Join(err, objectstore.ErrNoEntry)
	}
	if err != nil || st.Mode&unix.S_IFMT != unix.S_IFLNK {
		return "", err
	}
	return dir.Readlink(name)
}

// labelDeployment gives the files of a new deployment that are not in its commit their labels, by the policy in root, its
// directory, which has the merged /etc. It writes no label to an inode of the repository.
func (s *Sysroot) labelDeployment(ctx context.Context, p *Plan, root *atfs.Dir) error {
	has, err := p.tree.hasLabels()
	if err != nil {
		return err
	}
	policy, err := deployedPolicy(root)
	if !has {
		if policy == nil && err == nil {
			return s.labelVar(ctx, p, nil)
		}
		return nil // a later deployment that has labels labels /var
	}
	if errors.Is(err, selinux.ErrInvalid) && (p.noSELinux || p.noPolicy) {
		p.dropPolicy(err)
		return nil // likewise
	}
	if err != nil {
		return err
	}
	if p.policy = policy; policy != nil {
		l := labeler{ctx: ctx, policy: policy}
		if err := l.tree(root, "etc", "/etc"); err != nil {
			return err
		}
	}
	return s.labelVar(ctx, p, policy)
}

// labelVar gives the files in the stateroot's /var their labels, once, and records that. As with libostree, a deployment
// without a policy counts. Files that cannot be labelled are noted; the deployment can do without.
func (s *Sysroot) labelVar(ctx context.Context, p *Plan, policy *selinux.Policy) error {
	parent, err := s.dir.OpenDir(staterootDir(p.New.Stateroot))
	if err != nil {
		return err
	}
	defer parent.Close()
	dir, err := parent.OpenDir("var")
	if err != nil {
		return err
	}
	defer dir.Close()
	if ok, err := dir.Exists(labelledFile); ok || err != nil {
		return err
	}
	label := ""
	if policy != nil {
		l := labeler{ctx: ctx, policy: policy, left: &unlabelled{}}
		if err := l.tree(parent, "var", "/var"); err != nil {
			return err
		}
		// The record must not survive a power failure that the labels do not.
		if err := dir.SyncFS(); err != nil {
			return err
		}
		if note := l.left.String(); note != "" {
			p.Notes = append(p.Notes, note)
		}
		label, _ = policy.Label(path.Join("/var", labelledFile), 0)
	}
	p.stampedVar, err = writeLabelled(dir, label)
	return err
}

// writeLabelled records in /var that its files have labels, and reports whether the record exists now.
func writeLabelled(dir *atfs.Dir, label string) (done bool, err error) {
	f, err := dir.TmpFile(fileMode)
	if err != nil {
		return false, err
	}
	defer f.Close()
	if err := f.Chmod(fileMode); err != nil {
		return false, err
	}
	if err := labelFile(f, label); err != nil {
		return false, err
	}
	if err := f.Sync(); err != nil {
		return false, err
	}
	if err := f.LinkTo(dir, labelledFile); err != nil {
		return false, err
	}
	return true, dir.Sync()
}

// unlabelVar undoes the record of labelVar. The labels are right whoever deploys next.
func (s *Sysroot) unlabelVar(stateroot string) error {
	return atfs.IgnoreNotExist(s.dir.Unlink(path.Join(varDir(stateroot), labelledFile)))
}

// labelSysroot gives the sysroot's own directories labels, where they have none: the root and /boot those of the policy, the
// others the label of the directory that they are in, as a kernel with SELinux has done.
func (s *Sysroot) labelSysroot(d *Deployment, policy *selinux.Policy) error {
	if policy == nil {
		return nil
	}
	for _, r := range []struct {
		dir *atfs.Dir
		at  string
	}{{s.dir, "/"}, {s.boot, "/boot"}} {
		label, _ := policy.Label(r.at, fs.ModeDir)
		if err := labelNew(r.dir, ".", label); err != nil {
			return err
		}
	}
	upper := path.Join(backingDir(d.Stateroot), d.Name(), transientUpper)
	label, _ := policy.Label("/", fs.ModeDir)
	if err := labelNew(s.dir, upper, label); err != nil {
		return err
	}
	for _, name := range []string{ostreeDir, deployDir, staterootDir(d.Stateroot), deploysDir(d.Stateroot)} {
		if err := inheritLabel(s.dir, name); err != nil {
			return err
		}
	}
	return inheritLabels(s.dir, backingDir(d.Stateroot))
}

// labelNew gives a file a label if it has none.
func labelNew(dir *atfs.Dir, name, label string) error {
	if have, err := labelOf(dir, name); have != "" || label == "" || err != nil {
		return err
	}
	return setLabel(dir, name, label)
}

// inheritLabel gives a file that has no label that of its directory.
func inheritLabel(dir *atfs.Dir, name string) error {
	label, err := labelOf(dir, path.Dir(name))
	if err != nil {
		return err
	}
	return labelNew(dir, name, label)
}

// inheritLabels is inheritLabel for names and everything below them. Names that do not exist, and files with several names,
// are left out.
func inheritLabels(dir *atfs.Dir, names ...string) error {
	for _, name := range names {
		label, err := labelOf(dir, path.Dir(name))
		if err != nil || label == "" {
			return err
		}
		if err := inheritBelow(dir, name, label); err != nil {
			return err
		}
	}
	return nil
}

func inheritBelow(dir *atfs.Dir, name, label string) error {
	st, err := dir.Lstat(name)
	isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	if err != nil || !isDir && st.Nlink > 1 {
		return atfs.IgnoreNotExist(err)
	}
	have, err := labelOf(dir, name)
	if have == "" && err == nil {
		have, err = label, setLabel(dir, name, label)
	}
	if err != nil || !isDir {
		return err
	}
	sub, err := dir.OpenDir(name)
	if err != nil {
		return err
	}
	names, err := sub.ReadNames()
	slices.Sort(names)
	for _, n := range names {
		if err == nil {
			err = inheritBelow(sub, n, have)
		}
	}
	return errors.Join(err, sub.Close())
}

// bootLabel returns the label of a file in /boot, or "" for none, and whether its object has another one.
func (s *Sysroot) bootLabel(f treeFile, name string, policy *selinux.Policy) (label string, relabel bool, err error) {
	if policy == nil {
		return "", false, nil
	}
	label, ok := policy.Label(path.Join("/boot", name), 0)
	if !ok {
		return "", false, nil
	}
	m, err := s.repo.FileMeta(f.sum)
	if err != nil {
		return "", false, err
	}
	for _, x := range m.Xattrs {
		if x.Name == atfs.XattrSELinux && labelText(x.Value) == label {
			return label, false, nil
		}
	}
	return label, true, nil
}

// labelOf returns the label of a file in dir, or "" for none.
func labelOf(dir *atfs.Dir, name string) (string, error) {
	value, err := dir.Xattr(name, atfs.XattrSELinux)
	return labelText(value), err
}

// labelText returns a label without the zero byte that ends it on disk. The label that the kernel shows for a file without
// one counts as none.
func labelText(value []byte) string {
	text := strings.TrimRight(string(value), "\x00")
	if parts := strings.Split(text, ":"); len(parts) > 2 && parts[2] == "unlabeled_t" {
		return ""
	}
	return text
}

// setLabel gives a file in dir a label, unless it has it, or its file system has no labels.
func setLabel(dir *atfs.Dir, name, label string) error {
	if have, err := labelOf(dir, name); have == label || err != nil {
		return err
	}
	if name == "." {
		return labelError(label, dir.SetxattrSelf(atfs.XattrSELinux, labelValue(label)))
	}
	return labelError(label, dir.Setxattr(name, atfs.XattrSELinux, labelValue(label)))
}

// labelFile gives an open file a label, unless that is "", or its file system has no labels.
func labelFile(f *atfs.File, label string) error {
	if label == "" {
		return nil
	}
	return labelError(label, f.Setxattr(atfs.XattrSELinux, labelValue(label)))
}

// labelValue returns a label as it is stored.
func labelValue(label string) []byte { return append([]byte(label), 0) }

func labelError(label string, err error) error {
	switch {
	case errors.Is(err, unix.ENOTSUP):
		return nil // on a file system without labels, such as FAT
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("the running kernel's policy does not know the label %q, and refuses it: %w", label, err)
	}
	return err
}
