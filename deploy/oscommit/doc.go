// Package oscommit makes the ostree commit of an image's tree, in the form that ostree deploys. It knows nothing of
// containerd: callers pass the image's tree, manifest and configuration.
//
// [NewTree] decides which files of the image become part of the commit, [Tree.Missing] whether it can boot, and
// [Tree.Store] writes it, into the repository that holds the layers or into another one, the sysroot's. Files are not
// read: the commit names the layers' objects, which become part of the other repository by hard links. Content is
// copied only between file systems.
//
// [Tree.Label] gives the files SELinux labels. A label is part of an object, so files need objects of their own then. Their
// content is read, and shares the blocks of the layers' objects (reflinks) or is copied.
package oscommit
