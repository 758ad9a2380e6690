package sysroot

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// Paths in a sysroot.
const (
	bootDir    = "boot"
	ostreeDir  = "ostree"
	repoDir    = "ostree/repo"
	deployDir  = "ostree/deploy"
	objectsDir = "ostree/repo/objects" // its existence makes a repository
	lockFile   = "ostree/lock"

	dirMode  = 0o755 // of new directories, under any umask
	fileMode = 0o644
)

func staterootDir(stateroot string) string { return path.Join(deployDir, stateroot) }
func deploysDir(stateroot string) string   { return path.Join(deployDir, stateroot, "deploy") }
func backingDir(stateroot string) string   { return path.Join(deployDir, stateroot, "backing") }
func varDir(stateroot string) string       { return path.Join(deployDir, stateroot, "var") }

// Options are those of [Open].
type Options struct {
	// Boot is /boot; nil: boot below the sysroot.
	Boot *atfs.Dir
	// Run is /run of the running system, where libostree records the staged deployment; nil: neither booted nor staged
	// deployments are found.
	Run *atfs.Dir
	// Root is the root directory of the running system, which is that of the booted deployment; "" is "/".
	Root string
	// Bootloader is one that does not read boot/loader itself. It may be nil.
	Bootloader Bootloader
	// NewEntryNames names entries ostree-<n>.conf, as ostree does since 2024.5, instead of ostree-<n>-<stateroot>.conf,
	// which all versions read.
	NewEntryNames bool
}

// Sysroot is an open sysroot. Only Repo may be called concurrently with other methods.
type Sysroot struct {
	dir    *atfs.Dir
	boot   *atfs.Dir
	run    *atfs.Dir // nil: not the running system's
	repo   *objectstore.Repo
	opts   Options
	config config
}

// Init turns a directory, empty or not, into a sysroot without deployments, as "ostree admin init-fs --modern" does. An
// existing sysroot is an ErrExists. An interrupted Init can be repeated.
func Init(dir *atfs.Dir) error {
	if err := initSysroot(dir); err != nil {
		return fmt.Errorf("make sysroot: %w", err)
	}
	return nil
}

func initSysroot(dir *atfs.Dir) error {
	switch ok, err := dir.Exists(objectsDir); {
	case err != nil:
		return err
	case ok:
		return fmt.Errorf("%s: sysroot %w", dir.Path(), ErrExists)
	}
	for _, name := range []string{bootDir, deployDir, repoDir} {
		if err := dir.MkdirAll(name, dirMode); err != nil {
			return err
		}
	}
	repo, err := dir.OpenDir(repoDir)
	if err != nil {
		return err
	}
	r, err := objectstore.Create(repo, objectstore.ModeBare)
	if err == nil {
		err = r.Close()
	}
	if err = errors.Join(err, repo.Close()); err != nil {
		return err
	}
	return dir.SyncFS()
}

// Open opens a sysroot. It duplicates its handles: dir and those of opts may be closed. A directory that is not a
// sysroot is an ErrNotSysroot. A repository of another mode than bare, or with unsupported settings, is an error that
// tells which.
func Open(dir *atfs.Dir, opts Options) (*Sysroot, error) {
	s, err := open(dir, opts)
	if err != nil {
		return nil, fmt.Errorf("open sysroot: %w", err)
	}
	return s, nil
}

func open(dir *atfs.Dir, opts Options) (_ *Sysroot, err error) {
	s := &Sysroot{opts: opts}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if s.dir, err = dir.OpenDir("."); err != nil {
		return nil, err
	}
	for _, name := range []string{deployDir, objectsDir} {
		st, err := s.dir.Lstat(name)
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR), err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR:
			return nil, fmt.Errorf("%s: there is no directory %s: %w", dir.Path(), name, ErrNotSysroot)
		case err != nil:
			return nil, err
		}
	}
	if opts.Boot != nil {
		s.boot, err = opts.Boot.OpenDir(".")
	} else {
		s.boot, err = s.dir.OpenDir(bootDir)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: there is no directory %s: %w", dir.Path(), bootDir, ErrNotSysroot)
	}
	if err != nil {
		return nil, err
	}
	if opts.Run != nil {
		if s.run, err = opts.Run.OpenDir("."); err != nil {
			return nil, err
		}
	}
	repo, err := s.dir.OpenDir(repoDir)
	if err != nil {
		return nil, err
	}
	s.repo, err = objectstore.Open(repo)
	if err = errors.Join(err, repo.Close()); err != nil {
		return nil, err
	}
	s.config, err = readConfig(s.dir)
	return s, err
}

