package sysroot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/cfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/prepareroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/selinux"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// checkTree refuses trees that would not boot, or not work, as this package deploys them.
func (t *osTree) checkTree(noSELinux bool) error {
	switch _, err := t.lookup(cfs.Name); {
	case err == nil:
		return fmt.Errorf("the tree has /%s, which would pass for its composefs image: %w", cfs.Name, ErrInvalid)
	case !isAbsent(err):
		return err
	}
	for _, name := range []string{"etc", "usr/etc"} {
		switch n, err := t.lookup(name); {
		case isAbsent(err):
		case err != nil:
			return err
		case !n.Dir:
			return fmt.Errorf("/%s of the tree is not a directory: %w", name, ErrInvalid)
		}
	}
	etc, err := t.dir("etc")
	if err != nil {
		return err
	}
	usrEtc, err := t.dir("usr/etc")
	if err != nil {
		return err
	}
	if etc != nil && len(etc.Files)+len(etc.Dirs) > 0 && usrEtc != nil {
		return fmt.Errorf("the tree has both /etc and /usr/etc: %w", ErrInvalid)
	}
	if !noSELinux {
		return t.checkSELinux()
	}
	return nil
}

// checkSELinux refuses a tree that enforces a policy, or logs by one, although its files have no labels.
func (t *osTree) checkSELinux() error {
	if has, err := t.hasLabels(); has || err != nil {
		return err
	}
	for _, etc := range []string{"usr/etc", "etc"} {
		data, err := t.readFile(path.Join(etc, "selinux/config"), maxConfigLen)
		if isAbsent(err) {
			continue
		}
		if err != nil {
			return err
		}
		config := selinux.ParseConfig(data)
		if !config.Enabled() || strings.Contains(config.Type, "/") {
			continue
		}
		dir := path.Join(etc, "selinux", config.Type)
		if _, err := t.lookup(dir); isAbsent(err) {
			continue
		} else if err != nil {
			return err
		}
		return fmt.Errorf("%w: the tree has %q (%s, in /%s), which needs labels on files, and its files have none",
			ErrSELinux, config.Type, config.Mode, dir)
	}
	return nil
}

// prepareRoot returns the configuration by which a deployment of the tree boots, but for kernel arguments.
func (t *osTree) prepareRoot() (*prepareroot.Config, error) {
	config, err := prepareroot.Load(func(name string) ([]byte, error) {
		data, err := t.readFile(name, maxConfigLen)
		if isAbsent(err) {
			err = fmt.Errorf("%w: %w", fs.ErrNotExist, err)
		}
		return data, err
	})
	if errors.Is(err, prepareroot.ErrInvalid) {
		err = fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return config, err
}

// checkBoot refuses a new deployment whose kernel does not fit into /boot, or on the boot loader's file system, once the
// directories in gone are removed.
func (s *Sysroot) checkBoot(ctx context.Context, p *Plan, gone []string) error {
	boot, known, err := s.boot.Space()
	if err != nil {
		return err
	}
	copied, err := s.kernelIsCopied()
	if err != nil {
		return err
	}
	need := int64(0)
	var files []BootFile
	for _, f := range p.kernel.files {
		name := path.Join(kernelDir(p.New), f.name)
		files = append(files, BootFile{name, f.size})
		there, err := s.boot.Exists(name)
		if err != nil {
			return err
		}
		_, relabel, err := s.bootLabel(f, name, p.policy)
		if err != nil {
			return err
		}
		if !there && (copied || relabel) {
			need += roundUp(f.size, boot.BlockSize)
		}
	}
	// Directories of links and entries, and the entries.
	need += int64(16+len(p.kernel.files)) * int64(boot.BlockSize)
	has := int64(min(boot.Free, 1<<62))
	freed, err := s.allocated(gone)
	if err != nil {
		return err
	}
	has += freed
	if known && need > has {
		return fmt.Errorf("%w: the boot file system needs %s, has %s", ErrNoSpace, bytesText(need), bytesText(has))
	}
	if s.opts.Bootloader != nil {
		return s.opts.Bootloader.Check(ctx, files, gone)
	}
	return nil
}

// checkCopySpace refuses a tree whose files that a deployment has for itself do not fit into the sysroot: those of /etc,
// and if outside is true those outside of [ownDirs].
func (s *Sysroot) checkCopySpace(ctx context.Context, t *osTree, outside bool) error {
	root, known, err := s.dir.Space()
	if err != nil || !known {
		return err
	}
	need, err := t.etcSize(ctx, root.BlockSize)
	if err != nil {
		return err
	}
	what := "/etc of the deployment"
	if outside {
		more, err := t.outsideSize(ctx, root.BlockSize)
		if err != nil {
			return err
		}
		if more > need {
			what = "what the deployment has outside of /usr and /var"
		}
		need += more
	}
	if need > int64(min(root.Free, 1<<62)) {
		return fmt.Errorf("%w: %s needs %s, the sysroot has %s", ErrNoSpace, what, bytesText(need), bytesText(int64(root.Free)))
	}
	return nil
}

// etcSize returns the minimal size of a copy of /etc.
func (t *osTree) etcSize(ctx context.Context, block uint64) (int64, error) {
	n, err := t.lookup("usr/etc")
	if isAbsent(err) {
		n, err = t.lookup("etc")
	}
	if isAbsent(err) || err == nil && !n.Dir {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return t.copySize(ctx, n, block)
}

// kernelIsCopied reports whether objects cannot be linked into /boot.
func (s *Sysroot) kernelIsCopied() (bool, error) {
	boot, err := s.boot.Lstat(".")
	if err != nil {
		return false, err
	}
	objects, err := s.repo.ObjectsDir().Lstat(".")
	return boot.Dev != objects.Dev, err
}

// copySize returns the minimal size of a copy of a directory.
func (t *osTree) copySize(ctx context.Context, n objectstore.TreeEntry, block uint64) (int64, error) {
	d, err := t.repo.DirTree(n.Checksum)
	if err != nil {
		return 0, err
	}
	size, err := t.contentSize(ctx, d, block)
	return int64(block) + size, err
}

// contentSize returns the minimal size of copies of a directory's content.
func (t *osTree) contentSize(ctx context.Context, d *objectstore.DirTree, block uint64) (size int64, err error) {
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	for _, f := range d.Files {
		st, err := t.repo.Stat(f.Checksum)
		if err != nil {
			return 0, err
		}
		if st.Mode&unix.S_IFMT == unix.S_IFREG {
			size += roundUp(st.Size, block)
		}
	}
	for _, sub := range d.Dirs {
		below, err := t.copySize(ctx, sub.Entry(), block)
		if err != nil {
			return 0, err
		}
		size += below
	}
	return size, nil
}

func roundUp(size int64, block uint64) int64 {
	b := int64(max(block, 1))
	return (size + b - 1) / b * b
}

// bytesText formats a number of bytes for people.
func bytesText(n int64) string {
	switch {
	case n >= 10<<20:
		return fmt.Sprintf("%d MiB", n>>20)
	case n >= 10<<10:
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d bytes", n)
}

// commitError explains the error of a commit that does not exist.
func commitError(sum objectstore.Checksum, err error) error {
	if errors.Is(err, objectstore.ErrNotExist) {
		return fmt.Errorf("commit %s is not complete in the sysroot's repository: %w", sum, err)
	}
	return err
}
