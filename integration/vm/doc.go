// Package vm boots disks in qemu, for tests that need their own kernel and boot loader.
//
// A machine has UEFI firmware (OVMF) with its own variables, one virtio disk and a network card. The guest reaches the
// host at 10.0.2.2, and so a registry on the host's loopback interface. qemu's user network needs no privileges and no
// device of the host. (With restrict=on the guest could not reach the host either, so the guest can reach everything
// that the host can.)
//
// The first serial line is the console, which goes to a file. The second carries messages for the host: the image has
// the files of GuestFiles, with a unit that runs the commands of a boot, prints their output there and powers off. The
// commands reach the guest as a file of qemu's firmware configuration device.
//
// qemu emulates the processor, on one thread of the guest. In qemu 7.2, cmpxchg16b can corrupt the flags (hence
// cx16=off), and kernels that patch their own code can crash with a second processor. Three features would cost time:
// if the processor claims to copy bytes fast (erms and fsrm), kernels have it copy bytes, which qemu does one by one;
// with smap, each access of the kernel to the memory of a process ends a block of translated code. The presence of
// /dev/kvm says little: on a host that is itself a virtual machine it may work for some kernels only. It is used only
// if the environment variable OSTREE_SNAPSHOTTER_TEST_KVM is set.
package vm
