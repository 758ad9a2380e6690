// Package install puts an OS on an empty disk: partitions, file systems, boot loader, sysroot and the first deployment.
//
// A disk is a block device or a file that is the image of one. It gets a GPT with two partitions:
//
//	1  EFI system partition, FAT32: systemd-boot, and a mirror of /boot (package bootloader)
//	2  root, ext4, XFS or Btrfs: the ostree sysroot (package sysroot)
//
// The partition table is written last. Until then the disk has none, whatever happens to the program or the machine: it
// does not boot, no partitions appear, and the next install takes it for empty.
//
// Established programs do the formatting: sfdisk writes the table, mkfs makes the file systems, mtools writes the files
// on FAT. Each partition is a loop device over a part of the disk, so that nothing depends on the kernel's view of the
// partitions, or on when udev makes their nodes. The root file system is mounted detached from the directory tree, for
// this process alone. FAT is never mounted: not every kernel supports it. The contents of the EFI system partition are
// first laid out in a directory of the root file system.
//
// So a killed process leaves no mount and no loop device: the kernel removes both with the last descriptor.
package install
