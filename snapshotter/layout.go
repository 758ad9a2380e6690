package snapshotter

import (
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
)

// Names that a [Snapshotter] uses below its root, besides those of the layer store.
const (
	MetadataFile = "metadata.db"          // rows of containerd's storage package; see [CheckMetadata]
	MetadataCopy = MetadataFile + ".copy" // replaces it when it is lost
	SnapshotsDir = "snapshots"            // directories of active snapshots, by ID
	MountsDir    = "mounts"               // mount points of active snapshots, by ID; with composefs
	EmptyDir     = "empty"                // stays empty: a second lower directory for overlays of one layer
	LostDir      = "lost"                 // directories with content of snapshots whose rows were lost
)

// Names in the directory of a snapshot.
const (
	upperDir = "fs"
	workDir  = "work"

	// AppliedFile holds the ID of the layer that was applied to the snapshot, or with which it is staged; see
	// [AppliedLayers].
	AppliedFile = "layer"

	stagedMark = "staged" // empty; exists if the snapshot was created with its layer, and is mounted read-only
	usageFile  = "usage"
	blobFile   = "blob"

	smallFile = 256 // maximum size of these files
)

const (
	dirMode  = 0o700
	fileMode = 0o600
)

// Dirs returns the directories that a [Snapshotter] keeps below its root, by name, with the type and mode that it creates
// them with. Only SnapshotsDir, EmptyDir and layer.TmpDir, which it shares with the layer store, always exist.
func Dirs() map[string]uint32 {
	const mode = unix.S_IFDIR | dirMode
	return map[string]uint32{SnapshotsDir: mode, MountsDir: mode, EmptyDir: mode, LostDir: mode, layer.TmpDir: mode}
}

// Files returns the files that a [Snapshotter] keeps directly below its root, by name, with their type and mode.
func Files() map[string]uint32 {
	const mode = unix.S_IFREG | fileMode
	return map[string]uint32{MetadataFile: mode, MetadataCopy: mode}
}
