package vm

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/testhost"
)

//go:embed kernel.sh
var kernelScript string

// scratchSize is the size of the disk on /tmp of a machine without a system.
const scratchSize = 4 << 30

// kernelModules are loaded in this order, unless they are built in.
var kernelModules = []string{"virtio_blk", "qemu_fw_cfg", "loop", "netfs", "libcrc32c", "erofs", "overlay", "fat", "nls_cp437", "nls_ascii", "vfat"}

// NewWithKernel returns a machine whose system is the kernel of Debian 13, busybox and some files of the host, by their
// paths in the guest. Its /tmp is an empty ext4 with fs-verity. busybox's shell runs the commands. The parts of the
// machine and its output are kept in dir, which the caller removes.
func NewWithKernel(ctx context.Context, files map[string]string, dir string, log io.Writer) (*Machine, error) {
	m := &Machine{disk: filepath.Join(dir, "disk.img"), dir: dir, log: log, kernel: filepath.Join(dir, "vmlinuz")}
	root, err := testhost.Kernel(ctx, log)
	if err == nil {
		err = m.makeKernel(ctx, root, files)
	}
	if err == nil {
		err = m.makeScratch(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("make machine with a kernel: %w", err)
	}
	return m, nil
}

// makeKernel links to the kernel and packs its initial file system.
func (m *Machine) makeKernel(ctx context.Context, root string, files map[string]string) error {
	image, err := testhost.OneFile(filepath.Join(root, "boot/vmlinuz-*"))
	if err != nil {
		return err
	}
	if err := os.Symlink(image, m.kernel); err != nil {
		return err
	}
	busybox := filepath.Join(root, "usr/bin/busybox")
	all := map[string]string{"bin/busybox": busybox, "bin/sh": busybox}
	modules := filepath.Join(root, "usr/lib/modules", strings.TrimPrefix(filepath.Base(image), "vmlinuz-"))
	for i, name := range kernelModules {
		file, err := findModule(modules, name)
		if err != nil {
			return err
		}
		if file != "" {
			all[fmt.Sprintf("modules/%02d-%s", i, filepath.Base(file))] = file
		}
	}
	for name, file := range files {
		all[strings.TrimPrefix(name, "/")] = file
	}
	for name, text := range map[string]string{"init": kernelScript, "guest.sh": guestScript} {
		all[name] = m.path(name)
		if err := os.WriteFile(m.path(name), []byte(text), 0o755); err != nil {
			return err
		}
	}
	return m.pack(ctx, busybox, all)
}

// findModule returns the file of a module, "" for one that is built in.
func findModule(dir, name string) (string, error) {
	builtin, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil || strings.Contains(string(builtin), "/"+name+".ko\n") {
		return "", err
	}
	var found string
	err = filepath.WalkDir(filepath.Join(dir, "kernel"), func(file string, _ os.DirEntry, err error) error {
		if base, _, ok := strings.Cut(filepath.Base(file), ".ko"); ok && base == name {
			found = file
		}
		return err
	})
	if err == nil && found == "" {
		err = fmt.Errorf("module %s: %w", name, os.ErrNotExist)
	}
	return found, err
}

// pack makes the archive with the kernel's initial files, from links that cpio follows.
func (m *Machine) pack(ctx context.Context, busybox string, files map[string]string) (err error) {
	tree := m.path("initramfs")
	names := make(map[string]struct{})
	for name, file := range files {
		if err := os.MkdirAll(filepath.Join(tree, path.Dir(name)), 0o755); err != nil {
			return err
		}
		if err := os.Symlink(file, filepath.Join(tree, name)); err != nil {
			return err
		}
		for ; name != "."; name = path.Dir(name) {
			names[name] = struct{}{}
		}
	}
	out, err := os.Create(m.path("initramfs.cpio"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	cmd := exec.CommandContext(ctx, busybox, "cpio", "-o", "-L", "-H", "newc")
	cmd.Dir, cmd.Stdout = tree, out
	cmd.Stdin = strings.NewReader(strings.Join(slices.Sorted(maps.Keys(names)), "\n") + "\n") // directories first
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("run cpio: %w\n%s", err, stderr.String())
	}
	return nil
}

func (m *Machine) makeScratch(ctx context.Context) error {
	f, err := os.Create(m.disk)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(scratchSize), f.Close()); err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, "mkfs.ext4", "-q", "-F", "-O", "verity", m.disk).CombinedOutput()
	if err != nil {
		return fmt.Errorf("run mkfs.ext4: %w\n%s", err, out)
	}
	return nil
}
