// Package boot tests deployments with a kernel and a boot loader: an image is installed on a disk, which qemu boots, and
// new versions are deployed from inside.
//
// It is a package of its own so that it runs beside the other integration tests: a boot takes half a minute by emulation.
package boot
