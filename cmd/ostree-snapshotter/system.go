package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
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

// systemFlags say which operating system a command works on, and how.
type systemFlags struct {
	sysroot   string
	stateroot string
	dryRun    bool
	esp       string
	changes   bool // the command changes something, or would
}

// addSysroot gives a command the flag for another sysroot than the running system's.
func (f *systemFlags) addSysroot(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.sysroot, "sysroot", "/", "`DIR` that holds the system; / is the running one")
}

// addStateroot gives a command the flag for the stateroot that it is about.
func (f *systemFlags) addStateroot(cmd *cobra.Command, usage string) {
	cmd.Flags().StringVar(&f.stateroot, "stateroot", "", usage)
}

// addChange gives a command the flags that all have that change a system.
func (f *systemFlags) addChange(cmd *cobra.Command) {
	f.addUnit(cmd)
	cmd.Flags().BoolVar(&f.dryRun, "dry-run", false, "say what would happen and change nothing")
}

// addUnit gives a command the flags that those have that a unit calls.
func (f *systemFlags) addUnit(cmd *cobra.Command) {
	f.changes = true
	f.addSysroot(cmd)
	f.addESP(cmd)
}

// addESP gives a command the flag for the boot loader's own file system.
func (f *systemFlags) addESP(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.esp, "esp", "", "`DIR` where the EFI system partition is mounted, instead of looking for it")
}

// system is a sysroot that a command works on.
type system struct {
	*sysroot.Sysroot
	path    string                  // of the sysroot
	dir     *atfs.Dir               // the sysroot
	boot    *atfs.Dir               // its /boot
	loader  *bootloader.SystemdBoot // nil: it reads /boot itself
	running bool                    // the running system is booted from it
}

