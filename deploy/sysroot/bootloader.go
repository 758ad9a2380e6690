package sysroot

import (
	"context"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/bls"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
)

// A BootEntry is what boot/loader/entries has for one deployment.
type BootEntry struct {
	Name  bls.Name
	Entry *bls.Entry

	file string // its name on the disk, which says the same in a different way perhaps
}

// A Bootloader is one that cannot read boot/loader itself and has entries and kernels of its own instead.
type Bootloader interface {
	// Check is asked while a change is planned, and says what would keep Write from working: no room for the files that it
	// does not have yet, above all. The files of need are the kernels and initramfs images of the entries to be: name is
	// the path below /boot, which need not be there yet.
	Check(ctx context.Context, need []BootFile) error
	// Write makes the boot loader offer exactly these entries, the first of them by default. It is called after
	// boot/loader was switched to them and that is durable, and before anything that the entries of before need is
	// removed; again after a crash and whenever something is cleaned up, so it must be idempotent, and quick if there is
	// nothing to do. When it returns, what it did is durable. boot is /boot, where the kernels and initramfs images that
	// the entries name are.
	//
	// The tries in the name of an entry are what is left of its boot counting, as far as [Sysroot.Load] could know.
	Write(ctx context.Context, boot *atfs.Dir, entries []BootEntry) error
	// Tries returns the boot counting states of the entries that the boot loader has, nil for one that does not count, by
	// the values of the kernel argument ostree= in their options: after a crash entries of the same name may differ from
	// those in boot/loader, but not entries of the same ostree=.
	Tries(ctx context.Context) (map[string]*bls.Tries, error)
	// Bless takes the counter from the entry with this value of ostree=, durably: it has booted well. One that does not
	// count, or is not there, is success.
	Bless(ctx context.Context, ostree string) error
}

// A BootFile is a file that a boot loader reads.
type BootFile struct {
	Name string // below /boot
	Size int64
}
