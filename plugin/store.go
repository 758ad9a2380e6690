package plugin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/mounts"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/composefsmount"
)

const (
	lockFile   = "lock"
	repoDir    = "repo"
	privateDir = 0o700
	rootMode   = 0o711
)

// A Store is the store below one root. OpenStore opens it for this process alone, OpenShared beside other processes.
type Store struct {
	Root   *atfs.Dir
	Repo   *objectstore.Repo
	Layers *layer.Store

	// Composefs tells how the kernel mounts composefs images; nil for hard-link checkouts. Only OpenStore sets it.
	Composefs *composefsmount.Support
	why       string // reason for the choice of Composefs

	lock    *atfs.File
	lenders []*objectstore.Repo // dedup_repos
}

// An opener opens a directory at a path chosen by the operator, as atfs.Open does.
type opener func(name string) (*atfs.Dir, error)

// OpenStore opens the configured store for this process alone, and creates missing parts. It checks that the kernel and
// the file system have every required feature, by the checks of [Probe]. Call Recover before anything else uses the
// store.
func OpenStore(ctx context.Context, c *Config) (*Store, error) { return openStore(ctx, c, atfs.Open) }

func openStore(ctx context.Context, c *Config, open opener) (_ *Store, err error) {
	s := &Store{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if err := checkKernel(); err != nil {
		return nil, err
	}
	if s.Root, err = makeRoot(c.Root, open); err != nil {
		return nil, err
	}
	if err := makePrivate(s.Root, c.Repo == ""); err != nil {
		return nil, err
	}
	if s.lock, err = lockRoot(s.Root); err != nil {
		return nil, err
	}
	if err := s.Root.MkdirAll(layer.TmpDir, privateDir); err != nil {
		return nil, err
	}
	if err := s.probe(c); err != nil {
		return nil, err
	}
	if c.Repo == "" {
		if err := s.Root.MkdirAll(repoDir, privateDir); err != nil {
			return nil, err
		}
	}
	if err := s.openRepos(c, open, c.RepoPath(), c.Repo == ""); err != nil {
		return nil, err
	}
	if err := s.checkLinks(c); err != nil {
		return nil, err
	}
	if err := s.setVerity(c); err != nil {
		return nil, err
	}
	opts := s.layerOptions(c)
	opts.SyncFailed = func(err error) {
		log.G(ctx).WithError(err).Error("layers cannot be written to the disk; the next start finds those that are damaged")
	}
	if s.Layers, err = layer.Open(s.Root, s.Repo, opts); err != nil {
		return nil, err
	}
	err = s.Layers.SweepTmp()
	if errors.Is(err, objectstore.ErrNotRemoved) { // no reason not to serve
		log.G(ctx).WithError(err).Warn("unfinished checkouts cannot be removed: the next start tries again")
		err = nil
	}
	return s, err
}

// A NoStoreError reports that no store exists.
type NoStoreError struct {
	Root string
	Err  error // an fs.ErrNotExist or objectstore.ErrNoRepo
}

func (e *NoStoreError) Error() string { return fmt.Sprintf("open store %s: %v", e.Root, e.Err) }
func (e *NoStoreError) Unwrap() error { return e.Err }

// OpenShared opens the configured store beside other processes that use it, with the options of OpenStore. It takes no
// lock, checks nothing and creates no store; if none exists, the error is a [NoStoreError]. It leaves out repositories
// of dedup_repos that cannot be opened: their files are then stored a second time.
//
// open opens the directories of the store; nil is atfs.Open.
func OpenShared(c *Config, open func(name string) (*atfs.Dir, error)) (_ *Store, err error) {
	if open == nil {
		open = atfs.Open
	}
	s := &Store{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if s.Root, err = open(c.Root); err != nil {
		return nil, noStore(c.Root, err)
	}
	if err := s.openShared(c, open); err != nil {
		return nil, noStore(c.Root, err)
	}
	s.Layers, err = layer.Open(s.Root, s.Repo, s.layerOptions(c))
	return s, err
}

func noStore(root string, err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, objectstore.ErrNoRepo) {
		return &NoStoreError{root, err}
	}
	return err
}

// openShared opens the repositories, through one mount with the root if possible.
func (s *Store) openShared(c *Config, open opener) (err error) {
	repo, err := open(c.RepoPath())
	if err != nil {
		return err
	}
	dirs := []*atfs.Dir{s.Root, repo}
	defer func() {
		s.Root = dirs[0]
		err = errors.Join(err, atfs.CloseAll(dirs[1:]))
	}()
	for _, name := range c.DedupRepos {
		if dir, err := open(name); err == nil {
			dirs = append(dirs, dir)
		}
	}
	// Otherwise, as in a process that may not mount, files are copied instead of linked.
	if again, err := mounts.Unify(dirs...); err == nil {
		again, dirs = dirs, again
		if err := atfs.CloseAll(again); err != nil {
			return err
		}
	}
	if s.Repo, err = objectstore.Open(dirs[1]); err != nil {
		return err
	}
	for _, dir := range dirs[2:] {
		if lender, err := openLender(dir); err == nil {
			s.lenders = append(s.lenders, lender)
		}
	}
	return nil
}

// probe checks the file system of the root and chooses the checkouts.
func (s *Store) probe(c *Config) (err error) {
	tmp, err := s.Root.OpenDir(layer.TmpDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tmp.Close()) }()
	if err := probeRoot(s.Root, tmp); err != nil {
		return err
	}
	s.Composefs, s.why, err = c.choose(tmp)
	return err
}

