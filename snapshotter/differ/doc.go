// Package differ is containerd's differ for snapshots of package snapshotter.
//
// It applies a layer to an active snapshot without writing a file there: the layer goes into the layer store, and the
// snapshot is told which one it has. A blob that was unpacked before is not unpacked again. Layers for anybody else's
// snapshots, and of kinds that it does not know, are left to other differs with errdefs.ErrNotImplemented.
//
// Nothing in a descriptor or a blob is trusted. A layer is accepted when the decompressor has ended without complaint
// and the digest of the compressed bytes is the descriptor's; until then nothing refers to it. The digest of the
// uncompressed bytes is returned, and containerd compares it with the image's.
package differ
