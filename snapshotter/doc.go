// Package snapshotter is containerd's snapshotter over layers that are kept in an ostree repository.
//
// A committed snapshot is a row in containerd's metadata store: key, parent, and the ID of the layer that it adds to
// its parent. The layer itself is in the layer store (package layer), once, however many snapshots have it. What a
// snapshot is mounted over is either a checkout of each layer, made of hard links, or one composefs image of all of them.
//
// # On disk
//
//	<root>/metadata.db             core/snapshots/storage: names, parents, labels, usage
//	<root>/snapshots/<n>/          of an active snapshot, and of a view without parent; n is its ID in metadata.db
//	    fs/                        upper directory
//	    work/                      work directory; an active snapshot has one
//	    layer                      ID of the layer that was applied to it, or with which it is staged
//	    usage                      bytes and inodes that this layer added to the store
//	    blob                       that layer again, and the digest of the blob it was unpacked from
//	<root>/rootfs/<hash>/          of a chain of layers, with composefs: its image and where that is mounted; see ADR 0008
//	<root>/mounts/<n>              where an active snapshot is mounted, with composefs
//	<root>/tmp/snapshot-*          directories on their way in or out
//
// The file layer is how a layer reaches an active snapshot without any file being written to its upper directory: the
// differ imports the layer and calls [Snapshotter.AddLayer], and Commit moves the layer's ID from the file to the row.
// An upper directory that somebody wrote to, through the mounts, becomes a layer at Commit.
//
// # Order of writes
//
// A directory is complete in tmp/ before it is renamed to snapshots/<n>, inside the transaction that makes its row. A
// layer is in the store, and held there, until the file or the row that needs it is written; [Snapshotter.Live] reads
// the files before the rows, so that a layer on its way from one to the other is never missed. A row goes before its
// directory does. What a crash leaves behind is a directory without a row, or one whose row is committed: both are
// swept at the next start, and by Cleanup.
package snapshotter
