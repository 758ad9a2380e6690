package install

import (
	"fmt"
	"strings"

	"github.com/dustin/go-humanize"
)

const mib = 1 << 20

// alignment is the alignment of partitions. The table occupies the space before the first and after the last.
const alignment = mib

// Sizes of the EFI system partition. The default has room for five kernels with a generic initramfs of 90 MB. FAT32 has
// at least 65525 clusters, none smaller than a sector.
const (
	DefaultESPSize = 512 * mib
	minESPSize     = 34 * mib
	minESPSize4K   = 260 * mib
)

// minRootSize is the minimum of mkfs.xfs.
const minRootSize = 300 * mib

// Types of GPT partitions (https://uapi-group.org/specifications/specs/discoverable_partitions_specification/).
const espType = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"

// An arch is a processor architecture with UEFI.
type arch struct {
	rootType string
	efi      string // as in the names of EFI programs
}

// arches are the architectures by their names in Go.
var arches = map[string]arch{
	"amd64": {rootType: "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709", efi: "x64"},
	"arm64": {rootType: "B921B045-1DF0-41C3-AF44-4C6F280D3FAE", efi: "aa64"},
}

// A Partition is a part of a disk.
type Partition struct {
	Name        string // in the partition table
	UUID        string // in the partition table
	Type        string // GUID
	Filesystem  string
	Label       string // of the file system
	Start, Size int64  // bytes
}

// layout divides a disk into ESP and root.
func layout(disk, sector, esp int64, fstype string, a arch) ([]Partition, error) {
	smallest := int64(minESPSize)
	if sector > 512 {
		smallest = minESPSize4K
	}
	esp = roundUp(esp)
	if esp < smallest {
		return nil, fmt.Errorf("EFI system partition of %s: FAT32 needs %s or more", human(esp), human(smallest))
	}
	start := alignment + esp
	end := disk/alignment*alignment - alignment
	if end-start < minRootSize {
		return nil, fmt.Errorf("disk of %s is too small: needs %s or more", human(disk), human(start+minRootSize+alignment))
	}
	return []Partition{
		{Name: "esp", UUID: newUUID(), Type: espType, Filesystem: "vfat", Label: "ESP", Start: alignment, Size: esp},
		{Name: "root", UUID: newUUID(), Type: a.rootType, Filesystem: fstype, Label: "root", Start: start, Size: end - start},
	}, nil
}

func roundUp(n int64) int64 { return (n + alignment - 1) / alignment * alignment }

// sfdiskScript describes a table with these partitions to sfdisk(8).
func sfdiskScript(parts []Partition, sector int64) string {
	var b strings.Builder
	b.WriteString("label: gpt\nunit: sectors\n")
	fmt.Fprintf(&b, "first-lba: %d\n", alignment/sector)
	for _, p := range parts {
		fmt.Fprintf(&b, "start=%d, size=%d, type=%s, uuid=%s, name=%s\n", p.Start/sector, p.Size/sector, p.Type, p.UUID, p.Name)
	}
	return b.String()
}

// mkfs returns the command that makes a file system, without the device, and its Debian package.
func mkfs(fstype, label, uuid string) (command []string, debian string, err error) {
	switch fstype {
	case "vfat":
		return []string{"mkfs.vfat", "-F", "32", "-n", label}, "dosfstools", nil
	case "ext4": // verity: so that files can be sealed later
		return []string{"mkfs.ext4", "-q", "-F", "-O", "verity", "-L", label, "-U", uuid}, "e2fsprogs", nil
	case "xfs":
		return []string{"mkfs.xfs", "-q", "-f", "-L", label, "-m", "uuid=" + uuid}, "xfsprogs", nil
	case "btrfs":
		return []string{"mkfs.btrfs", "-q", "-f", "-L", label, "-U", uuid}, "btrfs-progs", nil
	}
	return nil, "", fmt.Errorf("no program is known for the file system %q", fstype)
}

// Filesystems are the choices for the root partition.
var Filesystems = []string{"ext4", "xfs", "btrfs"}

func human(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }
