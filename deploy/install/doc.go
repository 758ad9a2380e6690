// Package install puts an OS on an empty disk: partitions, file systems, boot loader, sysroot and the first deployment.
//
// A disk is a block device or a file that is the image of one. It gets a GPT with two partitions:
//
//	1  EFI system partition, FAT32: systemd-boot, and a mirror of /boot (package bootloader)
//	2  root, ext4, XFS or Btrfs: the ostree sysroot (package sysroot)
//
// The partition table is written last. Until then the disk has none, whatever happens to the program or to the machine: it
// does not boot, no partitions appear, and the next install takes it for empty.
//
// Programs make what they are known to make right: sfdisk the table, mkfs the file systems, mtools the files on FAT. Each
// partition is a loop device over a part of the disk, so that nothing depends on the kernel's idea of the partitions, nor on
// when udev has made nodes for them. The root file system is mounted without a place in the tree of directories, and only
// this process has it. FAT is never mounted: not every kernel has it. What is to be on the EFI system partition is first laid
// out in a directory of the root file system.
//
// So a process that is killed leaves no mount and no loop device: the kernel takes both away with its last descriptor.
package install
