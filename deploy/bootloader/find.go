package bootloader

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"strings"
	"unicode/utf16"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/keyfile"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/mounts"
)

// ErrNone reports that the system has no boot loader to serve, and so none that counts boots.
var ErrNone = errors.New("no systemd-boot with entries of its own")

// ErrCannotCount reports that a boot loader does not count boots.
var ErrCannotCount = errors.New("the boot loader does not count boots")

// mountPoints are where the ESP is mounted, in this order. systemd mounts the one that the machine has booted from at
// /efi, or at /boot if /efi does not exist.
var mountPoints = []string{"/efi", "/boot/efi", "/boot"}

// Open opens the boot loader of an ESP that is mounted at a path, or of a directory that will become one.
func Open(name string) (*SystemdBoot, error) {
	dir, err := atfs.Open(name)
	if err != nil {
		return nil, fmt.Errorf("open EFI system partition: %w", err)
	}
	b, err := New(dir)
	if err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	return b, nil
}

// Find opens the boot loader of the running system: that of an ESP with loader/entries, mounted at /efi, /boot/efi or
// /boot. If the boot loader reads /boot itself, such as GRUB with blscfg, or systemd-boot with a driver for the file
// system of /boot, the error is an ErrNone that names the places searched.
func Find() (*SystemdBoot, error) {
	b, err := find(mountPoints, isFAT)
	if err == nil {
		b.startedBy = readLoaderInfo(loaderInfo)
	}
	return b, err
}

func find(mountPoints []string, isESP func(*atfs.Dir) (bool, error)) (*SystemdBoot, error) {
	for _, name := range mountPoints {
		b, err := findAt(name, isESP)
		if b != nil || err != nil {
			return b, err
		}
	}
	return nil, fmt.Errorf("%w: no FAT file system with a directory %s at %s", ErrNone, entriesDir, strings.Join(mountPoints, ", "))
}

// findAt returns nil if there is no boot loader.
func findAt(name string, isESP func(*atfs.Dir) (bool, error)) (*SystemdBoot, error) {
	dir, err := atfs.Open(name) // autofs mounts it now
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open EFI system partition: %w", err)
	}
	ok, err := isESP(dir)
	if err == nil && ok {
		var b *SystemdBoot
		if b, err = New(dir); err == nil {
			return b, nil
		}
		if errors.Is(err, ErrNone) {
			err = nil
		}
	}
	return nil, errors.Join(err, dir.Close())
}

func isFAT(dir *atfs.Dir) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(dir.FD(), &st); err != nil {
		return false, fmt.Errorf("statfs %s: %w", dir.Path(), err)
	}
	return st.Type == unix.MSDOS_SUPER_MAGIC, nil
}

// Where the configuration of a sysroot's repository names the ESP with its entries: by partition UUID.
const (
	configFile  = "ostree/repo/config"
	configGroup = "ostree-snapshotter"
	configKey   = "esp"
)

var partUUID = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// SetESP records in the configuration of a sysroot's repository that its boot entries are on an ESP, so that
// those in /boot are not taken for them while the ESP is not mounted.
func SetESP(config *keyfile.File, uuid string) {
	config.Set(configGroup, configKey, strings.ToLower(uuid))
}

// FindFor opens the boot loader of a sysroot. For the running system it does what [Find] does. Otherwise, and if that
// fails, as it may while a system shuts down, it mounts the partition that [SetESP] has recorded, for this process
// alone. If that fails too, the error is not an ErrNone: the entries in /boot are not what boots.
func FindFor(sysroot *atfs.Dir, running bool) (*SystemdBoot, error) {
	err := fmt.Errorf("%w: the sysroot names no EFI system partition", ErrNone)
	if running {
		var b *SystemdBoot
		if b, err = Find(); err == nil {
			return b, nil
		}
	}
	uuid, uerr := readESP(sysroot)
	if uerr != nil {
		return nil, uerr
	}
	if uuid == "" {
		return nil, err
	}
	b, err := mountESP("/dev/disk/by-partuuid/"+uuid, "vfat")
	if err != nil {
		return nil, fmt.Errorf("find the boot entries of %s: %w", sysroot.Path(), err)
	}
	if running {
		b.startedBy = readLoaderInfo(loaderInfo)
	}
	return b, nil
}

