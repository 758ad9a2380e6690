package sysroot

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/bls"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

const (
	modulesDir = "usr/lib/modules"
	dtbDir     = "dtb"
)

// Directories in which older trees have their kernel, under names that end in its checksum.
var legacyDirs = []string{"usr/lib/ostree-boot", "boot"}

// A kernel is a tree's kernel, with its initramfs image and device trees.
type kernel struct {
	bootNames
	csum  string     // bootcsum
	files []treeFile // to install
}

// bootNames are the names of a kernel's files in the directory that it is installed in.
type bootNames struct {
	linux, initrd string // initrd: "" for none
	devicetree    string // a file; "" for none
	fdtdir        string // a directory of device trees; "" for none
}

// findKernel finds the kernel of a tree where libostree looks for it: in the directory of modules that has a vmlinuz,
// else, or if that has only an initramfs image, in the older places. Of several kernels it finds the one with the
// version want, and returns an error if want is "". It reads the files that the checksum covers.
func (t *osTree) findKernel(ctx context.Context, want string) (*kernel, error) {
	modern, err := t.modulesKernel(want)
	if err != nil {
		return nil, err
	}
	if modern == nil || modern.initrd == "" {
		legacy, err := t.legacyKernel()
		if err != nil {
			return nil, err
		}
		if legacy != nil && (modern == nil || legacy.initrd != "") {
			return legacy, nil
		}
	}
	if modern == nil {
		return nil, fmt.Errorf("there is no kernel in /%s, /%s or /%s: %w", modulesDir, legacyDirs[0], legacyDirs[1], ErrInvalid)
	}
	return modern, t.checksum(ctx, modern)
}

func (t *osTree) modulesKernel(want string) (*kernel, error) {
	modules, err := t.dir(modulesDir)
	if modules == nil || err != nil {
		return nil, err
	}
	var versions []string
	for _, d := range modules.Dirs {
		tree, err := t.repo.DirTree(d.Tree)
		if err != nil {
			return nil, err
		}
		n, ok := tree.Lookup("vmlinuz")
		if !ok || n.Dir {
			continue
		}
		m, err := t.repo.FileMeta(n.Checksum)
		if err != nil {
			return nil, err
		}
		if !m.IsSymlink() {
			versions = append(versions, d.Name)
		}
	}
	switch {
	case len(versions) == 0:
		return nil, nil
	case len(versions) == 1:
		want = versions[0]
	case !slices.Contains(versions, want):
		return nil, fmt.Errorf("there are several kernels to choose from: /%s has %s: %w", modulesDir,
			strings.Join(versions, ", "), ErrInvalid)
	}
	return t.modulesVersion(want)
}

func (t *osTree) modulesVersion(version string) (*kernel, error) {
	if !bls.IsKernelVersion(version) {
		return nil, fmt.Errorf("/%s: %.80q is not a kernel version: %w", modulesDir, version, ErrInvalid)
	}
	where := path.Join(modulesDir, version)
	tree, err := t.dir(where)
	if err != nil {
		return nil, err
	}
	k := &kernel{}
	add := func(name, installed string) (bool, error) {
		n, ok := tree.Lookup(name)
		if !ok || n.Dir {
			return false, nil
		}
		f, err := t.regular(n.Checksum, path.Join(where, name))
		f.name = installed
		k.files = append(k.files, f)
		return err == nil, err
	}
	k.linux = "vmlinuz-" + version
	if _, err := add("vmlinuz", k.linux); err != nil {
		return nil, err
	}
	for _, name := range []string{"initramfs.img", "initramfs"} {
		ok, err := add(name, "initramfs-"+version+".img")
		if err != nil {
			return nil, err
		}
		if ok {
			k.initrd = "initramfs-" + version + ".img"
			break
		}
	}
	switch ok, err := add("devicetree", "devicetree-"+version); {
	case err != nil:
		return nil, err
	case ok:
		k.devicetree = "devicetree-" + version
	default:
		if err := t.addTree(k, path.Join(where, dtbDir), dtbDir); err != nil {
			return nil, err
		}
	}
	_, err = add(".vmlinuz.hmac", "."+k.linux+".hmac")
	return k, err
}

