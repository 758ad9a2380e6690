package snapshotter

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
)

const (
	tmpPrefix = "snapshot-"
	newPrefix = tmpPrefix + "new-"
	oldPrefix = tmpPrefix + "old-"
)

// A newDirectory is the directory of a snapshot being created.
type newDirectory struct {
	kind     snapshots.Kind
	parent   bool
	staged   *layer.Held // nil if the snapshot is not staged
	uid, gid uint32      // of the upper directory
}

// directory returns the result of reading the directory after it was moved into place.
func (n newDirectory) directory(id string) directory {
	d := directory{id: id}
	if n.staged != nil {
		d.layer, d.staged = n.staged.ID, true
	}
	return d
}

// empty reports whether the snapshot needs no directory at all.
func (n newDirectory) empty() bool { return n.kind == snapshots.KindView && n.parent }

// makeDirectory creates a snapshot's directory in tmp/ and returns its name there.
func (s *Snapshotter) makeDirectory(n newDirectory) (string, error) {
	name := newPrefix + rand.Text()
	if n.empty() {
		return name, nil
	}
	if err := s.fillDirectory(name, n); err != nil {
		return "", errors.Join(err, s.sweepNew(name))
	}
	return name, nil
}

// sweepNew removes a directory created by makeDirectory, if it exists. It renames it to that of an old one first: if
// removing it fails, for want of a file descriptor say, Cleanup does so.
func (s *Snapshotter) sweepNew(name string) error {
	old := oldPrefix + strings.TrimPrefix(name, newPrefix)
	if err := s.tmp.Rename(name, s.tmp, old, 0); err != nil {
		return atfs.IgnoreNotExist(err)
	}
	return s.tmp.RemoveAll(old)
}

