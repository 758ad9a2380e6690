// Package vm boots disks in qemu, for tests that need a kernel and a boot loader of their own.
//
// A machine has UEFI firmware (OVMF) with its own variables, one virtio disk and a network card. The guest reaches the
// host at 10.0.2.2, which is how it gets to a registry on the host's loopback interface; qemu's own network needs no
// privileges and no device of the host's. (With restrict=on the guest could not reach the host either, so what the host
// can reach, the guest can.)
//
// The first serial line is the console, and goes to a file. The second is for what the host wants to know: the image has
// the files of GuestFiles, of which a unit runs the commands of a boot, prints their output there and powers off. The
// commands reach the guest as a file of qemu's firmware configuration device.
//
// qemu emulates the processor, on one thread of the guest's: of qemu 7.2 it is known that its cmpxchg16b can corrupt the
// flags (hence cx16=off), and that kernels which patch their own code can trip over a second processor. That /dev/kvm
// is there says little (where the host is a virtual machine itself, it may work for some kernels only), so it is used
// only if the environment variable OSTREE_SNAPSHOTTER_TEST_KVM is set.
package vm
