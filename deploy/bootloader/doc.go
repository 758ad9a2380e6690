// Package bootloader serves boot loaders that cannot read /boot/loader of an ostree sysroot themselves.
//
// There is one: systemd-boot. It reads FAT alone, where there are neither the links that libostree makes in /boot nor an
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
// What of loader/entries and ostree has names of another form is somebody else's, and stays.
//
// [SystemdBoot.Write] brings the mirror up to date. Its order makes every state in between one that boots, and each entry
// one whose files are complete:
//
//  1. What nothing refers to is removed, for there to be room.
//  2. Kernels and initramfs images that are missing are copied, each under a temporary name, synced, and renamed.
//  3. Entries are written the same way, the default one last: until then the machine boots what it booted before.
//  4. Entries that are not wanted any more are removed, then the kernels that no entry names.
//
// Every step is durable before the next one begins. Names are compared without regard to case, as FAT does.
//
// # Which entry is booted
//
// systemd-boot 252 sorts entries that have no tries left behind all others, then those without a sort-key, as libostree's
// are, by their file names, the highest version first; numbers in a name count as numbers. The names
// ostree-<n>[-<stateroot>].conf, where the default entry has the highest n, are made for this.
//
// # Boot counting
//
// An entry that is to prove itself is called <stem>+<left>.conf. Before systemd-boot starts it, it renames it to
// <stem>+<left-1>-<done+1>.conf, and at +0-<done> prefers every other one. After a good boot systemd-bless-boot, or
// [SystemdBoot.Bless], takes the counter away. All of it is described at
// https://uapi-group.org/specifications/specs/boot_loader_specification/#boot-counting.
package bootloader
