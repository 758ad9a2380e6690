package deploy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/bootloader"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/mounts"
)

// Where a system that was booted from an ostree deployment has its parts.
const (
	runningSysroot = "/sysroot"
	runningBoot    = "/boot"
	runningRun     = "/run"
	bootedStamp    = "/run/ostree-booted"
)

// Options are those of [Open].
type Options struct {
	// ESP is where the EFI system partition is mounted; "" has it looked for.
	ESP string
	// ReadOnly is for callers that change nothing: without a boot loader that cannot be opened, boot counting is not seen.
	ReadOnly bool
	// Note is told, in a sentence, what a user may want to know; nil: nobody is.
	Note func(text string)
}

// A System is an open sysroot, with its boot loader.
type System struct {
	*sysroot.Sysroot
	Path    string // of the sysroot
	Running bool   // the running system was booted from it

	loader *bootloader.SystemdBoot // nil: it reads /boot itself
	dirs   []*atfs.Dir
	opts   Options
}

// IsRunning reports whether a path means the running system, booted from an ostree deployment: "/", or where its sysroot is.
func IsRunning(name string) (bool, error) {
	if _, err := os.Stat(bootedStamp); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		return false, err
	}
	if filepath.Clean(name) == "/" {
		return true, nil
	}
	var given, own unix.Stat_t
	if err := unix.Stat(name, &given); err != nil {
		return false, &fs.PathError{Op: "stat", Path: name, Err: err}
	}
	if err := unix.Stat(runningSysroot, &own); err != nil {
		return false, &fs.PathError{Op: "stat", Path: runningSysroot, Err: err}
	}
	return given.Dev == own.Dev && given.Ino == own.Ino, nil
}

// Open opens the system whose sysroot is at a path; "/" is the running one. A path without a sysroot is a
// sysroot.ErrNotSysroot, "/" of a system that was not booted from a deployment an ErrNotBooted. Unless the caller changes
// nothing, a boot loader that cannot be opened is an ErrBootloader.
func Open(name string, o Options) (_ *System, err error) {
	s := &System{Path: name, opts: o}
	if s.Running, err = IsRunning(name); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	var opts sysroot.Options
	switch {
	case s.Running:
		s.Path = runningSysroot
		if opts.Boot, err = s.adopt(atfs.Open(runningBoot)); err != nil {
			return nil, err
		}
		if opts.Run, err = s.adopt(atfs.Open(runningRun)); err != nil {
			return nil, err
		}
	case filepath.Clean(name) == "/":
		return nil, as(ErrNotBooted, errors.New("this system was not booted from an ostree deployment"))
	}
	dir, err := s.adopt(atfs.Open(s.Path))
	if err != nil {
		return nil, notSysroot(s.Path, err)
	}
	if opts.Boot == nil {
		if opts.Boot, err = s.adopt(dir.OpenDir("boot")); err != nil {
			return nil, notSysroot(s.Path, err)
		}
	}
	if s.loader, err = s.openLoader(dir); err != nil {
		return nil, err
	}
	if s.loader != nil {
		opts.Bootloader = s.loader
	}
	if s.Sysroot, err = sysroot.Open(dir, opts); err != nil {
		return nil, notSysroot(s.Path, err)
	}
	return s, nil
}

// adopt has a directory be closed with the system.
func (s *System) adopt(d *atfs.Dir, err error) (*atfs.Dir, error) {
	if err == nil {
		s.dirs = append(s.dirs, d)
	}
	return d, err
}

// notSysroot returns the error of a sysroot that could not be opened. One that is absent is an sysroot.ErrNotSysroot too.
func notSysroot(name string, err error) error {
	absent := errors.Is(err, fs.ErrNotExist)
	if err = fmt.Errorf("open sysroot %s: %w", name, err); absent {
		err = as(sysroot.ErrNotSysroot, err)
	}
	return err
}

// Close closes the system.
func (s *System) Close() error {
	var err error
	if s.Sysroot != nil {
		err = s.Sysroot.Close()
	}
	if s.loader != nil {
		err = errors.Join(err, s.loader.Close())
	}
	return errors.Join(err, atfs.CloseAll(s.dirs))
}

func (s *System) note(format string, args ...any) {
	if s.opts.Note != nil {
		s.opts.Note(fmt.Sprintf(format, args...))
	}
}

// openLoader opens the boot loader of the system, if it is one that does not read /boot itself; nil if not. It is that of the
// ESP in the options, else the one that the system has.
func (s *System) openLoader(dir *atfs.Dir) (*bootloader.SystemdBoot, error) {
	if s.opts.ESP != "" {
		return bootloader.Open(s.opts.ESP)
	}
	b, err := bootloader.FindFor(dir, s.Running)
	switch {
	case err == nil:
		return b, nil
	case errors.Is(err, bootloader.ErrNone), errors.Is(err, fs.ErrPermission) && unix.Geteuid() != 0:
		return nil, nil
	case s.opts.ReadOnly:
		s.note("%v", err)
		return nil, nil
	}
	return nil, as(ErrBootloader, err)
}

