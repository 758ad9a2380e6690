// Package layer stores OCI layers in an ostree repository.
//
// A layer is one tar of an image, or one upper directory of an overlay mount, independent of the layers below. The
// store holds it as an ostree commit, the layer commit, with this tree:
//
//	image            the layer image: an EROFS image in composefs form (package composefs)
//	tar              the recipe: everything in the tar but the content of its files
//	objects/<sum>    every content object the layer uses, named by its checksum
//
// The layer image has one inode for each entry of the layer, with everything that an ostree commit cannot express:
// times, devices, fifos, sockets, hard links, whiteouts (character device 0:0) and opaque directories
// (trusted.overlay.opaque=y). Regular files with content carry the path of their object; empty files and symbolic links
// are only in the image. The objects directory keeps the objects alive for ostree prune, and lets ostree pull transfer
// the layer.
//
// The layer commit has timestamp 0 and names no blob, parent or time, so it is a pure function of the tar: its checksum
// is the layer ID. Its metadata are oci.diff-id, oci.entries, oci.bytes, oci.tar-bytes and oci.unresolved. From recipe
// and objects, [Store.WriteTar] writes the tar again, byte for byte.
//
// Two things in a tar depend on more than the tar: directories that it implies but has no entry for, which have the
// attributes of the directory below, and hard links to files of a lower layer. The image carries both unresolved, with
// a mark (trusted.ostree.implicit, trusted.ostree.hardlink). A checkout resolves them against the layers below, and its
// name depends on the result.
//
// # On disk
//
//	<root>/repo/                             the ostree repository
//	    refs/heads/oci/diff/<hex>            diff ID -> layer commit
//	    refs/heads/oci/blob/<hex>            digest of a compressed blob -> the same layer commit
//	    refs/heads/oci/snapshot/<name>       layer of a directory, which has no diff ID
//	<root>/layers/<first 16 hex of the ID>/
//	    commit                               the whole ID
//	    fs/                                  checkout: hard links into the repository
//	    fs-<16 hex>/                         checkout of a layer with entries that the layers below resolve
//	<root>/journal/                          layers that may not be on the disk yet
//	<root>/tmp/                              unfinished checkouts; swept when the store is opened
//
// # Locks and garbage
//
// Methods that make or find a layer return it [Held]: the repository's shared lock is held until Release, so that
// pruning, which takes the exclusive lock, cannot remove the layer before the caller has recorded its need for it.
// Writing is ordered: objects, image, commit, then refs. A crash leaves garbage that a prune finds, never a ref to
// something incomplete.
//
// # Power failures
//
// Nothing is fsynced except, with Options.Journal, a file in journal/ for each layer before its refs are written: it
// lists those objects of the layer that may not be on the disk. A background sync clears it. After a stop without
// warning, [Store.Recover] checks the listed objects; see docs/design/durability.md.
package layer