// readESP returns the UUID of the partition that the configuration of a sysroot names, or "".
func readESP(sysroot *atfs.Dir) (string, error) {
	text, err := sysroot.ReadFile(configFile, keyfile.MaxLen)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	config, err := keyfile.Parse(text)
	if err != nil {
		return "", fmt.Errorf("%s: %w", configFile, err)
	}
	uuid, ok := config.Get(configGroup, configKey)
	if ok && !partUUID.MatchString(uuid) {
		return "", fmt.Errorf("%s: %s %q in [%s] is not the UUID of a partition", configFile, configKey, uuid, configGroup)
	}
	return uuid, nil
}

func mountESP(device, fstype string) (*SystemdBoot, error) {
	m, err := mounts.MountDetached(device, fstype, device)
	if err != nil {
		return nil, err
	}
	b, err := New(m.Dir)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s has no directory %s", device, entriesDir), m.Close())
	}
	b.mount = m
	return b, nil
}

// CanCount returns nil if the boot loader on the ESP counts boots: it is systemd-boot, and if this is the ESP of the
// running system, no other boot loader has started that. Otherwise the error is an ErrCannotCount with the reason.
func (b *SystemdBoot) CanCount() error {
	if b.startedBy != "" && !strings.HasPrefix(b.startedBy, "systemd-boot ") {
		return fmt.Errorf("%w: this machine is started by %s", ErrCannotCount, b.startedBy)
	}
	for _, dir := range []string{"EFI/systemd", "EFI/BOOT"} {
		ok, err := b.hasSystemdBoot(dir)
		if ok || err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: %s has no systemd-boot", ErrCannotCount, b.esp.Path())
}

// sdMagic begins the section .sdmagic in which systemd-boot's program identifies itself.
const sdMagic = "#### LoaderInfo: systemd-boot "

// maxProgram is the size of the largest EFI program that is searched.
const maxProgram = 8 << 20

func (b *SystemdBoot) hasSystemdBoot(dir string) (bool, error) {
	d, err := b.esp.OpenDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer d.Close()
	names, err := d.ReadNames()
	if err != nil {
		return false, err
	}
	for _, name := range names {
		if path.Ext(fold(name)) != ".efi" {
			continue
		}
		data, err := d.ReadFile(name, maxProgram)
		if errors.Is(err, unix.EFBIG) {
			continue
		}
		if err != nil {
			return false, err
		}
		if bytes.Contains(data, []byte(sdMagic)) {
			return true, nil
		}
	}
	return false, nil
}

// loaderInfo is the EFI variable in which a boot loader identifies itself.
const loaderInfo = "/sys/firmware/efi/efivars/LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"

// readLoaderInfo returns how the boot loader that started the machine identifies itself, such as "systemd-boot 252.39".
// It returns "" if the boot loader does not, as most do not, or if the variable cannot be read.
func readLoaderInfo(file string) string {
	dir, err := atfs.Open(path.Dir(file))
	if err != nil {
		return ""
	}
	defer dir.Close()
	data, err := dir.ReadFile(path.Base(file), 1<<10)
	if err != nil {
		return ""
	}
	return decodeVariable(data)
}

// decodeVariable returns the text of an EFI variable: four bytes of attributes, then UTF-16 with a NUL.
func decodeVariable(data []byte) string {
	var text []uint16
	for i := 4; i+2 <= len(data); i += 2 {
		if c := binary.LittleEndian.Uint16(data[i:]); c != 0 {
			text = append(text, c)
		}
	}
	return string(utf16.Decode(text))
}
