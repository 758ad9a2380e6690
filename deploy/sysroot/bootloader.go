package sysroot

import (
	"context"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/bls"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
)

// A BootEntry is the boot loader entry of one deployment.
type BootEntry struct {
	Name  bls.Name
	Entry *bls.Entry

	file string // its name on the disk, which may express the same in another way
}

// A Bootloader cannot read boot/loader itself, and has its own entries and kernels.
type Bootloader interface {
	// Check is called while a change is planned, and reports what would make Write fail: above all, no room for the
	// files that it lacks. The files in need are the kernels and initramfs images of the planned entries. Their names
	// are paths below /boot, where they need not exist yet. Gone are directories below /boot that Write will be told to
	// do without before it is told of the files.
	Check(ctx context.Context, need []BootFile, gone []string) error
	// Write makes the boot loader offer exactly these entries, the first of them by default. It is called after
	// boot/loader was switched to them durably, and before anything that the old entries need is removed. It is called
	// again after a crash and with every cleanup, so it must be idempotent, and quick if there is nothing to do. Its
	// changes are durable when it returns. boot is /boot, with the kernels and initramfs images of the entries.
	//
	// The tries in the name of an entry are the rest of its boot counting, as far as [Sysroot.Load] knew.
	Write(ctx context.Context, boot *atfs.Dir, entries []BootEntry) error
	// Tries returns the boot counting states of the boot loader's entries, nil for one that does not count, by the
	// values of the kernel argument ostree= in their options: after a crash entries of the same name may differ from
	// those in boot/loader, but not entries with the same ostree=.
	Tries(ctx context.Context) (map[string]*bls.Tries, error)
	// Bless removes the counter from the entry with this value of ostree=, durably: it has booted well. An entry that
	// does not count, or does not exist, is success.
	Bless(ctx context.Context, ostree string) error
}

// A BootFile is a file that a boot loader reads.
type BootFile struct {
	Name string // below /boot
	Size int64
}
