// Package encapsulate writes ostree commits as ostree-native images, in the format of ostree-ext and rpm-ostree with their
// format versions 1 and 2, byte for byte.
//
// [Read] verifies a commit's metadata and lists its files. A [Plan] says which files go into which layer, and
// [Commit.Layers] returns the layers, which write their tars. [Commit.Image] describes them, and [Commit.Write] writes it all.
// All are pure functions of an ostree repository: equal commits give equal images on every machine.
//
// The lowest layer has the metadata objects and all files that the plan leaves; each further layer, a chunk, has content
// objects only. Each layer is a list of objects below sysroot/ostree/repo, and at the same time a root file system of hard
// links to them, in which usr/etc is etc.
//
// A repository is not trusted more than its checksums: a content object whose bytes are not those that it is named after ends
// the layer with an error, and what an importer would refuse is refused here.
package encapsulate
