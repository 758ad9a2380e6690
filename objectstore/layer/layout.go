package layer

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
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

// errNoOwner means that the directory of a layer's checkouts does not name the layer, as after a power failure.
var errNoOwner = fmt.Errorf("directory does not name its layer: %w", objectstore.ErrCorrupt)

// CheckoutOwner returns the ID of the layer whose checkouts are in the directory dir below LayersDir. If the directory
// does not name it, as after a power failure, the error is an ErrCorrupt.
func (s *Store) CheckoutOwner(dir string) (objectstore.Checksum, error) {
	b, err := s.layers.ReadFile(path.Join(dir, commitFile), 128)
	if err == nil {
		var id objectstore.Checksum
		if id, err = objectstore.ParseChecksum(strings.TrimSuffix(string(b), "\n")); err == nil {
			return id, nil
		}
	} else if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.EFBIG) {
		return objectstore.Checksum{}, err
	}
	return objectstore.Checksum{}, fmt.Errorf("%s/%s: %w", LayersDir, dir, errNoOwner)
}

// writeOwner records the layer whose checkouts are in a directory.
func writeOwner(dir *atfs.Dir, name string, id objectstore.Checksum) error {
	return dir.WriteFile(path.Join(name, commitFile), []byte(id.String()+"\n"), 0o600, false)
}
