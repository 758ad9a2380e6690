package sysroot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/bls"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// A leftover is a part of a sysroot that no deployment needs.
type leftover struct {
	dir        *atfs.Dir // name is below it
	name       string
	deployment bool // the directory of a deployment, which may be immutable
}

func (l leftover) String() string { return path.Join(l.dir.Path(), l.name) }

func (l leftover) remove() error {
	if l.deployment {
		d, err := l.dir.OpenDir(l.name)
		if err == nil {
			err = errors.Join(d.SetImmutable(false), d.Close())
		}
		if err = atfs.IgnoreNotExist(err); err != nil {
			return err
		}
	}
	return l.dir.RemoveAll(l.name) // clears the flags of what is below
}

// leftovers finds the parts that neither the deployments of a state nor the others need, in the order in which to
// remove them: links before their targets.
func (s *Sysroot) leftovers(st *State, others []*Deployment) ([]leftover, error) {
	keep := slices.Concat(st.All(), others)
	find := []func(*State, []*Deployment) ([]leftover, error){s.oldSwitches, s.oldDeployments, s.oldKernels}
	if st.incomplete {
		find = find[:1] // the others may belong to an entry that could not be read
	}
	var found []leftover
	for _, f := range find {
		l, err := f(st, keep)
		if err != nil {
			return nil, err
		}
		found = append(found, l...)
	}
	return found, nil
}

// oldSwitches finds entries and links that do not lead to what boots.
func (s *Sysroot) oldSwitches(st *State, _ []*Deployment) (found []leftover, err error) {
	b, sub := st.BootVersion, st.SubBootVersion
	other := 1 - b
	inOSTree := func(name string) leftover { return leftover{dir: s.dir, name: path.Join(ostreeDir, name)} }
	candidates := []leftover{
		{dir: s.boot, name: "loader.tmp"},
		{dir: s.boot, name: loaderDir(other)},
		inOSTree("boot.0.tmp"), inOSTree("boot.1.tmp"),
		inOSTree(fmt.Sprintf("boot.%d", other)),
		inOSTree(fmt.Sprintf("boot.%d.0", other)),
		inOSTree(fmt.Sprintf("boot.%d.1", other)),
		inOSTree(fmt.Sprintf("boot.%d.%d", b, 1-sub)),
	}
	// Incomplete files are beside those that they were to replace.
	names, err := readNames(s.boot, entriesDir(b))
	for _, n := range names {
		if strings.Contains(n, ".tmp-") && strings.HasPrefix(n, "ostree-") {
			candidates = append(candidates, leftover{dir: s.boot, name: path.Join(entriesDir(b), n)})
		}
	}
	for _, c := range candidates {
		if err != nil {
			return nil, err
		}
		var ok bool
		if ok, err = c.dir.Exists(c.name); ok {
			found = append(found, c)
		}
	}
	return found, err
}

// deployName matches the entries of the directory of deployments: a deployment, or its origin file, complete or not.
var deployName = regexp.MustCompile(`^([0-9a-f]{64}\.[0-9]+)(\.origin(\.tmp-[0-9a-z]+)?)?$`)

// oldDeployments finds the directories of deployments that are not kept.
func (s *Sysroot) oldDeployments(_ *State, keep []*Deployment) (found []leftover, err error) {
	kept := make(map[string]bool)
	for _, d := range keep {
		kept[d.Path()] = true
	}
	booted, err := s.findBooted()
	if err != nil {
		return nil, err
	}
	stateroots, err := s.subdirs(deployDir)
	if err != nil {
		return nil, err
	}
	for _, stateroot := range stateroots {
		l, err := s.oldInStateroot(stateroot, kept, booted)
		if err != nil {
			return nil, err
		}
		found = append(found, l...)
	}
	return found, nil
}

func (s *Sysroot) oldInStateroot(stateroot string, kept map[string]bool, booted *atfs.Inode) (found []leftover, err error) {
	dir := deploysDir(stateroot)
	names, err := readNames(s.dir, dir)
	if err != nil {
		return nil, err
	}
	// The origin file goes first: it tells a deployment from one that is half removed.
	slices.Reverse(names)
	for _, n := range names {
		m := deployName.FindStringSubmatch(n)
		if m == nil || kept[path.Join(dir, m[1])] && m[3] == "" {
			continue
		}
		l := leftover{s.dir, path.Join(dir, n), m[2] == ""}
		if l.deployment && booted != nil {
			is, err := s.isInode(l.name, booted)
			if err != nil {
				return nil, err
			}
			if is {
				continue // the system runs on it, whatever boots next
			}
		}
		found = append(found, l)
	}
	if names, err = readNames(s.dir, backingDir(stateroot)); err != nil {
		return nil, err
	}
	for _, n := range names {
		if deployName.MatchString(n) && !kept[path.Join(dir, n)] {
			found = append(found, leftover{dir: s.dir, name: path.Join(backingDir(stateroot), n)})
		}
	}
	tmp := leftover{dir: s.dir, name: path.Join(staterootDir(stateroot), varTmp)}
	ok, err := s.dir.Exists(tmp.name)
	if ok {
		found = append(found, tmp)
	}
	return found, err
}

const overlaysDir = "ostree/initramfs-overlays"

func overlayPath(sum string) string { return overlaysDir + "/" + sum + ".img" }