// isRunning reports whether a path of --sysroot means the running system.
func isRunning(name string) (bool, error) {
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

// openSystem opens the sysroot that the flags name.
func (c *cli) openSystem(f *systemFlags) (_ *system, err error) {
	s := &system{path: f.sysroot}
	if s.running, err = isRunning(f.sysroot); err != nil {
		return nil, err
	}
	opts := sysroot.Options{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	switch {
	case s.running:
		s.path = runningSysroot
		if s.boot, err = c.openDir(runningBoot); err != nil {
			return nil, err
		}
		run, err := c.openDir(runningRun)
		if err != nil {
			return nil, err
		}
		defer run.Close()
		opts.Run = run
	case filepath.Clean(f.sysroot) == "/":
		return nil, withHint(withStatus(exitNoSysroot, errors.New("this system was not booted from an ostree deployment")),
			"--sysroot DIR names another system, such as a mounted disk")
	}
	if s.dir, err = c.openDir(s.path); err != nil {
		return nil, notSysroot(s.path, err)
	}
	if s.boot == nil {
		if s.boot, err = s.dir.OpenDir("boot"); err != nil {
			return nil, notSysroot(s.path, err)
		}
	}
	opts.Boot = s.boot
	if s.loader, err = c.openLoader(f, s.dir, s.running); err != nil {
		return nil, err
	}
	if s.loader != nil {
		opts.Bootloader = s.loader
	}
	if s.Sysroot, err = sysroot.Open(s.dir, opts); err != nil {
		return nil, notSysroot(s.path, err)
	}
	return s, nil
}

// notSysroot says what it means that a sysroot could not be opened.
func notSysroot(name string, err error) error {
	if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, sysroot.ErrNotSysroot) {
		return fmt.Errorf("open sysroot %s: %w", name, err)
	}
	return withHint(withStatus(exitNoSysroot, fmt.Errorf("open sysroot %s: %w", name, err)),
		"\"ostree-snapshotter deploy --init\" makes a sysroot of a directory, \"ostree-snapshotter install\" of a disk")
}

func (s *system) close() error {
	var err error
	if s.Sysroot != nil {
		err = errors.Join(err, s.Close())
	}
	if s.loader != nil {
		err = errors.Join(err, s.loader.Close())
	}
	for _, d := range []*atfs.Dir{s.boot, s.dir} {
		if d != nil {
			err = errors.Join(err, d.Close())
		}
	}
	return err
}

// viewSystem has f look at a system.
func (c *cli) viewSystem(ctx context.Context, flags *systemFlags, f func(*system, *sysroot.State) error) (err error) {
	s, err := c.openSystem(flags)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	st, err := s.Load(ctx)
	if err != nil {
		return fmt.Errorf("read sysroot %s: %w", s.path, err)
	}
	return f(s, st)
}

// lockSystem has f work on a system that nobody else changes meanwhile. With --dry-run it only looks.
func (c *cli) lockSystem(ctx context.Context, flags *systemFlags, f func(*system, *sysroot.State) error) (err error) {
	if unix.Geteuid() == 0 || !flags.dryRun { // whether it can be written to is part of a plan
		if err := c.needWritable(flags); err != nil {
			return err
		}
	}
	if flags.dryRun {
		return c.viewSystem(ctx, flags, f)
	}
	s, err := c.openSystem(flags)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	unlock, err := c.lock(ctx, s)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	st, err := s.Load(ctx)
	if err != nil {
		return fmt.Errorf("read sysroot %s: %w", s.path, err)
	}
	return f(s, st)
}

// How long to wait for whoever else works on a sysroot: until it is worth a word, and at all.
const (
	lockSilence  = 500 * time.Millisecond
	lockPatience = 5 * time.Minute
)

func (c *cli) lock(ctx context.Context, s *system) (unlock func() error, err error) {
	word := time.AfterFunc(lockSilence, func() { c.note("waiting for another process that works on %s", s.path) })
	defer word.Stop()
	ctx, cancel := context.WithTimeout(ctx, lockPatience)
	defer cancel()
	return s.Lock(ctx)
}

// needWritable makes sure that this process can change the system: it is root, and what is mounted read-only in a running
// system is writable for it alone.
func (c *cli) needWritable(f *systemFlags) error {
	if unix.Geteuid() != 0 {
		return withHint(errors.New("a system can be changed by root alone"), "try again as root")
	}
	running, err := isRunning(f.sysroot)
	if err != nil || !running {
		return err
	}
	return mounts.EnsureWritable(runningSysroot, runningBoot)
}

// atIndex returns the deployment with an index that a user has given.
func atIndex(st *sysroot.State, index int) (*sysroot.Deployment, error) {
	all := st.All()
	if index < 0 || index >= len(all) {
		return nil, withHint(usagef("there is no deployment %d", index), "\"ostree-snapshotter status\" lists them with their indexes")
	}
	return all[index], nil
}

// chooseStateroot returns the stateroot that a command is about: the one it was given, else that of the running system, else
// the one that boots, else the only one that there is.
func (s *system) chooseStateroot(st *sysroot.State, given string) (string, error) {
	switch {
	case given != "":
		return given, s.needStateroot(given)
	case st.Booted != nil:
		return st.Booted.Stateroot, nil
	case st.Default() != nil:
		return st.Default().Stateroot, nil
	}
	names, err := s.Stateroots()
	if err != nil {
		return "", err
	}
	switch len(names) {
	case 0:
		return "", withHint(withStatus(exitNoSysroot, fmt.Errorf("sysroot %s has no stateroot", s.path)),
			"\"ostree-snapshotter deploy --init\" makes one")
	case 1:
		return names[0], nil
	}
	return "", withHint(usagef("sysroot %s has several stateroots: %s", s.path, strings.Join(names, ", ")), "--stateroot names one")
}

// needStateroot makes sure that there is a stateroot.
func (s *system) needStateroot(name string) error {
	names, err := s.Stateroots()
	if err != nil || slices.Contains(names, name) {
		return err
	}
	return withHint(withStatus(exitNoSysroot, fmt.Errorf("sysroot %s has no stateroot %q", s.path, name)),
		"\"ostree-snapshotter deploy --init\" makes one")
}

// newest returns the deployment of a stateroot that a new one takes over from: origin and kernel arguments. It is what boots
// next, so that what an administrator has just changed is not lost, unless that has shown that it does not boot.
func newest(st *sysroot.State, stateroot string) *sysroot.Deployment {
	for _, d := range st.All() {
		if d.Stateroot == stateroot && !d.Failed() {
			return d
		}
	}
	return st.MergeDeployment(stateroot)
}

// title is what messages call a deployment.
func title(d *sysroot.Deployment) string {
	name, _ := originName(d)
	return printable(strings.TrimSpace(fmt.Sprintf("%s %.12s.%d %s", d.Stateroot, d.Commit, d.Serial, cmp.Or(name, d.Version))))
}
