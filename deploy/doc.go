// Package deploy makes bootable deployments of images. It knows no containerd: it is given the tree of an image and what
// the image says of itself.
//
// Until now it makes the OS commit: an ostree commit of the tree that an image's layers show together, in the form that
// ostree deploys. [NewTree] decides what of the image becomes part of it, [Tree.Missing] whether it can boot, and
// [Tree.Store] writes it, into the repository that the layers are in or into another one, the sysroot's. Files are not
// read: the commit names the objects that the layers have, and those become part of the other repository by hard links.
// Only where the two are on different file systems is content copied.
package deploy
