package sysroot

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/bls"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/kargs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/gvariant"
)

// libostree's record of a staged deployment in /run: an a{sv}, and a file that exists while it must not be finalized.
const (
	stagedFile       = "ostree/staged-deployment"
	stagedLockFile   = "ostree/staged-deployment-locked"
	stagedInitrdsDir = "ostree/staged-initrds"
)

// Keys of the staged file and of its deployments.
const (
	keyTarget   = "target"
	keyLocked   = "locked"
	keyMerge    = "merge-deployment"
	keyKargs    = "kargs"
	keyOverlays = "overlay-initrds"
	keyExtra    = "bootconfig-extra"

	keyName     = "name"
	keyOSName   = "osname"
	keyBootCsum = "bootcsum"

	keyNoSELinux = "ostree-snapshotter.no-selinux" // ours; libostree ignores it
)

func (d *Deployment) marshal() gvariant.Variant {
	return gvariant.Dict([]gvariant.Entry{
		{Key: keyName, Value: gvariant.String(d.Name())},
		{Key: keyOSName, Value: gvariant.String(d.Stateroot)},
		{Key: keyBootCsum, Value: gvariant.String(d.BootCsum)},
	})
}

func parseStagedDeployment(v gvariant.Variant) (*Deployment, error) {
	entries, ok := v.Entries()
	if !ok {
		return nil, errors.New("it names no deployment")
	}
	var text [3]string
	for i, key := range []string{keyName, keyOSName, keyBootCsum} {
		if text[i], ok = lookup(entries, key).Str(); !ok {
			return nil, fmt.Errorf("a deployment in it has no %s", key)
		}
	}
	d := &Deployment{Stateroot: text[1], BootCsum: text[2]}
	if err := validateStateroot(d.Stateroot); err != nil {
		return nil, err
	}
	if _, err := objectstore.ParseChecksum(d.BootCsum); err != nil {
		return nil, err
	}
	var err error
	d.Commit, d.Serial, err = parseDeployName(text[0])
	return d, err
}

// marshalStaged returns the content of the staged file, as libostree writes it.
func marshalStaged(d, merge *Deployment, args kargs.List, noSELinux bool) []byte {
	entries := []gvariant.Entry{{Key: keyTarget, Value: d.marshal()}}
	if merge != nil {
		entries = append(entries, gvariant.Entry{Key: keyMerge, Value: merge.marshal()})
	}
	if args != nil {
		entries = append(entries, gvariant.Entry{Key: keyKargs, Value: gvariant.Strings(args)})
	}
	if noSELinux {
		entries = append(entries, gvariant.Entry{Key: keyNoSELinux, Value: gvariant.Bool(true)})
	}
	return gvariant.AppendDict(nil, entries)
}

// A stagedRecord is the content of the staged file.
type stagedRecord struct {
	target, merge *Deployment // merge: nil for none
	locked        bool
	noSELinux     bool
}

func parseStaged(data []byte) (*stagedRecord, error) {
	entries, err := gvariant.ParseDict(data)
	if err != nil {
		return nil, err
	}
	r := &stagedRecord{}
	if r.target, err = parseStagedDeployment(lookup(entries, keyTarget)); err != nil {
		return nil, err
	}
	if v := lookup(entries, keyMerge); v.Type != "" {
		if r.merge, err = parseStagedDeployment(v); err != nil {
			return nil, err
		}
	}
	r.locked, _ = lookup(entries, keyLocked).Bool()
	r.noSELinux, _ = lookup(entries, keyNoSELinux).Bool()
	if args, ok := lookup(entries, keyKargs).Strings(); ok {
		r.target.Kargs = kargs.List(args)
	}
	overlays, _ := lookup(entries, keyOverlays).Strings()
	for _, sum := range overlays {
		if _, err := objectstore.ParseChecksum(sum); err != nil {
			return nil, err
		}
	}
	r.target.overlays = overlays
	r.target.Extra, err = parseExtra(lookup(entries, keyExtra))
	return r, err
}

var (
	extraType     = gvariant.MustType("a{ss}")
	extraItemType = gvariant.MustType("{ss}")
)

func parseExtra(v gvariant.Variant) (fields []bls.Field, err error) {
	if v.Type != extraType.String() {
		return nil, nil
	}
	if err := v.Check(); err != nil {
		return nil, err
	}
	e, err := extraType.Elements(v.Data)
	if err != nil {
		return nil, err
	}
	for i := range e.Len() {
		m, err := extraItemType.Members(e.At(i), nil)
		if err != nil {
			return nil, err
		}
		fields = append(fields, bls.Field{Key: string(m[0][:len(m[0])-1]), Value: string(m[1][:len(m[1])-1])})
	}
	return fields, nil
}

// readStaged returns the staged deployment, or nil.
func (s *Sysroot) readStaged(st *State) (*Staged, error) {
	if s.run == nil {
		return nil, nil
	}
	data, err := s.run.ReadFile(stagedFile, maxStagedLen)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil && !errors.Is(err, unix.EFBIG) {
		return nil, err
	}
	var r *stagedRecord
	if err == nil {
		r, err = parseStaged(data)
	}
	if err != nil {
		return nil, fmt.Errorf("/run/%s: %w: %w", stagedFile, err, ErrCorrupt)
	}
	d := r.target
	if slices.ContainsFunc(st.Deployments, d.same) {
		return nil, nil // the process was killed after it had finalized it
	}
	staged := &Staged{Deployment: d, Locked: r.locked, NoSELinux: r.noSELinux}
	if !staged.Locked {
		if staged.Locked, err = s.run.Exists(stagedLockFile); err != nil {
			return nil, err
		}
	}
	if r.merge != nil {
		if i := slices.IndexFunc(st.Deployments, r.merge.same); i >= 0 {
			staged.Merge = st.Deployments[i]
		} else {
			staged.lost = r.merge
		}
	}
	if d.Kargs == nil && staged.Merge != nil {
		d.Kargs = staged.Merge.Kargs
	}
	staged.kargs = d.Kargs
	d.Kargs = d.Kargs.Without("ostree")
	return staged, s.readDetails(d)
}

// writeStaged records the new deployment of a plan as staged, in place of another one.
func (s *Sysroot) writeStaged(p *Plan) error {
	if err := s.run.MkdirAll("ostree", dirMode); err != nil {
		return err
	}
	var args kargs.List
	if p.New.Kargs != nil {
		args = p.options(p.New)
	}
	if err := s.run.WriteFile(stagedFile, marshalStaged(p.New, p.merge, args, p.noSELinux || p.noPolicy), fileMode, false); err != nil {
		return err
	}
	return atfs.IgnoreNotExist(s.run.Unlink(stagedLockFile))
}

// forgetStaged removes the record of the staged deployment. Its directory becomes a leftover.
func (s *Sysroot) forgetStaged() error {
	for _, name := range []string{stagedFile, stagedLockFile} {
		if err := atfs.IgnoreNotExist(s.run.Unlink(name)); err != nil {
			return err
		}
	}
	return nil
}
