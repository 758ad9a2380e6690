package sysroot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/bls"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/kargs"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/selinux"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
)

// writeList makes the sysroot boot a list of deployments, whose directories are complete. If the entries can stay, only
// the links change that they lead to; else new entries are written beside the old ones, and the switch is thrown.
// Either is a single rename: before it the old deployments boot, after it the new ones.
//
// The order of these steps must not be changed.
func (s *Sysroot) writeList(ctx context.Context, p *Plan) error {
	st, list := p.state, p.Deployments
	if sameBoots(st.Deployments, list) {
		return s.switchLinks(st, list)
	}
	return s.switchEntries(ctx, p)
}

// switchLinks makes a change that boot loaders do not see.
func (s *Sysroot) switchLinks(st *State, list []*Deployment) error {
	b, sub := st.BootVersion, 1-st.SubBootVersion
	if err := s.writeLinks(b, sub, list); err != nil {
		return err
	}
	if err := s.syncAll(); err != nil {
		return err
	}
	if err := s.switchSub(b, sub); err != nil {
		return err
	}
	return syncDir(s.dir, ostreeDir)
}

func (s *Sysroot) switchEntries(ctx context.Context, p *Plan) error {
	b := 1 - p.state.BootVersion
	old, err := s.subBootVersion(b)
	if err != nil {
		return err
	}
	sub := 1 - old
	if err := s.writeEntries(ctx, p, b); err != nil {
		return err
	}
	if err := s.writeLinks(b, sub, p.Deployments); err != nil {
		return err
	}
	if err := s.switchSub(b, sub); err != nil { // nothing leads there yet
		return err
	}
	// Entries may have /boot in front of their paths, whether /boot is a file system of its own or not.
	if err := s.boot.Symlink(".", bootDir); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := inheritLabels(s.boot, bootDir, ostreeDir, loaderDir(b)); err != nil {
		return err
	}
	if err := prepareLink(s.boot, loaderDir(b), "loader"); err != nil {
		return err
	}
	if err := s.syncAll(); err != nil {
		return err
	}
	if err := throwLink(s.boot, "loader"); err != nil {
		return err
	}
	if err := s.boot.Sync(); err != nil {
		return err
	}
	// A boot loader that does not read the journal must not find the old entries when their files are removed.
	return syncForBootloader(s.boot)
}

// syncAll makes everything durable that the next rename leads to.
func (s *Sysroot) syncAll() error {
	if err := s.dir.SyncFS(); err != nil {
		return err
	}
	return syncForBootloader(s.boot)
}

// writeLinks writes ostree/boot.B.S anew.
func (s *Sysroot) writeLinks(b, sub int, list []*Deployment) error {
	base := linksDir(b, sub)
	if err := s.dir.RemoveAll(base); err != nil {
		return err
	}
	if err := s.dir.MkdirAll(base, dirMode); err != nil {
		return err
	}
	for i, serial := range bootSerials(list) {
		d := list[i]
		dir := path.Join(base, d.Stateroot, d.BootCsum)
		if err := s.dir.MkdirAll(dir, dirMode); err != nil {
			return err
		}
		target := path.Join("../../../deploy", d.Stateroot, "deploy", d.Name())
		if err := s.dir.Symlink(target, path.Join(dir, strconv.Itoa(serial))); err != nil {
			return err
		}
	}
	return inheritLabels(s.dir, base)
}

// switchSub makes ostree/boot.B lead to boot.B.S.
func (s *Sysroot) switchSub(b, sub int) error {
	d, err := s.dir.OpenDir(ostreeDir)
	if err != nil {
		return err
	}
	defer d.Close()
	name := "boot." + strconv.Itoa(b)
	if err := prepareLink(d, path.Base(linksDir(b, sub)), name); err != nil {
		return err
	}
	return throwLink(d, name)
}

// prepareLink creates the link to which throwLink gives its name.
func prepareLink(d *atfs.Dir, target, name string) error {
	tmp := name + ".tmp"
	if err := atfs.IgnoreNotExist(d.Unlink(tmp)); err != nil {
		return err
	}
	if err := d.Symlink(target, tmp); err != nil {
		return err
	}
	return inheritLabels(d, tmp)
}

func throwLink(d *atfs.Dir, name string) error { return d.Rename(name+".tmp", d, name, 0) }