// Close closes the sysroot.
func (s *Sysroot) Close() error {
	var errs []error
	for _, d := range []*atfs.Dir{s.run, s.boot, s.dir} {
		if d != nil {
			errs = append(errs, d.Close())
		}
	}
	if s.repo != nil {
		errs = append(errs, s.repo.Close())
	}
	return errors.Join(errs...)
}

// Repo returns the repository, which s closes.
func (s *Sysroot) Repo() *objectstore.Repo { return s.repo }

// InitStateroot creates a stateroot, with an empty var that its first deployment fills. An existing one is an
// ErrExists.
func (s *Sysroot) InitStateroot(name string) error {
	if err := s.initStateroot(name); err != nil {
		return fmt.Errorf("make stateroot %q: %w", name, err)
	}
	return nil
}

func (s *Sysroot) initStateroot(name string) error {
	if err := validateStateroot(name); err != nil {
		return err
	}
	if err := s.checkWritable(); err != nil {
		return err
	}
	// A stateroot without var is the rest of an interrupted call.
	switch ok, err := s.dir.Exists(varDir(name)); {
	case err != nil:
		return err
	case ok:
		return ErrExists
	}
	if err := s.dir.MkdirAll(staterootDir(name), dirMode); err != nil {
		return err
	}
	if err := s.dir.Mkdir(varDir(name), dirMode); err != nil {
		return err
	}
	if err := syncDir(s.dir, staterootDir(name)); err != nil {
		return err
	}
	return s.bump()
}

// validateStateroot refuses names that a stateroot cannot have. ostree accepts any file name; it becomes part of paths,
// of kernel arguments and of the names and titles of boot loader entries.
func validateStateroot(name string) error {
	ok := name != "" && len(name) <= 64 && name[0] != '.' && name[0] != '-'
	for _, c := range []byte(name) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		ok = ok && (letter || strings.IndexByte("-_.", c) >= 0)
	}
	if !ok {
		return fmt.Errorf("%w: its name must be of letters, digits and \"-\", \"_\", \".\", at most 64, and begin with none of \"-\" and \".\"",
			ErrInvalid)
	}
	return nil
}

// Stateroots returns the names of the stateroots, sorted.
func (s *Sysroot) Stateroots() ([]string, error) {
	names, err := s.subdirs(deployDir)
	if err != nil {
		return nil, fmt.Errorf("list stateroots: %w", err)
	}
	return names, nil
}

// subdirs returns the names of the directories in a directory, sorted; none if it does not exist.
func (s *Sysroot) subdirs(name string) ([]string, error) {
	d, err := s.dir.OpenDir(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	ents, err := d.ReadDir()
	if err = errors.Join(err, d.Close()); err != nil {
		return nil, err
	}
	var names []string
	for _, e := range ents {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names, nil
}

// bump tells other users of libostree that the deployments have changed: they compare the mtime.
func (s *Sysroot) bump() error {
	d, err := s.dir.OpenDir(deployDir)
	if err != nil {
		return err
	}
	return errors.Join(d.TouchSelf(), d.Close())
}

func syncDir(d *atfs.Dir, name string) error {
	sub, err := d.OpenDir(name)
	if err != nil {
		return err
	}
	return errors.Join(sub.Sync(), sub.Close())
}

// readNames returns the names in a directory, sorted; none if it does not exist.
func readNames(d *atfs.Dir, name string) ([]string, error) {
	sub, err := d.OpenDir(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	names, err := sub.ReadNames()
	slices.Sort(names)
	return names, errors.Join(err, sub.Close())
}
