package plugin

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/composefsmount"
)

// A Finding is the result of one check of the host.
type Finding struct {
	Check  string // name of the check
	Detail string // result of a check that passed
	Err    error  // error that OpenStore would return; an ErrNotChecked if the check was impossible
}

// ErrNotChecked is the error of an impossible check: the root does not exist yet, or the process does not run as root.
var ErrNotChecked = errors.New("not checked")

// Probe runs the checks of OpenStore and returns the result of each, in a fixed order. It works in a new directory
// below the root, which it removes, and changes nothing else. It can run beside a daemon.
func Probe(c *Config) []Finding { return probe(c, atfs.Open) }

func probe(c *Config, open opener) []Finding {
	var list []Finding
	add := func(name, detail string, err error) {
		if err != nil {
			detail = ""
		}
		list = append(list, Finding{name, detail, err})
	}
	release, err := kernelRelease()
	add("kernel", release, errors.Join(err, checkKernel()))
	add("overlay file system", "known to the kernel", composefsmount.CheckOverlay())
	p := &prober{config: c, open: open}
	p.err = p.start()
	detail, err := p.root()
	add("root", detail, err)
	// In the order of OpenStore: opening the repositories can replace the handle of the root.
	checkouts, cerr := p.checkouts()
	detail, err = p.repositories()
	err = errors.Join(err, p.close())
	add("repository", detail, err)
	add("checkouts", checkouts, cerr)
	add("namespaces", c.namespaces(), nil)
	return list
}

// namespaces describes what the namespaces of containerd share beside files.
func (c *Config) namespaces() string {
	var keys []string
	if c.ShareNamespaces {
		keys = append(keys, "share_namespaces")
	}
	if c.SkipDownload {
		keys = append(keys, "skip_download")
	}
	if len(keys) == 0 {
		return "each has the blobs of its images"
	}
	return strings.Join(keys, ", ") + ": images may lack blobs, and whoever knows an image's diff IDs can read its files"
}

// prober is one call of Probe.
type prober struct {
	config  *Config
	open    opener
	store   Store
	scratch *atfs.Dir // on the root's file system, empty
	remove  func() error
	err     error // why the root cannot be checked
}

// start opens the root and creates the scratch directory.
func (p *prober) start() (err error) {
	name := p.config.Root
	if p.store.Root, err = p.open(name); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w: %s does not exist yet", ErrNotChecked, name)
		}
		return err
	}
	if unix.Geteuid() != 0 {
		return fmt.Errorf("%w: only root can", ErrNotChecked)
	}
	below := "."
	if ok, err := p.store.Root.Exists(layer.TmpDir); err != nil {
		return err
	} else if ok {
		below = layer.TmpDir
	}
	root, err := p.store.Root.OpenDir(".")
	if err != nil {
		return err
	}
	p.remove = root.Close
	scratch := path.Join(below, "probe-check-"+rand.Text())
	if err := root.Mkdir(scratch, privateDir); err != nil {
		return fmt.Errorf("root %s cannot be used: %w", name, err)
	}
	p.remove = func() error { return errors.Join(root.RemoveAll(scratch), root.Close()) }
	p.scratch, err = root.OpenDir(scratch)
	return err
}

func (p *prober) close() error {
	var err error
	if p.scratch != nil {
		err = p.scratch.Close()
	}
	if p.remove != nil {
		err = errors.Join(err, p.remove())
	}
	return errors.Join(err, p.store.Close())
}

func (p *prober) root() (string, error) {
	if p.err != nil {
		return "", p.err
	}
	st, err := p.store.Root.Lstat(".")
	if err != nil {
		return "", err
	}
	if err := ownedByRoot(p.store.Root, ".", st); err != nil {
		return "", err
	}
	nothing := func(string, unix.Stat_t, uint32) error { return nil }
	if err := eachPrivate(p.store.Root, p.config.Repo == "", nothing); err != nil {
		return "", err
	}
	if err := probeRoot(p.store.Root, p.scratch); err != nil {
		return "", err
	}
	reflinks, err := hasReflinks(p.scratch)
	if err != nil {
		return "", err
	}
	detail := p.config.Root + ", without reflinks"
	if reflinks { // useful, but not required
		detail = p.config.Root + ", with reflinks"
	}
	switch slow, err := p.scratch.ReusesInodesLate(); {
	case err != nil:
		return "", err
	case slow:
		detail += "; ext4 without a journal: for some minutes after a removal, layers are unpacked several times slower"
	}
	return detail, nil
}

