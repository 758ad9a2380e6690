package install

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/bootloader"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
)

// espDir is the directory of the root file system in which the contents of the ESP are laid out.
const espDir = ".esp"

// loaderConf is the configuration of systemd-boot.
const loaderConf = "timeout 3\nconsole-mode keep\n"

// loaderDir is the directory of systemd-boot in an OS.
const loaderDir = "usr/lib/systemd/boot/efi"

// loaderNames are the names of its program: first the form that is signed for Secure Boot, which bootctl prefers too.
func loaderNames(a arch) []string {
	name := "systemd-boot" + a.efi + ".efi"
	return []string{path.Join(loaderDir, name+".signed"), path.Join(loaderDir, name)}
}

// HasLoader reports whether an OS for an architecture, named as in Go, has systemd-boot. hasFile reports whether the OS
// has a file.
func HasLoader(arch string, hasFile func(name string) bool) bool {
	a, ok := arches[arch]
	return ok && slices.ContainsFunc(loaderNames(a), hasFile)
}

// hostLoader returns the path of this host's systemd-boot, or "".
func hostLoader(a arch) (string, error) {
	for _, name := range loaderNames(a) {
		_, err := os.Stat("/" + name)
		if err == nil {
			return "/" + name, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	return "", nil
}

// makeESP lays out the parts of an ESP that do not depend on entries.
func makeESP(root *atfs.Dir) (*bootloader.SystemdBoot, error) {
	if err := root.MkdirAll(espDir+"/loader/entries", 0o755); err != nil {
		return nil, err
	}
	esp, err := root.OpenDir(espDir)
	if err != nil {
		return nil, err
	}
	for name, text := range map[string]string{
		"loader/loader.conf": loaderConf,
		// The type of loader/entries, for bootctl and kernel-install.
		"loader/entries.srel": "type1\n",
	} {
		err = errors.Join(err, esp.WriteFile(name, []byte(text), 0o644, false))
	}
	if err != nil {
		return nil, errors.Join(err, esp.Close())
	}
	b, err := bootloader.New(esp)
	if err != nil {
		return nil, errors.Join(err, esp.Close())
	}
	return b, nil
}

// copyLoader puts systemd-boot on the ESP: under its own name, and under the name that firmware boots from a disk
// without further information. It comes from the OS's tree, or from this host.
func (p *Plan) copyLoader(root *atfs.Dir, tree string) error {
	src, err := p.openLoader(root, tree)
	if err != nil {
		return err
	}
	defer src.Close()
	data, err := io.ReadAll(io.LimitReader(src, maxLoader+1))
	if err != nil {
		return err
	}
	if len(data) > maxLoader {
		return fmt.Errorf("read systemd-boot: more than %s", human(maxLoader))
	}
	for _, name := range []string{
		"EFI/systemd/systemd-boot" + p.arch.efi + ".efi",
		"EFI/BOOT/BOOT" + strings.ToUpper(p.arch.efi) + ".EFI",
	} {
		name = path.Join(espDir, name)
		if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
			return err
		}
		if err := root.WriteFile(name, data, 0o644, false); err != nil {
			return err
		}
	}
	return nil
}

const maxLoader = 16 * mib

func (p *Plan) openLoader(root *atfs.Dir, tree string) (io.ReadCloser, error) {
	for _, name := range loaderNames(p.arch) {
		f, err := root.Open(path.Join(tree, name))
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	if p.loader == "" {
		return nil, fmt.Errorf("neither the OS nor this host has %s", loaderNames(p.arch)[1])
	}
	return os.Open(p.loader)
}

// copyESP copies the layout to the ESP.
func (p *Plan) copyESP(ctx context.Context, root *atfs.Dir, esp *loop) error {
	if err := p.checkESP(root); err != nil {
		return err
	}
	dir, err := root.OpenDir(espDir)
	if err != nil {
		return err
	}
	defer dir.Close()
	names, err := dir.ReadNames()
	if err != nil {
		return err
	}
	slices.Sort(names)
	// No path leads to the directory's mount.
	fd, err := unix.FcntlInt(uintptr(dir.FD()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), dir.Path())
	defer f.Close()
	args := []string{"-i", childPath(0), "-s", "-Q"}
	for _, name := range names {
		args = append(args, path.Join(childPath(1), name))
	}
	_, err = p.tools.run(ctx, "", []*os.File{esp.f, f}, "mcopy", append(args, "::/")...)
	return err
}

// checkESP makes sure that the layout fits on the ESP.
func (p *Plan) checkESP(root *atfs.Dir) error {
	var needs int64
	err := root.Walk(espDir, func(st *unix.Stat_t) error {
		needs += (st.Size + 4095) / 4096 * 4096
		return nil
	})
	if err != nil {
		return err
	}
	return p.checkESPRoom(needs)
}

// checkESPRoom makes sure that files fit on the ESP. FAT itself takes less than a 60th of it.
func (p *Plan) checkESPRoom(files int64) error {
	if has := p.esp().Size / 60 * 59; files+mib > has {
		return &bootloader.SpaceError{Needs: files + mib, Has: has}
	}
	return nil
}