// writeEntries writes boot/loader.B/entries anew, and installs the files that they name in /boot.
func (s *Sysroot) writeEntries(ctx context.Context, p *Plan, b int) error {
	if err := s.boot.RemoveAll(loaderDir(b)); err != nil {
		return err
	}
	if err := s.boot.MkdirAll(entriesDir(b), dirMode); err != nil {
		return err
	}
	several := false
	for _, d := range p.Deployments {
		several = several || d.Stateroot != p.Deployments[0].Stateroot
	}
	for i, serial := range bootSerials(p.Deployments) {
		d := p.Deployments[i]
		names, err := s.installKernel(ctx, p, d)
		if err != nil {
			return fmt.Errorf("install kernel of %s: %w", d.short(), err)
		}
		arg := bls.OSTreeArg{BootVersion: b, Stateroot: d.Stateroot, BootCsum: d.BootCsum, BootSerial: serial}
		e, err := s.makeEntry(p, d, names, arg, i, several)
		var text []byte
		if err == nil {
			text, err = marshalEntry(e, arg, d.entry == nil)
		}
		if err != nil {
			return fmt.Errorf("boot loader entry of %s: %w", d.short(), err)
		}
		name := path.Join(entriesDir(b), s.entryName(d, len(p.Deployments)-i).String())
		if err := s.boot.WriteFile(name, text, fileMode, false); err != nil {
			return err
		}
	}
	return nil
}

// entryName returns the name of the entry of a deployment with the version n.
func (s *Sysroot) entryName(d *Deployment, n int) bls.Name {
	stem := fmt.Sprintf("ostree-%d-%s", n, d.Stateroot)
	if s.opts.NewEntryNames {
		stem = fmt.Sprintf("ostree-%d", n)
	}
	return bls.Name{Stem: stem, Tries: d.Tries}
}

func (s *Sysroot) makeEntry(p *Plan, d *Deployment, names bootNames, arg bls.OSTreeArg, index int, several bool) (*bls.Entry, error) {
	e := &bls.Entry{Extra: d.Extra, Version: strconv.Itoa(len(p.Deployments) - index)}
	system, err := s.systemName(p, d)
	if err != nil {
		return nil, err
	}
	e.Title = titleOf(system, d.Version, d.Stateroot, several, index)

	options := p.options(d).WithOSTree(arg.String())
	below := s.config.prefix() + kernelDir(d) + "/"
	e.Linux = below + names.linux
	if names.initrd != "" {
		e.Initrd = append(e.Initrd, below+names.initrd)
		for _, sum := range d.overlays {
			e.Initrd = append(e.Initrd, s.config.prefix()+overlayPath(sum))
		}
	} else {
		options = withInit(options, arg)
	}
	e.Options = options.String()
	if names.devicetree != "" {
		e.DeviceTree = below + names.devicetree
	}
	e.Extra = without(e.Extra, "fdtdir")
	if names.fdtdir != "" {
		e.Extra = append(e.Extra, bls.Field{Key: "fdtdir", Value: below + names.fdtdir})
	}
	for _, f := range s.config.exceptDefault {
		e.Extra = without(e.Extra, f.Key)
		if index > 0 {
			e.Extra = append(e.Extra, f)
		}
	}
	return e, nil
}

func without(fields []bls.Field, key string) (rest []bls.Field) {
	for _, f := range fields {
		if f.Key != key {
			rest = append(rest, f)
		}
	}
	return rest
}

// withInit makes a kernel without initramfs image start ostree-prepare-root itself.
func withInit(l kargs.List, arg bls.OSTreeArg) kargs.List {
	return l.Without("init").Append("init=" + arg.String() + "/usr/lib/ostree/ostree-prepare-root")
}

// options returns the kernel arguments of a deployment, including ostree= if it has a place among them.
func (p *Plan) options(d *Deployment) kargs.List {
	switch {
	case d.entry != nil:
		return kargs.Parse(d.entry.Options)
	case d == p.New && p.args != nil:
		return p.args
	}
	if p.merge == nil || p.merge.entry == nil {
		return d.Kargs
	}
	return placeOSTree(d.Kargs, kargs.Parse(p.merge.entry.Options))
}

// placeOSTree inserts the ostree= of the arguments before, if they have it, into args, which were made from them:
// behind the last argument that preceded it and still exists, even with another value. libostree, which edits the list
// with ostree= in it, has it in the same place.
func placeOSTree(args, before kargs.List) kargs.List {
	at := slices.IndexFunc(before, func(a string) bool { return kargs.Key(a) == "ostree" })
	if at < 0 {
		return args
	}
	place := 0
	for _, a := range slices.Backward(before[:at]) {
		i := slices.Index(args, a)
		if i < 0 {
			i = slices.IndexFunc(args, func(b string) bool { return kargs.Key(b) == kargs.Key(a) })
		}
		if i >= 0 {
			place = i + 1
			break
		}
	}
	return slices.Insert(slices.Clone(args), place, before[at])
}