func (p *prober) checkouts() (string, error) {
	if p.err != nil {
		return "", p.err
	}
	support, why, err := p.config.choose(p.scratch)
	return Chosen{chosen(support), why}.String(), err
}

// repositories opens the repositories and, if the root exists, links files between them and the root.
func (p *prober) repositories() (string, error) {
	name, made := p.config.RepoPath(), true
	if p.config.Repo == "" {
		if _, err := os.Stat(name); errors.Is(err, fs.ErrNotExist) {
			made = false
		}
	}
	names := p.config.DedupRepos
	if made {
		names = append([]string{name}, names...)
	}
	found := func() (string, error) {
		if len(names) == 0 {
			return "", fmt.Errorf("%w: %s does not exist yet", ErrNotChecked, p.config.RepoPath())
		}
		return strings.Join(names, ", "), nil
	}
	if p.scratch == nil {
		for _, name := range names {
			if err := openOnly(name, p.open); err != nil {
				return "", err
			}
		}
		return found()
	}
	if !made { // as OpenStore will create it
		if err := p.scratch.Mkdir(repoDir, privateDir); err != nil {
			return "", err
		}
		name = path.Join(p.scratch.Path(), repoDir)
	}
	if err := p.store.openRepos(p.config, p.open, name, p.config.Repo == "" && !made); err != nil {
		return "", err
	}
	if err := p.store.checkLinks(p.config); err != nil {
		return "", err
	}
	return found()
}

// openOnly checks that a usable repository exists at a path.
func openOnly(name string, open opener) error {
	dir, err := open(name)
	if err != nil {
		return fmt.Errorf("open repository: %w", err)
	}
	repo, err := objectstore.Open(dir)
	if err == nil {
		err = repo.Close()
	}
	return errors.Join(err, dir.Close())
}

func kernelRelease() (string, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return "", os.NewSyscallError("uname", err)
	}
	return unix.ByteSliceToString(uts.Release[:]), nil
}

// checkKernel checks for the newest system call that is used without an alternative.
func checkKernel() error {
	fd, err := unix.Openat2(unix.AT_FDCWD, ".", &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC})
	if err != nil {
		release, _ := kernelRelease()
		return fmt.Errorf("kernel %s has no openat2, which came with 5.6: %w", release, err)
	}
	return unix.Close(fd)
}

// checkLinks checks that checkouts can share files with the repository, and the repository with those of dedup_repos.
func (s *Store) checkLinks(c *Config) error {
	if err := probeLink(s.Root, s.Repo.Dir()); err != nil {
		return fmt.Errorf("open repository: %s: %w", c.RepoPath(), err)
	}
	for _, lender := range s.lenders {
		how, err := s.Repo.Transfers(lender)
		if err == nil && how.Exclusive != objectstore.TransferLink {
			err = fmt.Errorf("not on the file system of root %s, so that its files cannot be shared", s.Root.Path())
		}
		if err != nil {
			return fmt.Errorf("open repository %s of dedup_repos: %w", lender.Dir().Path(), err)
		}
	}
	return nil
}

// probeLink checks that hard links between the root and the repository are possible. Equal device numbers are not
// enough: subvolumes of one file system refuse links too.
func probeLink(root, repo *atfs.Dir) (err error) {
	f, err := root.TmpFile(0o600)
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

// probeRoot tries every required feature of the kernel and of the root's file system in a directory there, and returns
// an error that names the first that is missing. It leaves nothing behind.
func probeRoot(root, scratch *atfs.Dir) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("root %s cannot be used: %w", root.Path(), err)
		}
	}()
	name := "probe-" + rand.Text()
	if err := scratch.Mkdir(name, privateDir); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, scratch.RemoveAll(name)) }()
	dir, err := scratch.OpenDir(name)
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

// probeOverlay creates an overlay file system, mounted nowhere, and deletes a file of its lower layer. If the upper
// file system is unsuitable, the overlay is read-only or the whiteout is missing.
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

// hasReflinks reports whether files on the file system of dir can share blocks.
func hasReflinks(dir *atfs.Dir) (_ bool, err error) {
	var f [2]*atfs.File
	for i := range f {
		if f[i], err = dir.TmpFile(0o600); err != nil {
			return false, err
		}
		defer func() { err = errors.Join(err, f[i].Close()) }()
	}
	if _, err := f[0].Write(make([]byte, 4096)); err != nil {
		return false, err
	}
	return f[1].TryCloneFrom(f[0])
}