// checkCounting makes sure that the boot loader counts boots.
func (s *System) checkCounting() error {
	if s.loader == nil {
		return as(ErrNoBootCounting, errors.New("boots are counted by systemd-boot with an EFI system partition alone, and none is there"))
	}
	if err := s.loader.CanCount(); err != nil {
		return as(bootloader.ErrCannotCount, err)
	}
	return nil
}

// Load returns what the sysroot has.
func (s *System) Load(ctx context.Context) (*sysroot.State, error) {
	st, err := s.Sysroot.Load(ctx)
	if err != nil {
		return nil, fmt.Errorf("read sysroot %s: %w", s.Path, err)
	}
	return st, nil
}

// How long to wait for another process that works on the sysroot: until a note is due, and at all.
const (
	lockSilence  = 500 * time.Millisecond
	lockPatience = 5 * time.Minute
)

// Lock takes the sysroot's lock. It waits some minutes for another process, then the error is a sysroot.ErrLocked.
func (s *System) Lock(ctx context.Context) (unlock func() error, err error) {
	word := time.AfterFunc(lockSilence, func() { s.note("waiting for another process that works on %s", s.Path) })
	defer word.Stop()
	ctx, cancel := context.WithTimeout(ctx, lockPatience)
	defer cancel()
	return s.Sysroot.Lock(ctx)
}

// View opens the system at a path for the time that f looks at it.
func View(ctx context.Context, name string, o Options, f func(*System, *sysroot.State) error) (err error) {
	s, err := Open(name, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	st, err := s.Load(ctx)
	if err != nil {
		return err
	}
	return f(s, st)
}

// Change opens the system at a path, and has f work on it while no other process can change it.
func Change(ctx context.Context, name string, o Options, f func(*System, *sysroot.State) error) (err error) {
	s, err := Open(name, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	unlock, err := s.Lock(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	st, err := s.Load(ctx)
	if err != nil {
		return err
	}
	return f(s, st)
}

// EnsureWritable makes sure that this process can change the system at a path: it is root, and what a running system has
// mounted read-only is writable for this process alone. For that the program may have to start again, see
// [mounts.EnsureWritable]: call it before anything else is done. A process that is not root gets an ErrNotRoot.
func EnsureWritable(name string) error {
	if err := needRoot(); err != nil {
		return err
	}
	running, err := IsRunning(name)
	if err != nil || !running {
		return err
	}
	return mounts.EnsureWritable(runningSysroot, runningBoot)
}

func needRoot() error {
	if unix.Geteuid() != 0 {
		return as(ErrNotRoot, errors.New("a system can be changed by root alone"))
	}
	return nil
}

// DefaultStateroot is the name of a stateroot that is given no other, bootc's.
const DefaultStateroot = "default"

// Init makes a sysroot of the directory at a path unless it is one. With dryRun it only reports whether it would.
func Init(name string, o Options, dryRun bool) (missing bool, err error) {
	s, err := Open(name, o)
	if err == nil {
		return false, s.Close()
	}
	if !errors.Is(err, sysroot.ErrNotSysroot) {
		return false, err
	}
	dir, err := atfs.Open(name)
	if err != nil {
		return false, fmt.Errorf("make sysroot: %w", err)
	}
	defer dir.Close()
	if dryRun {
		return true, nil
	}
	if err := needRoot(); err != nil {
		return false, err
	}
	if err := sysroot.Init(dir); err != nil {
		return false, fmt.Errorf("make sysroot %s: %w", name, err)
	}
	return false, nil
}

// EnsureStateroot makes the stateroot with a name unless it exists. For the name "", any stateroot will do, and the one that
// is made gets the default name. It returns the name of one that it has made; with dryRun it makes none, and reports whether
// one is missing.
func (s *System) EnsureStateroot(name string, dryRun bool) (stateroot string, missing bool, err error) {
	names, err := s.Stateroots()
	switch {
	case err != nil:
		return "", false, err
	case name == "" && len(names) > 0, slices.Contains(names, name):
		return name, false, nil
	case name == "":
		name = DefaultStateroot
	}
	if dryRun {
		return name, true, nil
	}
	return name, false, s.InitStateroot(name)
}

// Stateroot returns the stateroot that is meant: the given one, which must exist, else that of the running system, else the
// one that boots, else the only one. If there is none the error is an ErrNoStateroot, if several an ErrManyStateroots.
func (s *System) Stateroot(st *sysroot.State, given string) (string, error) {
	names, err := s.Stateroots()
	switch {
	case err != nil:
		return "", err
	case given != "" && slices.Contains(names, given):
		return given, nil
	case given != "":
		return "", as(ErrNoStateroot, fmt.Errorf("sysroot %s has no stateroot %q", s.Path, given))
	case st.Booted != nil:
		return st.Booted.Stateroot, nil
	case st.Default() != nil:
		return st.Default().Stateroot, nil
	}
	switch len(names) {
	case 0:
		return "", as(ErrNoStateroot, fmt.Errorf("sysroot %s has no stateroot", s.Path))
	case 1:
		return names[0], nil
	}
	return "", as(ErrManyStateroots, fmt.Errorf("sysroot %s has several stateroots: %s", s.Path, strings.Join(names, ", ")))
}
