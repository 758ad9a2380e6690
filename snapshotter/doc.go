// Package snapshotter implements containerd's snapshotter over layers in an ostree repository.
//
// A committed snapshot is a row in containerd's metadata store: key, parent, and the ID of the layer that it adds to
// its parent. The layer itself is in the layer store (package layer), once, however many snapshots use it. A snapshot
// is mounted over either a hard-link checkout of each layer or one composefs image of all layers.
//
// # On disk
//
//	<root>/metadata.db             core/snapshots/storage: names, parents, labels, usage
//	<root>/snapshots/<n>/          of an active snapshot, and of a view without parent; n is its ID in metadata.db
//	    fs/                        upper directory
//	    work/                      work directory; only active snapshots have one
//	    layer                      ID of the layer that was applied to the snapshot, or with which it is staged
//	    staged                     empty; exists if the snapshot is staged
//	    usage                      bytes and inodes that this layer added to the store
//	    blob                       ID of that layer, and digest of the blob it was unpacked from
//	<root>/rootfs/<hash>/          of a chain of layers, with composefs: its image and the image's mount points; see ADR 0008
//	<root>/mounts/<n>              mount point of an active snapshot, with composefs
//	<root>/lost/<n>-*              directory with content of a snapshot whose row was lost with metadata.db
//	<root>/tmp/snapshot-*          directories being created or removed
//
// The file layer adds a layer to an active snapshot without writing to its upper directory: the differ imports the
// layer and calls [Snapshotter.AddLayer], and Commit moves the layer's ID from the file to the row. An upper directory
// that was written to through the mounts becomes a layer at Commit.
//
// # Order of writes
//
// A directory is complete in tmp/ before it is renamed to snapshots/<n>, inside the transaction that creates its row. A
// layer is in the store, and held there, until the file or the row that needs it is written. [Snapshotter.Live] reads
// the files before the rows, so it never misses a layer on its way from one to the other. A row is deleted before its
// directory. A crash can leave a directory without a row, or one whose row is committed: the next start and Cleanup
// sweep both.
package snapshotter
