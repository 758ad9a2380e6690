// Package boot tests deployments with a kernel and a boot loader. It installs an image on a disk that qemu boots, and
// deploys new versions from inside.
//
// It is a separate package so that it runs beside the other integration tests: emulated, a boot takes half a minute.
package boot