// systemName returns the name of a deployment's system. If the commit is gone, the title of its entry has it.
func (s *Sysroot) systemName(p *Plan, d *Deployment) (string, error) {
	t := p.tree
	if d != p.New || t == nil {
		var err error
		if t, err = openTree(s.repo, d.Commit); err != nil {
			if d.entry == nil {
				return "", err
			}
			name, _, _ := strings.Cut(d.Title, " (ostree")
			return name, nil
		}
	}
	name, err := t.systemName()
	if err != nil && d.entry != nil {
		name, _, _ = strings.Cut(d.Title, " (ostree")
		return name, nil
	}
	return name, err
}

// kernelDir returns the directory of a deployment's kernel, below /boot.
func kernelDir(d *Deployment) string { return "ostree/" + d.Stateroot + "-" + d.BootCsum }

// installKernel installs the kernel of a deployment in /boot. Existing files are complete.
func (s *Sysroot) installKernel(ctx context.Context, p *Plan, d *Deployment) (bootNames, error) {
	if err := s.installOverlays(d); err != nil {
		return bootNames{}, err
	}
	k := p.kernel
	if d != p.New || k == nil {
		names, ok, err := s.installedKernel(d)
		if ok || err != nil {
			return names, err
		}
		// The files have disappeared from /boot, but the tree still has them.
		t, err := openTree(s.repo, d.Commit)
		if err != nil {
			return bootNames{}, err
		}
		if k, err = t.findKernel(ctx, strings.TrimPrefix(names.linux, "vmlinuz-")); err != nil {
			return bootNames{}, err
		}
		if k.csum != d.BootCsum {
			return bootNames{}, fmt.Errorf("its kernel has the checksum %s, and was deployed with %s: %w", k.csum, d.BootCsum, ErrCorrupt)
		}
	}
	for _, f := range k.files {
		if err := s.installFile(f, path.Join(kernelDir(d), f.name), p.policy); err != nil {
			return bootNames{}, err
		}
	}
	return k.bootNames, nil
}

// installedKernel returns the names of the files in a deployment's entry, and whether they exist.
func (s *Sysroot) installedKernel(d *Deployment) (names bootNames, ok bool, err error) {
	if d.entry == nil {
		return bootNames{}, false, nil
	}
	names.linux = path.Base(d.entry.Linux)
	if len(d.entry.Initrd) > 0 {
		names.initrd = path.Base(d.entry.Initrd[0])
	}
	if d.entry.DeviceTree != "" {
		names.devicetree = path.Base(d.entry.DeviceTree)
	}
	for _, f := range d.Extra {
		if f.Key == "fdtdir" {
			names.fdtdir = path.Base(f.Value)
		}
	}
	for _, name := range []string{names.linux, names.initrd, names.devicetree, names.fdtdir} {
		if name == "" {
			continue
		}
		if ok, err := s.boot.Exists(path.Join(kernelDir(d), name)); !ok || err != nil {
			return names, false, err
		}
	}
	return names, true, nil
}

// installFile gives an object a name in /boot: a link, or a copy that gets its name only when it is complete and
// durable. Where the policy has another label for the name than the object has, it is a copy.
func (s *Sysroot) installFile(f treeFile, name string, policy *selinux.Policy) error {
	if ok, err := s.boot.Exists(name); ok || err != nil {
		return err
	}
	if err := s.boot.MkdirAll(path.Dir(name), dirMode); err != nil {
		return err
	}
	label, relabel, err := s.bootLabel(f, name, policy)
	if err != nil {
		return err
	}
	if !relabel {
		err := s.repo.LinkFile(f.sum, s.boot, name)
		if !errors.Is(err, unix.EXDEV) && !errors.Is(err, unix.EMLINK) && !errors.Is(err, unix.EPERM) {
			return err
		}
	}
	src, err := s.repo.OpenFile(f.sum)
	if err != nil {
		return err
	}
	defer src.Close()
	return copyInto(src, s.boot, name, label)
}

// copyInto copies a file into dir, with a label unless that is "".
func copyInto(src *atfs.File, dir *atfs.Dir, name, label string) (err error) {
	parent, err := dir.OpenDir(path.Dir(name))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, parent.Close()) }()
	st, err := src.Stat()
	if err != nil {
		return err
	}
	f, err := parent.TmpFile(0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.CopyFrom(src); err != nil {
		return err
	}
	if err := f.Chown(st.Uid, st.Gid); err != nil {
		return err
	}
	if err := f.Chmod(st.Mode); err != nil {
		return err
	}
	if err := labelFile(f, label); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return f.LinkTo(parent, path.Base(name))
}