// layerOptions returns the options of the layer store, shared or not.
func (s *Store) layerOptions(c *Config) layer.Options {
	total := int64(c.Import.TotalMemory)
	if total == 0 {
		total = defaultTotalMemory()
	}
	return layer.Options{
		Mtime:       c.Mtime,
		Workers:     c.Import.Workers,
		MaxInFlight: int64(c.Import.Memory),
		TotalMemory: total,
		MaxEntries:  c.Import.MaxEntries,
		Journal:     c.Durability == DurabilityJournal,
		Borrow:      s.lenders,
	}
}

// Close closes the store. Another process can then open it.
func (s *Store) Close() error {
	var err error
	if s.Layers != nil {
		err = s.Layers.Close()
	}
	if s.Repo != nil {
		err = errors.Join(err, s.Repo.Close())
	}
	for _, r := range s.lenders {
		err = errors.Join(err, r.Close())
	}
	if s.lock != nil {
		err = errors.Join(err, s.lock.Close())
	}
	if s.Root != nil {
		err = errors.Join(err, s.Root.Close())
	}
	return err
}

// makeRoot opens the root directory and creates it if it is missing. Its mode lets overlay mounts through but hides its
// content.
func makeRoot(name string, open opener) (_ *atfs.Dir, err error) {
	if err := os.MkdirAll(name, rootMode); err != nil {
		return nil, fmt.Errorf("make root: %w", err)
	}
	root, err := open(name)
	if err != nil {
		return nil, fmt.Errorf("open root: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, root.Close())
		}
	}()
	st, err := root.Lstat(".")
	if err != nil {
		return nil, err
	}
	if err := ownedByRoot(root, ".", st); err != nil {
		return nil, err
	}
	return root, root.SetAttr(st.Uid, st.Gid, rootMode, st.Mtim)
}

// makePrivate gives existing entries of the root the mode that keeps other users out. It refuses entries of other
// users, which they could still change. Missing entries are created with these modes later.
func makePrivate(root *atfs.Dir, withRepo bool) error {
	return eachPrivate(root, withRepo, func(name string, st unix.Stat_t, want uint32) error {
		if st.Mode == want {
			return nil
		}
		return root.Chmod(name, want&^unix.S_IFMT)
	})
}