func (s *Snapshotter) fillDirectory(name string, n newDirectory) (err error) {
	if err := s.tmp.Mkdir(name, dirMode); err != nil {
		return err
	}
	dir, err := s.tmp.OpenDir(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	if err := dir.Mkdir(upperDir, 0o755); err != nil {
		return err
	}
	if n.uid != 0 || n.gid != 0 {
		if err := dir.Chown(upperDir, n.uid, n.gid); err != nil {
			return err
		}
	}
	if n.kind != snapshots.KindActive {
		return nil
	}
	if err := dir.Mkdir(workDir, 0o711); err != nil {
		return err
	}
	if n.staged == nil {
		return nil
	}
	if err := dir.WriteFile(stagedMark, nil, fileMode, false); err != nil {
		return err
	}
	return dir.WriteFile(AppliedFile, []byte(n.staged.ID.String()+"\n"), fileMode, false)
}

// A directory holds the contents of the files beside the upper directory of an active snapshot.
type directory struct {
	id     string
	layer  objectstore.Checksum // zero if none was applied
	blob   digest.Digest        // that it was unpacked from; "" if unknown
	usage  layer.Usage          // that this layer added to the store; zero if unknown
	staged bool                 // the snapshot was created with its layer, and is mounted read-only
}

// readDirectory reads them. A missing directory is an errdefs.ErrDataLoss, since its row exists.
func (s *Snapshotter) readDirectory(id string) (directory, error) {
	d := directory{id: id}
	if ok, err := s.snaps.Exists(path.Join(id, workDir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return d, err
	} else if !ok {
		return d, fmt.Errorf("directory %s/%s is missing, remove the snapshot: %w", SnapshotsDir, id, errdefs.ErrDataLoss)
	}
	var err error
	if d.layer, err = readApplied(s.snaps, id); err != nil || d.layer.IsZero() {
		return d, err
	}
	if d.staged, err = s.snaps.Exists(path.Join(id, stagedMark)); err != nil {
		return d, err
	}
	if d.blob, err = s.readBlob(id, d.layer); err != nil {
		return d, err
	}
	d.usage, err = readUsage(s.snaps, id)
	return d, err
}

// readUsage returns what the layer in a snapshot's directory added to the store. A file that is missing or damaged, as
// after a power failure, is no use of space: the layer itself is not in doubt.
func readUsage(snaps *atfs.Dir, id string) (layer.Usage, error) {
	b, err := readSmall(snaps, id, usageFile)
	if err != nil && !errdefs.IsDataLoss(err) {
		return layer.Usage{}, err
	}
	var u layer.Usage
	if _, err := fmt.Sscanf(string(b), "%d %d\n", &u.Bytes, &u.Inodes); err != nil || u.Bytes < 0 || u.Inodes < 0 {
		return layer.Usage{}, nil //nolint:nilerr // it is lost
	}
	return u, nil
}

// AppliedLayers returns, by snapshot ID, the layers that were applied to the active snapshots below root, or with which
// they are staged. No row names them before Commit. Snapshots whose file AppliedFile names no layer, as after a power
// failure, are in damaged instead, each with an errdefs.ErrDataLoss.
//
// A commit moves a layer from the directory to the row: callers that need both must read the directories first.
func AppliedLayers(root *atfs.Dir) (layers map[string]objectstore.Checksum, damaged map[string]error, err error) {
	snaps, err := root.OpenDir(SnapshotsDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	layers, damaged, err = appliedLayers(snaps)
	return layers, damaged, errors.Join(err, snaps.Close())
}

func appliedLayers(snaps *atfs.Dir) (layers map[string]objectstore.Checksum, damaged map[string]error, err error) {
	names, err := snaps.ReadNames()
	if err != nil {
		return nil, nil, err
	}
	layers, damaged = make(map[string]objectstore.Checksum), make(map[string]error)
	for _, id := range names {
		sum, err := readApplied(snaps, id)
		switch {
		case errdefs.IsDataLoss(err):
			damaged[id] = err
		case err != nil:
			return nil, nil, err
		case !sum.IsZero():
			layers[id] = sum
		}
	}
	return layers, damaged, nil
}

// readApplied returns the layer in a snapshot's directory, zero if there is no layer or no directory. A file that names
// no layer, as after a power failure, is an errdefs.ErrDataLoss. So is a staged snapshot without the file: it was created
// with one.
func readApplied(snaps *atfs.Dir, id string) (objectstore.Checksum, error) {
	b, err := readSmall(snaps, id, AppliedFile)
	if err != nil {
		return objectstore.Checksum{}, err
	}
	if b == nil {
		staged, err := snaps.Exists(path.Join(id, stagedMark))
		if err == nil && staged {
			err = fmt.Errorf("%s/%s/%s is missing: %w", SnapshotsDir, id, AppliedFile, errdefs.ErrDataLoss)
		} else if errors.Is(err, unix.ENOTDIR) || errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return objectstore.Checksum{}, err
	}
	sum, err := objectstore.ParseChecksum(strings.TrimSuffix(string(b), "\n"))
	if err != nil {
		return sum, fmt.Errorf("read %s/%s/%s: %w: %w", SnapshotsDir, id, AppliedFile, errdefs.ErrDataLoss, err)
	}
	return sum, nil
}

// readSmall returns the content of a file beside the upper directory, nil if it does not exist. A file too long to be
// ours is an errdefs.ErrDataLoss.
func readSmall(snaps *atfs.Dir, id, name string) ([]byte, error) {
	b, err := snaps.ReadFile(path.Join(id, name), smallFile)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return nil, nil
	case errors.Is(err, unix.EFBIG):
		return nil, fmt.Errorf("%w: %w", errdefs.ErrDataLoss, err)
	case err != nil:
		return nil, err
	}
	return b, nil
}

// readBlob returns the blob that the layer in a snapshot's directory was unpacked from. The file names the layer too:
// it is ignored if it was written for another layer, or is damaged.
func (s *Snapshotter) readBlob(id string, sum objectstore.Checksum) (digest.Digest, error) {
	b, err := readSmall(s.snaps, id, blobFile)
	if err != nil && !errdefs.IsDataLoss(err) {
		return "", err
	}
	blob, ok := strings.CutPrefix(strings.TrimSuffix(string(b), "\n"), sum.String()+" ")
	if d := digest.Digest(blob); ok && d.Validate() == nil {
		return d, nil
	}
	return "", nil
}

// writeLayer records the layer of an active snapshot and the space it added to the store.
func (s *Snapshotter) writeLayer(id string, l *layer.Held, u layer.Usage) error {
	usage := fmt.Sprintf("%d %d\n", u.Bytes, u.Inodes)
	if err := s.snaps.WriteFile(path.Join(id, usageFile), []byte(usage), fileMode, false); err != nil {
		return err
	}
	if l.Blob != "" {
		if err := s.snaps.WriteFile(path.Join(id, blobFile), fmt.Appendf(nil, "%s %s\n", l.ID, l.Blob), fileMode, false); err != nil {
			return err
		}
	}
	return s.snaps.WriteFile(path.Join(id, AppliedFile), []byte(l.ID.String()+"\n"), fileMode, false)
}

// isPristine reports whether the upper directory is unchanged since it was created.
func (s *Snapshotter) isPristine(id string) (bool, error) {
	dir, err := s.snaps.OpenDir(path.Join(id, upperDir))
	if err != nil {
		return false, err
	}
	names, err := dir.ReadNames()
	x, xerr := dir.Xattrs(".")
	st, serr := dir.Lstat(".")
	if err := errors.Join(err, xerr, serr, dir.Close()); err != nil {
		return false, err
	}
	for name := range x {
		// The kernel's own marks on upper directories (origin, impure, uuid) are not content, nor is the label that it gives.
		mark := strings.HasPrefix(name, "trusted.overlay.") && name != "trusted.overlay.opaque"
		if !mark && name != atfs.XattrSELinux {
			return false, nil
		}
	}
	return len(names) == 0 && st.Mode&^unix.S_IFMT == 0o755, nil
}

// discard moves the directory of a snapshot to tmp/, where Cleanup removes it.
func (s *Snapshotter) discard(id string) error {
	return s.snaps.Rename(id, s.tmp, oldPrefix+rand.Text(), 0)
}
