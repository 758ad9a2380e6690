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

// Paths of a system that was booted from an ostree deployment.
const (
	runningSysroot = "/sysroot"
	runningBoot    = "/boot"
	runningRun     = "/run"
	bootedStamp    = "/run/ostree-booted"
)

// Options are those of [Open].
type Options struct {
	// ESP is the mount point of the EFI system partition; "": it is searched for.
	ESP string
	// ReadOnly is for callers that change nothing. They can do without the boot loader, and then see no boot counting.
	ReadOnly bool
	// Note receives sentences that a user may want to read. It may be nil.
	Note func(text string)
}

// A System is an open sysroot, with its boot loader.
type System struct {
	*sysroot.Sysroot
	Path    string // of the sysroot
	Running bool   // it is the running system's

	run    *atfs.Dir               // /run of the running system; nil for another one
	loader *bootloader.SystemdBoot // nil: it reads /boot itself
	dirs   []*atfs.Dir
	opts   Options
}

// IsRunning reports whether a path is that of the running system, booted from an ostree deployment: "/", or its
// sysroot.
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
// sysroot.ErrNotSysroot, and "/" of a system that was not booted from a deployment an ErrNotBooted. Unless o.ReadOnly
// is set, a boot loader that cannot be opened is an ErrBootloader.
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
		s.run = opts.Run
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
	if s.loader, err = s.openLoader(dir, opts.Boot); err != nil {
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

// adopt makes the system close a directory.
func (s *System) adopt(d *atfs.Dir, err error) (*atfs.Dir, error) {
	if err == nil {
		s.dirs = append(s.dirs, d)
	}
	return d, err
}

// notSysroot returns the error of a sysroot that could not be opened. An absent one is a sysroot.ErrNotSysroot too.
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

// openLoader opens the boot loader of the system, or returns nil if it reads /boot itself. It uses the ESP of the
// options, else the system's.
func (s *System) openLoader(dir, boot *atfs.Dir) (*bootloader.SystemdBoot, error) {
	if s.opts.ESP != "" {
		return bootloader.Open(s.opts.ESP)
	}
	b, err := bootloader.FindFor(dir, boot, s.Running)
	switch {
	case err == nil:
		return b, nil
	case errors.Is(err, fs.ErrPermission) && unix.Geteuid() != 0:
		return nil, nil
	case errors.Is(err, bootloader.ErrNone) && !errors.Is(err, bootloader.ErrUncertain):
		return nil, nil
	case s.opts.ReadOnly, errors.Is(err, bootloader.ErrUncertain):
		s.note("%v", err)
		return nil, nil
	}
	return nil, as(ErrBootloader, err)
}

// checkCounting returns an error unless the boot loader counts boots.
func (s *System) checkCounting() error {
	if s.loader == nil {
		return as(ErrNoBootCounting, errors.New("only systemd-boot with an EFI system partition counts boots, and there is none"))
	}
	if err := s.loader.CanCount(); err != nil {
		return as(bootloader.ErrCannotCount, err)
	}
	return nil
}

// Load reads the state of the sysroot.
func (s *System) Load(ctx context.Context) (*sysroot.State, error) {
	st, err := s.Sysroot.Load(ctx)
	if err != nil {
		return nil, fmt.Errorf("read sysroot %s: %w", s.Path, err)
	}
	return st, nil
}

// How long to wait for another process that works on the sysroot: until a note is due, and in total.
const (
	lockSilence  = 500 * time.Millisecond
	lockPatience = 5 * time.Minute
)

// Lock takes the sysroot's lock. It waits some minutes for another process, then returns a sysroot.ErrLocked.
func (s *System) Lock(ctx context.Context) (unlock func() error, err error) {
	word := time.AfterFunc(lockSilence, func() { s.note("waiting for another process that works on %s", s.Path) })
	defer word.Stop()
	ctx, cancel := context.WithTimeout(ctx, lockPatience)
	defer cancel()
	return s.Sysroot.Lock(ctx)
}

// View opens the system at a path, calls f, and closes it.
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

// Change opens the system at a path, takes its lock, calls f, and closes it.
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

// EnsureWritable makes sure that this process can change the system at a path: it must be root, and a running system's
// read-only mounts become writable for this process alone. That may start the program again, see
// [mounts.EnsureWritable]: call it first. Without root the error is an ErrNotRoot.
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
		return as(ErrNotRoot, errors.New("only root can change a system"))
	}
	return nil
}

// DefaultStateroot is the default name of a stateroot, the same as bootc's.
const DefaultStateroot = "default"

// Init turns the directory at a path into a sysroot unless it is one. With dryRun it only reports whether it would.
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

// EnsureStateroot creates the stateroot with a name unless it exists. For the name "" any stateroot will do, and a new
// one gets the default name. It returns the name of a stateroot that it has created; with dryRun it creates none, and
// reports whether one is missing.
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

// Stateroot chooses a stateroot: the given one, which must exist, else that of the running system, else the one that
// boots, else the only one. Without any the error is an ErrNoStateroot, with several an ErrManyStateroots.
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
