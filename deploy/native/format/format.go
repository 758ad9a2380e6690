// Package format holds what readers and writers of ostree-native images agree on: the labels, and the repository in the layers.
package format

import (
	"crypto/sha256"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// Labels of an image's configuration.
const (
	LabelCommit   = "ostree.commit"       // the commit's checksum
	LabelFinal    = "ostree.final-diffid" // diff ID of the last layer that has objects of the commit
	LabelBootable = "ostree.bootable"     // true or false, from the commit's metadata, as is the next
	LabelLinux    = "ostree.linux"        // version of the kernel
	LabelBootc    = "containers.bootc"    // beside LabelBootable, whatever its value
)

// Components is the annotation of a layer that lists what the files in it belong to.
const Components = "ostree.components"

// Limits of single objects in layers, in bytes. All importers of ostree-native images have them.
const (
	MaxMetadata = 10 << 20
	MaxXattrs   = 1 << 20
)

// The repository in a layer.
const (
	RepoDir    = "sysroot/ostree/repo"
	ConfigName = "config"
	ObjectsDir = "objects"
	RepoMode   = "bare-split-xattrs"
)

// ObjectPath returns the path of an object in a layer.
func ObjectPath(sum objectstore.Checksum, t objectstore.ObjectType) string {
	return RepoDir + "/" + ObjectsDir + "/" + objectstore.LoosePath(sum, t)
}

// EmptyTree is the dirtree of an empty directory. Builders leave out everything below /sysroot, and so this one where no other
// directory is empty.
var EmptyTree = func() objectstore.ObjectName {
	data, err := (&objectstore.DirTree{}).Marshal()
	if err != nil {
		panic(err)
	}
	return objectstore.ObjectName{Type: objectstore.TypeDirTree, Checksum: sha256.Sum256(data)}
}()
