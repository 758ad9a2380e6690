// Package oscommit makes the ostree commit of an image's tree, in the form that ostree deploys. It knows no containerd: it is
// given the tree of an image and what the image says of itself.
//
// [NewTree] decides what of the image becomes part of the commit, [Tree.Missing] whether it can boot, and
// [Tree.Store] writes it, into the repository that the layers are in or into another one, the sysroot's. Files are not
// read: the commit names the objects that the layers have, and those become part of the other repository by hard links.
// Only where the two are on different file systems is content copied.
package oscommit
