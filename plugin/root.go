package plugin

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
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
	privateDir = 0o700
	rootMode   = 0o711
)

// A Store is the store below one root, in use by this process alone.
type Store struct {
	Root   *atfs.Dir
	Repo   *objectstore.Repo
	Layers *layer.Store

	// Composefs is how composefs images are mounted, nil for checkouts of hard links.
	Composefs *composefsmount.Support
	why       string // they are mounted so, or are not

	lock    *atfs.File
	lenders []*objectstore.Repo // dedup_repos
}

// OpenStore makes the store that the configuration names where it is missing, takes it for this process, and checks
// that its file system and the kernel can do what is needed. Recover is to be called before anything else uses it.
func OpenStore(ctx context.Context, c *Config) (_ *Store, err error) {
	s := &Store{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if s.Root, err = openRoot(c.Root); err != nil {
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
	if err := probe(s.Root); err != nil {
		return nil, fmt.Errorf("root %s cannot be used: %w", c.Root, err)
	}
	if err := s.chooseCheckout(c); err != nil {
		return nil, err
	}
	if err := s.openRepos(c); err != nil {
		return nil, err
	}
	if err := s.setVerity(c); err != nil {
		return nil, err
	}
	opts := c.layerOptions()
	opts.Borrow = s.lenders
	opts.SyncFailed = func(err error) {
		log.G(ctx).WithError(err).Error("layers cannot be written to the disk; what is damaged is found at the next start")
	}
	if s.Layers, err = layer.Open(s.Root, s.Repo, opts); err != nil {
		return nil, err
	}
	return s, s.Layers.SweepTmp()
}

// Close closes the store and lets another process have it.
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

// openRoot opens the root directory, with the mode that lets overlay mounts through and nobody see what is in it.
func openRoot(name string) (_ *atfs.Dir, err error) {
	if err := os.MkdirAll(name, rootMode); err != nil {
		return nil, fmt.Errorf("make root: %w", err)
	}
	root, err := atfs.Open(name)
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

// makePrivate gives what is in the root already the mode that keeps others out, and refuses what somebody else has put
// there, which could still be theirs to change. What is missing is made with these modes.
func makePrivate(root *atfs.Dir, withRepo bool) error {
	const file = unix.S_IFREG | 0o600
	modes := map[string]uint32{lockFile: file, CheckoutFile: file}
	for _, m := range []map[string]uint32{layer.Dirs(), snapshotter.Dirs(), snapshotter.Files()} {
		maps.Copy(modes, m)
	}
	if withRepo {
		modes["repo"] = unix.S_IFDIR | privateDir
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
		if st.Mode != want {
			if err := root.Chmod(name, want&^unix.S_IFMT); err != nil {
				return err
			}
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

// lockRoot takes the root for this process, until the file is closed or the process ends.
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
		pid, rerr := root.ReadFile(lockFile, 64)
		if rerr != nil || len(pid) == 0 {
			pid = []byte("unknown")
		}
		return nil, fmt.Errorf("root %s is in use by process %s", root.Path(), strings.TrimSpace(string(pid)))
	}
	if err != nil {
		return nil, fmt.Errorf("lock root: %w", err)
	}
	// The number of a predecessor is never longer than what it is overwritten with, nor can anybody read half of it.
	pid := fmt.Appendf(nil, "%-20s\n", strconv.Itoa(os.Getpid()))
	if _, err := f.Write(pid); err != nil {
		return nil, fmt.Errorf("lock root: %w", err)
	}
	return f, nil
}

// openRepos opens the repository, and makes it if it is the one below the root, and those that it borrows from. All of
// them, and the root, are by way of one mount from then on, if the host has any that reaches them.
func (s *Store) openRepos(c *Config) (err error) {
	if c.Repo == "" {
		if err := s.Root.MkdirAll("repo", privateDir); err != nil {
			return err
		}
	}
	dirs := []*atfs.Dir{s.Root}
	defer func() {
		s.Root = dirs[0]
		err = errors.Join(err, atfs.CloseAll(dirs[1:]))
	}()
	for _, name := range append([]string{c.RepoPath()}, c.DedupRepos...) {
		dir, err := atfs.Open(name)
		if err != nil {
			return fmt.Errorf("open repository: %w", err)
		}
		dirs = append(dirs, dir)
	}
	again, err := mounts.OneMount(dirs...)
	switch {
	case err == nil:
		dirs, again = again, dirs
		if err := atfs.CloseAll(again); err != nil {
			return err
		}
	case !errors.Is(err, mounts.ErrElsewhere): // else what cannot be linked is found below
		return err
	}
	if s.Repo, err = openRepo(c, dirs[0], dirs[1]); err != nil {
		return fmt.Errorf("open repository: %w", err)
	}
	for _, dir := range dirs[2:] {
		if err := s.openLender(dir); err != nil {
			return fmt.Errorf("open repository %s of dedup_repos: %w", dir.Path(), err)
		}
	}
	return nil
}

func openRepo(c *Config, root, dir *atfs.Dir) (*objectstore.Repo, error) {
	repo, err := objectstore.Open(dir)
	if errors.Is(err, objectstore.ErrNoRepo) && c.Repo == "" {
		repo, err = objectstore.Create(dir, objectstore.ModeBare)
	}
	if err != nil {
		return nil, err
	}
	if err := probeLink(root, dir); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", c.RepoPath(), err), repo.Close())
	}
	return repo, nil
}

// openLender opens a repository that the store's one borrows from.
func (s *Store) openLender(dir *atfs.Dir) error {
	repo, err := objectstore.Open(dir)
	if err != nil {
		return err
	}
	s.lenders = append(s.lenders, repo)
	how, err := s.Repo.Transfer(repo)
	switch {
	case err != nil:
		return err
	case how != objectstore.TransferLink:
		return fmt.Errorf("not on the file system of root %s, so that its files cannot be shared", s.Root.Path())
	}
	return nil
}

// probeLink checks that files of the repository can be linked below the root. To have the same device number is not
// enough: subvolumes of one file system refuse links too.
func probeLink(root, repo *atfs.Dir) (err error) {
	tmp, err := root.OpenDir(layer.TmpDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tmp.Close()) }()
	f, err := tmp.TmpFile(0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	name := path.Join(layer.TmpDir, "probe-"+rand.Text())
	switch err := f.LinkTo(repo, name); {
	case errors.Is(err, unix.EXDEV):
		return fmt.Errorf("not on the file system of root %s, so that checkouts cannot share its files", root.Path())
	case err != nil:
		return err
	}
	return repo.Unlink(name)
}

// probe tries everything in tmp/ that the file system and the kernel must be able to do, and says which they cannot.
func probe(root *atfs.Dir) (err error) {
	name := path.Join(layer.TmpDir, "probe-"+rand.Text())
	if err := root.Mkdir(name, privateDir); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, root.RemoveAll(name)) }()
	dir, err := root.OpenDir(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	if err := probeFiles(dir); err != nil {
		return err
	}
	return probeOverlay(dir)
}

func probeFiles(dir *atfs.Dir) (err error) {
	f, err := dir.TmpFile(0o600)
	if err != nil {
		return fmt.Errorf("file system does not support O_TMPFILE: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for _, attr := range []string{"trusted.ostree.probe", "user.ostree.probe"} {
		if err := f.Setxattr(attr, []byte("1")); err != nil {
			return fmt.Errorf("file system does not support extended attributes: %w", err)
		}
	}
	if err := f.LinkTo(dir, "a"); err != nil {
		return fmt.Errorf("file system does not support hard links of unnamed files: %w", err)
	}
	if err := dir.Link("a", dir, "b"); err != nil {
		return fmt.Errorf("file system does not support hard links: %w", err)
	}
	if err := dir.Mknod("whiteout", unix.S_IFCHR, 0); err != nil {
		return fmt.Errorf("file system does not support whiteouts: %w", err)
	}
	return nil
}

// probeOverlay makes an overlay file system that is not mounted anywhere, and deletes a file of its lower layer. A
// file system that cannot be the upper one makes the overlay read-only, or does not keep the whiteout.
func probeOverlay(dir *atfs.Dir) error {
	for _, name := range []string{"lower", "upper", "work"} {
		if err := dir.Mkdir(name, privateDir); err != nil {
			return err
		}
	}
	f, err := dir.OpenFile("lower/file", unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	mnt, err := composefsmount.OverlayFD(map[string]string{
		"lowerdir": path.Join(dir.Path(), "lower"),
		"upperdir": path.Join(dir.Path(), "upper"),
		"workdir":  path.Join(dir.Path(), "work"),
	})
	if err != nil {
		return err
	}
	err = unix.Unlinkat(mnt, "file", 0)
	if err = errors.Join(err, unix.Close(mnt)); err != nil {
		return fmt.Errorf("file system cannot carry the upper directory of an overlay mount: %w", err)
	}
	st, err := dir.Lstat("upper/file")
	if err == nil && (st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0) {
		err = fmt.Errorf("whiteout has mode %o", st.Mode)
	}
	if err != nil {
		return fmt.Errorf("file system cannot carry the upper directory of an overlay mount: %w", err)
	}
	return nil
}
