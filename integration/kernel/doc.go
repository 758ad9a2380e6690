// Package kernel runs tests of the snapshotter on a kernel other than the host's: an older one, which mounts composefs
// images in another way and has fs-verity.
package kernel
