// Package encapsulate writes an ostree commit as an OCI image, in the format of ostree-ext and rpm-ostree, for tests of its
// readers, and of the program's own writer, deploy/native/encapsulate, whose layers have to be the same bytes. It calls none
// of them, so that no mistake is on both sides; it shares the parsers of commits, directories and xattrs.
//
// Layer 0 has the metadata objects, and any number of further layers, the chunks, have the content objects. Each layer is a
// list of objects below sysroot/ostree/repo, and at the same time a root file system of hard links to them.
//
// [Example] is a commit that the first builder made, in format V0, from before there were chunks.
package encapsulate
