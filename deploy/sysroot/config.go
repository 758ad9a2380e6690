package sysroot

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/bls"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/keyfile"
)

const maxConfigLen = 1 << 20

// config is the part of the repository's configuration that concerns the sysroot.
type config struct {
	bootloader    string      // "auto" by default
	bootPrefix    bool        // paths in entries begin with /boot
	exceptDefault []bls.Field // of all entries but the default deployment's
	composefs     bool        // every deployment gets a composefs image
}

func readConfig(dir *atfs.Dir) (config, error) {
	name := path.Join(repoDir, "config")
	text, err := dir.ReadFile(name, maxConfigLen)
	if err != nil {
		return config{}, err
	}
	c, err := parseConfig(text)
	if err != nil {
		return config{}, fmt.Errorf("%s: %w", name, err)
	}
	return c, nil
}

func parseConfig(text []byte) (config, error) {
	f, err := keyfile.Parse(text)
	if err != nil {
		return config{}, err
	}
	c := config{bootloader: "auto"}
	if v, ok := f.Get("sysroot", "bootloader"); ok {
		c.bootloader = v
	}
	if c.bootPrefix, err = f.Bool("sysroot", "bootprefix", false); err != nil {
		return config{}, err
	}
	pairs, _ := f.Get("sysroot", "bls-append-except-default")
	for pair := range strings.SplitSeq(pairs, ";") {
		if key, value, ok := strings.Cut(pair, "="); ok {
			c.exceptDefault = append(c.exceptDefault, bls.Field{Key: key, Value: value})
		}
	}
	switch v, _ := f.Get("ex-integrity", "composefs"); strings.TrimSpace(v) {
	case "yes", "true", "1", "maybe":
		c.composefs = true
	}
	return c, nil
}

// prefix begins the paths of files of /boot in entries.
func (c *config) prefix() string {
	if c.bootPrefix {
		return "/boot/"
	}
	return "/"
}

// checkSupported refuses sysroots in which other tools expect files that this package does not write.
func (s *Sysroot) checkSupported() error {
	name := s.config.bootloader
	var evidence string
	switch name {
	case "none":
	case "auto":
		var err error
		if name, evidence, err = s.probeBootloader(); err != nil {
			return err
		}
	default:
		evidence = "the repository's config says so"
	}
	if evidence != "" {
		return fmt.Errorf("%w: the boot loader is %q (%s), whose configuration would have to be generated; if it reads the entries in "+
			"/boot/loader itself, say so with \"ostree config --repo=%s set sysroot.bootloader none\"",
			ErrUnsupported, name, evidence, path.Join(s.dir.Path(), repoDir))
	}
	return nil
}

// probeBootloader looks for boot loaders in libostree's order. Without evidence, no boot loader needs a configuration
// of its own.
func (s *Sysroot) probeBootloader() (name, evidence string, err error) {
	exists := func(names ...string) (string, error) {
		for _, n := range names {
			ok, err := s.boot.Exists(n)
			if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) {
				continue
			}
			if ok || err != nil {
				return "/boot/" + n, err
			}
		}
		return "", nil
	}
	if evidence, err = exists("syslinux/syslinux.cfg"); evidence != "" || err != nil {
		return "syslinux", evidence, err
	}
	static, err := s.grubIsStatic()
	if err != nil {
		return "", "", err
	}
	if !static {
		candidates := []string{"grub2/grub.cfg", "grub/grub.cfg"}
		vendors, err := readNames(s.boot, "efi/EFI")
		if err != nil && !errors.Is(err, unix.ELOOP) && !errors.Is(err, unix.ENOTDIR) {
			return "", "", err
		}
		for _, v := range vendors {
			candidates = append(candidates, path.Join("efi/EFI", v, "grub.cfg"))
		}
		if evidence, err = exists(candidates...); evidence != "" || err != nil {
			return "grub2", evidence, err
		}
	}
	evidence, err = exists("loader.0/uEnv.txt", "loader.1/uEnv.txt")
	return "uboot", evidence, err
}

// grubIsStatic reports whether GRUB's configuration reads boot/loader itself.
func (s *Sysroot) grubIsStatic() (bool, error) {
	if ok, err := s.boot.Exists("grub2/.grub2-blscfg-supported"); ok || err != nil && !errors.Is(err, unix.ELOOP) {
		return ok, err
	}
	text, err := s.boot.ReadFile("bootupd-state.json", maxConfigLen)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	var state struct {
		StaticConfigs map[string]any `json:"static-configs"`
	}
	if err := json.Unmarshal(text, &state); err != nil {
		return false, fmt.Errorf("parse /boot/bootupd-state.json: %w", err)
	}
	return state.StaticConfigs != nil, nil
}