// eachPrivate calls f for each existing entry of the root, with the mode that it should have. An entry of another user
// or of the wrong type is an error.
func eachPrivate(root *atfs.Dir, withRepo bool, f func(name string, st unix.Stat_t, want uint32) error) error {
	const file = unix.S_IFREG | 0o600
	modes := map[string]uint32{lockFile: file, checkoutFile: file}
	for _, m := range []map[string]uint32{layer.Dirs(), snapshotter.Dirs(), snapshotter.Files()} {
		maps.Copy(modes, m)
	}
	if withRepo {
		modes[repoDir] = unix.S_IFDIR | privateDir
	}
	for name, want := range modes {
		st, err := root.Lstat(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if err := ownedByRoot(root, name, st); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT != want&unix.S_IFMT {
			return fmt.Errorf("%s has mode %o, want %o", path.Join(root.Path(), name), st.Mode, want)
		}
		if err := f(name, st, want); err != nil {
			return err
		}
	}
	return nil
}

func ownedByRoot(root *atfs.Dir, name string, st unix.Stat_t) error {
	if st.Uid != 0 {
		return fmt.Errorf("%s belongs to user %d: it must be root's", path.Join(root.Path(), name), st.Uid)
	}
	return nil
}

// lockRoot locks the root for this process, until the file is closed or the process ends.
func lockRoot(root *atfs.Dir) (_ *atfs.File, err error) {
	f, err := root.OpenFile(lockFile, unix.O_RDWR|unix.O_CREAT, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock root: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	exclusive := unix.Flock_t{Type: unix.F_WRLCK}
	err = unix.FcntlFlock(uintptr(f.FD()), unix.F_OFD_SETLK, &exclusive)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return nil, fmt.Errorf("root %s is in use by process %s", root.Path(), lockOwner(root))
	}
	if err != nil {
		return nil, fmt.Errorf("lock root: %w", err)
	}
	// The padding overwrites the whole ID of the last process, in one write: no reader sees half of it.
	pid := fmt.Appendf(nil, "%-20s\n", strconv.Itoa(os.Getpid()))
	if _, err := f.Write(pid); err != nil {
		return nil, fmt.Errorf("lock root: %w", err)
	}
	return f, nil
}

// lockOwner returns the ID in the lock file, of the process that locked the root last, or "unknown".
func lockOwner(root *atfs.Dir) string {
	text, err := root.ReadFile(lockFile, 64)
	pid := strings.TrimSpace(string(text))
	if _, perr := strconv.ParseUint(pid, 10, 32); err != nil || perr != nil { // damaged by a power failure
		return "unknown"
	}
	return pid
}

// rootHolder returns the ID of the process that has the root locked, "" if none has. It takes no lock, which a starting
// daemon might meet.
func rootHolder(root *atfs.Dir) (_ string, err error) {
	f, err := root.OpenFile(lockFile, unix.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	} else if err != nil {
		return "", fmt.Errorf("look at the lock of the root: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(uintptr(f.FD()), unix.F_OFD_GETLK, &lock); err != nil {
		return "", fmt.Errorf("look at the lock of the root: %w", err)
	}
	if lock.Type == unix.F_UNLCK {
		return "", nil
	}
	return lockOwner(root), nil
}

// openRepos opens the repository at a path, which it creates if create is set, and those of dedup_repos. From then on
// all of them and the root are reached through one mount, if the host has one that reaches them all.
func (s *Store) openRepos(c *Config, open opener, name string, create bool) (err error) {
	dirs := []*atfs.Dir{s.Root}
	defer func() {
		s.Root = dirs[0]
		err = errors.Join(err, atfs.CloseAll(dirs[1:]))
	}()
	for _, name := range append([]string{name}, c.DedupRepos...) {
		dir, err := open(name)
		if err != nil {
			return fmt.Errorf("open repository: %w", err)
		}
		dirs = append(dirs, dir)
	}
	if dirs, err = oneMount(dirs); err != nil {
		return err
	}
	s.Repo, err = objectstore.Open(dirs[1])
	if errors.Is(err, objectstore.ErrNoRepo) && create {
		s.Repo, err = objectstore.Create(dirs[1], objectstore.ModeBare)
	}
	if err != nil {
		return fmt.Errorf("open repository: %w", err)
	}
	if c.Repo != "" {
		if err := checkOutsideRepo(s.Repo, c); err != nil {
			return fmt.Errorf("open repository: %w", err)
		}
	}
	for _, dir := range dirs[2:] {
		lender, err := openLender(dir)
		if err != nil {
			return fmt.Errorf("open repository %s of dedup_repos: %w", dir.Path(), err)
		}
		s.lenders = append(s.lenders, lender)
	}
	return nil
}

// openLender opens a repository of dedup_repos. Only root may be able to exchange its objects.
func openLender(dir *atfs.Dir) (*objectstore.Repo, error) {
	lender, err := objectstore.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := ownedByRootAlone(lender); err != nil {
		return nil, errors.Join(err, lender.Close())
	}
	return lender, nil
}

// checkOutsideRepo checks that users of the host cannot change the objects of a repository that is not below the root. An
// object has the owner and the mode of a file in an image: a user of the host with that ID could change it for all images
// that have it, and any user could if the file is writable for all.
func checkOutsideRepo(repo *objectstore.Repo, c *Config) error {
	if err := ownedByRootAlone(repo); err != nil || c.SharedRepo {
		return err
	}
	objects, err := repo.ObjectsDir().Lstat(".")
	if err != nil {
		return err
	}
	if objects.Mode&0o011 == 0 {
		return nil
	}
	for dir := filepath.Clean(c.Repo); dir != "/"; dir = filepath.Dir(dir) {
		var st unix.Stat_t
		if err := unix.Stat(dir, &st); err != nil {
			return &fs.PathError{Op: "stat", Path: dir, Err: err}
		}
		if st.Mode&0o011 == 0 && st.Uid == 0 {
			return nil // no other user gets past it
		}
	}
	return fmt.Errorf("users of the host can reach the objects in %s: give it mode 0700, or set shared_repo = true", c.Repo)
}

// ownedByRootAlone checks that no other user can exchange the objects of a repository.
func ownedByRootAlone(repo *objectstore.Repo) error {
	for _, dir := range []*atfs.Dir{repo.Dir(), repo.ObjectsDir()} {
		st, err := dir.Lstat(".")
		if err != nil {
			return err
		}
		if err := ownedByRoot(dir, ".", st); err != nil {
			return err
		}
		if st.Mode&0o022 != 0 {
			return fmt.Errorf("%s has mode %o: only root may write to it", dir.Path(), st.Mode&0o7777)
		}
	}
	return nil
}

// oneMount reopens directories through one mount and closes the old handles. If no such mount exists it returns them
// unchanged; checkLinks then tells which directories cannot be linked.
func oneMount(dirs []*atfs.Dir) ([]*atfs.Dir, error) {
	again, err := mounts.Unify(dirs...)
	switch {
	case err == nil:
		return again, atfs.CloseAll(dirs)
	case errors.Is(err, mounts.ErrUnreachable):
		return dirs, nil
	}
	return dirs, err
}