// addTree adds every file of a directory of device trees, in the order in which they are hashed.
func (t *osTree) addTree(k *kernel, where, installed string) error {
	tree, err := t.dir(where)
	if tree == nil || err != nil {
		return err
	}
	k.fdtdir = dtbDir
	type entry struct {
		name string
		sum  objectstore.Checksum
		dir  bool
	}
	var entries []entry
	for _, d := range tree.Dirs {
		entries = append(entries, entry{name: d.Name, dir: true})
	}
	for _, f := range tree.Files {
		entries = append(entries, entry{name: f.Name, sum: f.Checksum})
	}
	slices.SortFunc(entries, func(a, b entry) int { return cmp.Compare(a.name, b.name) })
	for _, e := range entries {
		if e.dir {
			if err := t.addTree(k, path.Join(where, e.name), path.Join(installed, e.name)); err != nil {
				return err
			}
			continue
		}
		f, err := t.regular(e.sum, path.Join(where, e.name))
		if err != nil {
			return err
		}
		f.name = path.Join(installed, e.name)
		k.files = append(k.files, f)
	}
	return nil
}

// checksum computes the bootcsum: that of the contents of all files except the one that holds a checksum itself.
func (t *osTree) checksum(ctx context.Context, k *kernel) error {
	h := sha256.New()
	for _, f := range k.files {
		if strings.HasPrefix(f.name, ".") {
			continue
		}
		if err := t.hashFile(ctx, h, f.sum); err != nil {
			return fmt.Errorf("checksum of the kernel: %w", err)
		}
	}
	k.csum = hex.EncodeToString(h.Sum(nil))
	return nil
}

func (t *osTree) hashFile(ctx context.Context, h hash.Hash, sum objectstore.Checksum) error {
	f, err := t.repo.OpenFile(sum)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, 256<<10)
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := f.Read(buf)
		h.Write(buf[:n])
		if err == io.EOF { //nolint:errorlint // Read returns it bare
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// legacyKernel finds a kernel under names like vmlinuz-<version>-<bootcsum>.
func (t *osTree) legacyKernel() (*kernel, error) {
	for _, where := range legacyDirs {
		tree, err := t.dir(where)
		if err != nil {
			return nil, err
		}
		if tree != nil {
			return t.legacyKernelIn(where, tree)
		}
	}
	return nil, nil
}

func (t *osTree) legacyKernelIn(where string, tree *objectstore.DirTree) (*kernel, error) {
	k := &kernel{}
	for _, kind := range []struct {
		prefix string
		name   *string
	}{{"vmlinuz-", &k.linux}, {"initramfs-", &k.initrd}, {"devicetree-", &k.devicetree}} {
		for _, e := range tree.Files {
			name, sum, ok := cutChecksum(e.Name)
			if !ok || !strings.HasPrefix(e.Name, kind.prefix) || *kind.name != "" {
				continue
			}
			if k.csum != "" && sum != k.csum {
				return nil, fmt.Errorf("/%s: the checksum in the name is not that of the kernel, %s: %w", path.Join(where, e.Name), k.csum, ErrInvalid)
			}
			if !bls.IsKernelVersion(name) {
				return nil, fmt.Errorf("/%s: %.80q is not a kernel version: %w", where, name, ErrInvalid)
			}
			f, err := t.regular(e.Checksum, path.Join(where, e.Name))
			if err != nil {
				return nil, err
			}
			f.name = name
			k.csum, *kind.name = sum, name
			k.files = append(k.files, f)
		}
		if k.linux == "" {
			return nil, nil
		}
	}
	return k, nil
}

// cutChecksum cuts a checksum, and the dash before it, from the end of a name.
func cutChecksum(name string) (before, sum string, ok bool) {
	i := strings.LastIndexByte(name, '-')
	if i < 0 {
		return name, "", false
	}
	if _, err := objectstore.ParseChecksum(name[i+1:]); err != nil {
		return name, "", false
	}
	return name[:i], name[i+1:], true
}
