// Package bootloader serves boot loaders that cannot read /boot/loader of an ostree sysroot themselves.
//
// There is one: systemd-boot. It reads only FAT, which has neither the links that libostree makes in /boot nor an
// atomic exchange of directories. So the EFI system partition has a mirror of /boot:
//
//	EFI/systemd/systemd-bootx64.efi   ┐
//	EFI/BOOT/BOOTX64.EFI              │ written once, by package install; never touched here
//	loader/loader.conf                ┘
//	loader/entries/ostree-2-os+3.conf     the entries of /boot/loader/entries, under the same names
//	loader/entries/ostree-1-os.conf
//	ostree/os-<bootcsum>/vmlinuz-<kver>   the kernels and initramfs images that they name, under the same paths
//	ostree/os-<bootcsum>/initramfs-<kver>.img
//
// Files of loader/entries and ostree with names of another form belong to others, and stay.
//
// [SystemdBoot.Write] updates the mirror. Its order makes every intermediate state bootable, and the files of every
// entry complete:
//
//  1. Unreferenced files are removed, to make room.
//  2. Missing kernels and initramfs images are copied, each under a temporary name, synced, and renamed.
//  3. Entries are written the same way, the default one last: until then the machine boots as before.
//  4. Entries that are no longer wanted are removed, then the kernels that no entry names.
//
// Every step is durable before the next one begins. Names are compared without regard to case, as on FAT.
//
// # Which entry is booted
//
// systemd-boot 252 sorts entries without tries left behind all others, then those without a sort-key, such as
// libostree's, by their file names, the highest version first. Numbers in a name compare as numbers. The names
// ostree-<n>[-<stateroot>].conf, where the default entry has the highest n, are made for this.
//
// # Boot counting
//
// An entry that has to prove itself is named <stem>+<left>.conf. Before systemd-boot starts it, it renames it to
// <stem>+<left-1>-<done+1>.conf. At +0-<done> it prefers every other entry. After a good boot systemd-bless-boot, or
// [SystemdBoot.Bless], removes the counter. See
// https://uapi-group.org/specifications/specs/boot_loader_specification/#boot-counting.
package bootloader
