// Package layer keeps OCI layers in an ostree repository.
//
// A layer is one tar of an image, or one upper directory of an overlay mount, independent of what lies below it. The
// store holds it as an ostree commit, the layer commit, whose tree is
//
//	image            the layer image: an EROFS image in composefs form (package composefs)
//	tar              the recipe: what the tar has beside the content of its files
//	objects/<sum>    every content object the layer uses, named by its checksum
//
// The layer image has one inode for each entry of the layer, with everything that an ostree commit cannot say: times,
// devices, fifos, sockets, hard links, whiteouts (character device 0:0) and opaque directories
// (trusted.overlay.opaque=y). Regular files with content carry the path of their object; empty files and symbolic links
// are in the image alone. The objects directory keeps the objects alive for ostree prune, and makes the layer something
// that ostree pull can carry.
//
// The layer commit has timestamp 0 and names no blob, parent or time, so it is a pure function of the tar: its checksum
// is the layer ID. Its metadata are oci.diff-id, oci.entries, oci.bytes, oci.tar-bytes and oci.unresolved. With recipe and
// objects, the tar can be written again, byte for byte: [Store.WriteTar].
//
// Two things in a tar are not a function of the tar alone: directories that it implies but has no entry for, whose
// attributes are those of the directory below, and hard links to files of a lower layer. The image carries both as they
// are, marked (trusted.ostree.implicit, trusted.ostree.hardlink); a checkout resolves them against the layers below and
// is then named for what it resolved them to.
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
//	<root>/tmp/                              checkouts being made; swept when the store is opened
//
// # Locks and garbage
//
// Whatever makes or finds a layer returns it [Held]: the repository's shared lock is held until Release, so that
// pruning, which takes the exclusive lock, cannot take the layer before the caller has recorded that it needs it.
// Writing is ordered: objects, image, commit, then refs; a crash leaves garbage that a prune finds, never a ref to
// something incomplete.
//
// # Power failures
//
// Nothing is fsynced but, with Options.Journal, a file in journal/ for each layer, before its refs are written: it lists
// what of the layer is not known to be on the disk. A sync in the background clears it. [Store.Recover] checks what is
// listed after a stop without warning; see docs/design/durability.md.
package layer
