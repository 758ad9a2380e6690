// Package differ is containerd's differ for snapshots of package snapshotter.
//
// It applies a layer to an active snapshot without writing files there: it imports the layer into the layer store, and
// records in the snapshot which layer it has. A blob that was unpacked before is not unpacked again. For snapshots of
// other snapshotters it returns errdefs.ErrNotImplemented, so that containerd tries another differ.
//
// Blobs are verified as package blob describes. Apply returns the digest of the tar, which containerd compares with the
// image's diff ID.
package differ
