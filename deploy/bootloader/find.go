package bootloader

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"unicode/utf16"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/bls"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/kargs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/keyfile"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/mounts"
)

// ErrNone reports that the system has no boot loader to serve, and so none that counts boots.
var ErrNone = errors.New("no systemd-boot with entries of its own")

// ErrCannotCount reports that a boot loader does not count boots.
var ErrCannotCount = errors.New("the boot loader does not count boots")

// ErrUncertain is an ErrNone: the partition that systemd-boot was started from cannot be mounted. The entries in /boot, which
// are those of the running system, are taken for what boots.
var ErrUncertain = fmt.Errorf("%w known", ErrNone)

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
		b.startedBy = readVariable(efiVars, loaderInfo)
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
// fails, it mounts a partition for this process alone: the one that [SetESP] has recorded, or else the one that
// systemd-boot has started the running system from, if that has an entry of this system. Nothing need be mounted while a
// system shuts down, and on a composefs root. If the mount of a recorded one fails, the error is not an ErrNone: the entries
// in /boot are not what boots. If that of another fails, the error is an ErrUncertain, provided that boot has an entry of the
// running system.
func FindFor(sysroot, boot *atfs.Dir, running bool) (*SystemdBoot, error) {
	err := fmt.Errorf("%w: the sysroot names no EFI system partition", ErrNone)
	if running {
		var b *SystemdBoot
		if b, err = Find(); err == nil {
			return b, nil
		}
	}
	recorded, rerr := readESP(sysroot)
	if rerr != nil {
		return nil, rerr
	}
	started := ""
	if running {
		started = startedFrom(efiVars)
	}
	const byUUID, fat = "/dev/disk/by-partuuid/", "vfat"
	var b *SystemdBoot
	var merr error
	switch {
	case recorded != "":
		b, merr = mountESP(byUUID+recorded, fat, nil)
	case started != "":
		b, merr = mountStarted(byUUID+started, fat, boot, bootedArg())
	default:
		return nil, err
	}
	switch {
	case errors.Is(merr, ErrUncertain):
		return nil, merr
	case errors.Is(merr, ErrNone):
		return nil, err // the boot loader reads /boot itself
	case merr != nil:
		return nil, fmt.Errorf("find the boot entries of %s: %w", sysroot.Path(), merr)
	}
	if running {
		b.startedBy = readVariable(efiVars, loaderInfo)
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

// bootedArg returns the argument ostree= of the running system, or the zero value.
func bootedArg() bls.OSTreeArg {
	text, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return bls.OSTreeArg{}
	}
	value, _ := kargs.Parse(strings.TrimSpace(string(text))).Value("ostree")
	arg, _ := bls.ParseOSTreeArg(value)
	return arg
}

// mountStarted mounts the ESP that systemd-boot was started from for this process alone. If it has no entry of the booted
// system, the error is an ErrNone. If it cannot be mounted, but boot has one, it is an ErrUncertain.
func mountStarted(device, fstype string, boot *atfs.Dir, booted bls.OSTreeArg) (*SystemdBoot, error) {
	b, err := mountESP(device, fstype, &booted)
	if err == nil || errors.Is(err, ErrNone) {
		return b, err
	}
	if has, berr := bootHas(boot, booted); !has || berr != nil {
		return nil, errors.Join(err, berr)
	}
	return nil, fmt.Errorf("%w: what boots is taken to be in /boot: %w", ErrUncertain, err)
}

// bootHas reports whether /boot has an entry of the booted system.
func bootHas(boot *atfs.Dir, booted bls.OSTreeArg) (bool, error) {
	loader, entries := path.Split(entriesDir)
	loader = path.Clean(loader)
	target, err := boot.Readlink(loader)
	if errors.Is(err, unix.EINVAL) { // not a link
		target, err = loader, nil
	}
	var dir *atfs.Dir
	if err == nil {
		dir, err = boot.OpenDir(path.Join(target, entries))
	}
	if err != nil {
		return false, atfs.IgnoreNotExist(err)
	}
	list, err := readEntries(dir)
	return isAmong(list, booted), errors.Join(err, dir.Close())
}

// mountESP mounts an ESP for this process alone. Without an entry of the booted system it is an ErrNone, unless booted is
// nil: it is certain then that the entries belong there.
func mountESP(device, fstype string, booted *bls.OSTreeArg) (*SystemdBoot, error) {
	m, err := mounts.MountDetached(device, fstype, device)
	if err != nil {
		return nil, err
	}
	b, err := New(m.Dir)
	if errors.Is(err, ErrNone) && booted == nil {
		err = fmt.Errorf("%s has no directory %s", device, entriesDir)
	}
	if err == nil && booted != nil {
		err = b.checkBooted(*booted)
	}
	if err != nil {
		return nil, errors.Join(err, m.Close())
	}
	b.mount = m
	return b, nil
}

// checkBooted returns an ErrNone if there is no entry of the booted system.
func (b *SystemdBoot) checkBooted(booted bls.OSTreeArg) error {
	entries, err := b.scanEntries()
	if err == nil && !isAmong(entries, booted) {
		err = fmt.Errorf("%w: %s has no entry of this system", ErrNone, b.esp.Path())
	}
	return err
}

// isAmong reports whether an entry has the kernel and stateroot of the booted system. Another system on the same machine has
// others. The two numbers in ostree= change with each deployment.
func isAmong(entries []entryFile, booted bls.OSTreeArg) bool {
	return slices.ContainsFunc(entries, func(e entryFile) bool {
		arg, err := bls.ParseOSTreeArg(e.ostree())
		return err == nil && arg.Stateroot == booted.Stateroot && arg.BootCsum == booted.BootCsum
	})
}

// CanCount returns nil if the boot loader on the ESP counts boots: it is systemd-boot, and if this is the ESP of the
// running system, no other boot loader has started that. Otherwise the error is an ErrCannotCount with the reason.
func (b *SystemdBoot) CanCount() error {
	if b.startedBy != "" && !strings.HasPrefix(b.startedBy, sdName) {
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

// sdName begins how systemd-boot identifies itself.
const sdName = "systemd-boot "

// sdMagic begins the section .sdmagic of its program.
const sdMagic = "#### LoaderInfo: " + sdName

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

// efiVars is where the variables of the firmware are, by their names and the UUIDs of those who define them.
const efiVars = "/sys/firmware/efi/efivars"

// Variables in which a boot loader tells of itself (https://systemd.io/BOOT_LOADER_INTERFACE/).
const (
	loaderInfo = "LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"           // such as "systemd-boot 252.39"
	loaderPart = "LoaderDevicePartUUID-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f" // the partition that it was started from
)

// startedFrom returns the UUID of the partition from which systemd-boot has started the machine, or "".
func startedFrom(vars string) string {
	uuid := strings.ToLower(readVariable(vars, loaderPart))
	if !strings.HasPrefix(readVariable(vars, loaderInfo), sdName) || !partUUID.MatchString(uuid) {
		return ""
	}
	return uuid
}

// readVariable returns the text of a variable. It returns "" if the boot loader has set none, as most do not, or if it
// cannot be read.
func readVariable(vars, name string) string {
	dir, err := atfs.Open(vars)
	if err != nil {
		return ""
	}
	defer dir.Close()
	data, err := dir.ReadFile(name, 1<<10)
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
