package snapshotter

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
)

// Swept reports what [Sweep] found.
type Swept struct {
	Orphans []string // directories in snapshots/ that no snapshot needs
	Removed int      // directories of snapshots that were being created or removed
	Bytes   int64    // of disk space that removing all of these frees
}

// Sweep removes the leftovers of a killed daemon from the directories of snapshots, as the next daemon does when it
// starts. With dryRun it only reports them. If a daemon uses the store, the error is bbolt's ErrTimeout, and the
// daemon's own Cleanup does this. If metadata.db is damaged nothing is touched, since it is unknown what is needed: the
// next start of the daemon restores the copy. What cannot be removed does not stop the rest: the result then comes beside an
// objectstore.ErrNotRemoved that names it.
func Sweep(ctx context.Context, root *atfs.Dir, dryRun bool) (_ *Swept, err error) {
	if ok, err := root.Exists(MetadataFile); err != nil || !ok {
		return &Swept{}, err
	}
	if err := CheckMetadata(root); err != nil {
		return nil, err
	}
	s := &Snapshotter{}
	defer func() { err = errors.Join(err, s.closeAll()) }()
	for name, dir := range map[string]**atfs.Dir{SnapshotsDir: &s.snaps, layer.TmpDir: &s.tmp} {
		if *dir, err = root.OpenDir(name); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return &Swept{}, nil
			}
			return nil, err
		}
	}
	if s.ms, err = openMetadata(filepath.Join(root.Path(), MetadataFile), dontWait); err != nil {
		return nil, err
	}
	// While the database is open here no daemon can start, so everything with tmpPrefix is abandoned.
	swept := &Swept{}
	if swept.Orphans, err = s.snaps.ReadNames(); err != nil {
		return nil, err
	}
	err = s.read(ctx, func(ctx context.Context) error {
		swept.Orphans, err = orphans(ctx, swept.Orphans)
		return err
	})
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, name := range swept.Orphans {
		errs = append(errs, sweepTree(s.snaps, name, dryRun, &swept.Bytes))
	}
	names, err := s.tmp.ReadNames()
	errs = append(errs, err)
	for _, name := range names {
		if !strings.HasPrefix(name, tmpPrefix) {
			continue
		}
		err := sweepTree(s.tmp, name, dryRun, &swept.Bytes)
		errs = append(errs, err)
		if err == nil {
			swept.Removed++
		}
	}
	return swept, objectstore.NotRemoved(errs...)
}

// sweepTree removes a directory and adds the space this frees to bytes. Files that are links to objects free nothing.
func sweepTree(dir *atfs.Dir, name string, dryRun bool, bytes *int64) error {
	err := dir.Walk(name, func(st *unix.Stat_t) error {
		if st.Nlink == 1 || st.Mode&unix.S_IFMT == unix.S_IFDIR {
			*bytes += atfs.Allocated(st)
		}
		return nil
	})
	if err != nil || dryRun {
		return err
	}
	return dir.RemoveAll(name)
}
