//go:build 386 || arm || mips || mipsle

package atfs

// Sizes of files, limits and offsets are ints in many places.
const _ int = "ostree-snapshotter needs a processor of 64 bits"
