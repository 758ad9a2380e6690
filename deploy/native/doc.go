// Package native reads the ostree commit inside an ostree-native image: one whose lower layers hold the objects of a
// commit below sysroot/ostree/repo, beside the files that containers see. It rebuilds the commit bit by bit from the
// unpacked layers, without their blobs.
//
// [Find] decides by the image's configuration whether there is such a commit, and in which layers. [Read] verifies all
// of its metadata, and that no object is missing; [Base.Store] writes it into a repository. A file's content has the
// layer's owner and mode, and the extended attributes, SELinux labels among them, of a file beside it.
//
// Layers are hostile: sizes, numbers and depths are bounded, and an object is used only if its checksum is its name.
package native
