// Package containerd is everything that is asked of containerd, by the daemon and by the commands: its version, its
// content store, its images. Nothing else of the project connects to it.
//
// What is read of an image is bounded, and compared with its digest.
package containerd