// overlaysOf returns the checksums of the initramfs images of an entry after the first.
func overlaysOf(e *bls.Entry) (sums []string) {
	for _, name := range e.Initrd[min(1, len(e.Initrd)):] {
		sum, ok := strings.CutSuffix(path.Base(name), ".img")
		if _, err := objectstore.ParseChecksum(sum); ok && err == nil {
			sums = append(sums, sum)
		}
	}
	return sums
}

// oldKernels finds kernels and initramfs images in /boot that no deployment boots.
func (s *Sysroot) oldKernels(_ *State, keep []*Deployment) (found []leftover, err error) {
	kept := make(map[string]bool)
	for _, d := range keep {
		kept[kernelDir(d)] = true
		for _, sum := range d.overlays {
			kept[overlayPath(sum)] = true
		}
	}
	names, err := readNames(s.boot, ostreeDir)
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		if _, _, ok := cutChecksum(n); ok && !kept[path.Join(ostreeDir, n)] {
			found = append(found, leftover{dir: s.boot, name: path.Join(ostreeDir, n)})
		}
	}
	if names, err = readNames(s.boot, overlaysDir); err != nil {
		return nil, err
	}
	for _, n := range names {
		sum, _ := strings.CutSuffix(n, ".img")
		if _, err := objectstore.ParseChecksum(sum); err == nil && !kept[path.Join(overlaysDir, n)] {
			found = append(found, leftover{dir: s.boot, name: path.Join(overlaysDir, n)})
		}
	}
	return found, nil
}

// removeLeftovers removes the parts that neither the present sysroot nor the others need. A file that cannot be removed
// does not stop it: the error is then an objectstore.ErrNotRemoved that names the file.
func (s *Sysroot) removeLeftovers(ctx context.Context, st *State, others []*Deployment) error {
	found, err := s.leftovers(st, others)
	if err != nil {
		return err
	}
	var errs []error
	for _, l := range found {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := l.remove(); err != nil {
			errs = append(errs, err)
		}
	}
	return objectstore.NotRemoved(errs...)
}

// isPartly reports whether an error is only about files that could not be removed.
func isPartly(err error) bool { return errors.Is(err, objectstore.ErrNotRemoved) }

// cleanup removes the parts that the sysroot, as it is on the disk, no longer needs. The boot loader is updated before:
// the files that it knew until now must not go first. Files that cannot be removed do not stop it.
func (s *Sysroot) cleanup(ctx context.Context, prune bool) error {
	st, err := s.load(ctx)
	if err != nil {
		return err
	}
	if s.opts.Bootloader != nil {
		entries, _, err := s.readEntries(st.BootVersion)
		if err != nil {
			return err
		}
		if err := s.opts.Bootloader.Write(ctx, s.boot, entries); err != nil {
			return fmt.Errorf("write boot loader: %w", err)
		}
	}
	if err := s.writeRefs(ctx, st); err != nil {
		return err
	}
	kept := s.removeLeftovers(ctx, st, nil)
	if kept != nil && !isPartly(kept) || !prune {
		return kept
	}
	plan, err := s.repo.PlanPrune(ctx, objectstore.PruneOptions{NoHistory: true})
	if err == nil {
		_, err = plan.Execute(ctx)
	}
	if err != nil && !isPartly(err) {
		return err // rather than errors that would pass for all that is wrong
	}
	return errors.Join(kept, err)
}

var deploymentRef = regexp.MustCompile(`^ostree/[01]/[01]/[0-9]+$`)

// writeRefs gives the commit of each deployment a ref, a staged one included, so that no prune removes it. New refs
// exist before old ones go.
func (s *Sysroot) writeRefs(ctx context.Context, st *State) error {
	refs, err := s.repo.Refs(ostreeDir)
	if err != nil {
		return err
	}
	txn, err := s.repo.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, txn.Abort()) }()
	changed := false
	wanted := make(map[string]bool)
	for i, d := range st.All() {
		name := fmt.Sprintf("ostree/%d/%d/%d", st.BootVersion, st.SubBootVersion, i)
		wanted[name] = true
		if old, ok := refs[name]; ok && old == d.Commit {
			continue
		}
		changed = true
		txn.SetRef(name, d.Commit)
	}
	var old []string
	for name := range refs {
		if deploymentRef.MatchString(name) && !wanted[name] {
			old = append(old, name)
		}
	}
	slices.Sort(old)
	for _, name := range old {
		changed = true
		txn.DeleteRef(name)
	}
	if !changed {
		return nil
	}
	return txn.Commit(ctx, objectstore.CommitOptions{Sync: true})
}

// installOverlays installs the additional initramfs images of a deployment in /boot. New ones are in /run.
func (s *Sysroot) installOverlays(d *Deployment) error {
	for _, sum := range d.overlays {
		name := overlayPath(sum)
		if ok, err := s.boot.Exists(name); err != nil {
			return err
		} else if ok {
			continue
		}
		if s.run == nil {
			return fmt.Errorf("%s: %w", name, fs.ErrNotExist)
		}
		src, err := s.run.OpenFile(path.Join(stagedInitrdsDir, sum), unix.O_RDONLY, 0)
		if err != nil {
			return err
		}
		if err = s.boot.MkdirAll(overlaysDir, dirMode); err == nil {
			err = copyInto(src, s.boot, name, "") // it gets the label of its directory
		}
		if err = errors.Join(err, src.Close()); err != nil {
			return err
		}
	}
	return nil
}
