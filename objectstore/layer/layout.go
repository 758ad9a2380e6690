package layer

import (
	"fmt"
	"path"
	"strings"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// Names of the directories that a [Store] keeps below its root.
const (
	LayersDir  = "layers"  // checkouts of layers, below their [CheckoutDir]
	RootfsDir  = "rootfs"  // composefs images of chains, see [Store.RootfsName]
	JournalDir = "journal" // layers that may not be on the disk yet
	TmpDir     = "tmp"     // unfinished files and files to remove; packages that share the root use their own prefixes
)

// Refs of layers. All are below RefPrefix.
const (
	RefPrefix = "oci"

	refDiff     = RefPrefix + "/diff/"     // + diff ID, without the algorithm
	refBlob     = RefPrefix + "/blob/"     // + digest of a blob that unpacks to the layer
	refSnapshot = RefPrefix + "/snapshot/" // + ID of a snapshot
)

// ParseRef returns the diff ID or the blob digest in a ref's name, and "" for the other.
func ParseRef(ref string) (diffID, blob digest.Digest) {
	if s, ok := strings.CutPrefix(ref, refDiff); ok {
		return digest.NewDigestFromEncoded(digest.SHA256, s), ""
	}
	if s, ok := strings.CutPrefix(ref, refBlob); ok {
		return "", digest.NewDigestFromEncoded(digest.SHA256, s)
	}
	return "", ""
}

const dirMode = 0o700

// Dirs returns the directories that a [Store] keeps below its root, by name, with the type and mode it creates them
// with. Only LayersDir, JournalDir and TmpDir always exist.
func Dirs() map[string]uint32 {
	const mode = unix.S_IFDIR | dirMode
	return map[string]uint32{LayersDir: mode, RootfsDir: mode, JournalDir: mode, TmpDir: mode}
}

// CheckoutDir returns the name below LayersDir of the directory for checkouts of a layer. Layers whose IDs have the
// same beginning share it: the store then rejects the second one.
func CheckoutDir(id objectstore.Checksum) string { return id.String()[:shortID] }

// CheckoutOwner returns the ID of the layer whose checkouts are in the directory dir below LayersDir.
func (s *Store) CheckoutOwner(dir string) (objectstore.Checksum, error) {
	owner, err := s.readOwner(dir)
	if err != nil {
		return objectstore.Checksum{}, err
	}
	id, err := objectstore.ParseChecksum(owner)
	if err != nil {
		return id, fmt.Errorf("read owner of %s/%s: %w", LayersDir, dir, err)
	}
	return id, nil
}

func (s *Store) readOwner(dir string) (string, error) {
	b, err := s.layers.ReadFile(path.Join(dir, commitFile), 128)
	return strings.TrimSpace(string(b)), err
}
