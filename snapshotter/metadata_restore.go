package snapshotter

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
)

// restoreMetadata replaces metadata.db with its copy if it is missing or damaged, and reports whether it was. A damaged
// file is kept under another name. Without a copy the store starts empty.
//
// Directories with content but without a row in the copy are moved to lost/ first: as soon as metadata.db exists again
// they would be swept as orphans. If this start is interrupted, the next one finds metadata.db missing again.
func (s *Snapshotter) restoreMetadata(ctx context.Context) (lost bool, err error) {
	damage, err := checkDatabase(s.root, MetadataFile)
	if err != nil || damage == nil {
		return false, err
	}
	had, err := s.hadMetadata(damage)
	if err != nil || !had {
		return false, err
	}
	logger := log.G(ctx).WithError(damage)
	if !errors.Is(damage, fs.ErrNotExist) {
		aside, err := s.setAside(MetadataFile)
		if err != nil {
			return true, err
		}
		logger = logger.WithField("damaged", aside)
	}
	rows, err := s.readCopy(ctx)
	if err != nil {
		return true, err
	}
	kept, err := s.keepLost(ctx, rows.orphans)
	if err != nil {
		return true, err
	}
	if rows.damage == nil {
		if err := s.root.WriteFile(MetadataFile, rows.data, fileMode, true); err != nil {
			return true, err
		}
	}
	rows.log(logger.WithField("lost", kept))
	return true, nil
}

// hadMetadata reports whether a metadata.db with content ever existed: if so, it left other files behind.
func (s *Snapshotter) hadMetadata(damage error) (bool, error) {
	if !errors.Is(damage, fs.ErrNotExist) && !errors.Is(damage, errEmptyDatabase) {
		return true, nil
	}
	if ok, err := s.root.Exists(MetadataCopy); err != nil || ok {
		return ok, err
	}
	for _, name := range []string{SnapshotsDir, layer.LayersDir} {
		dir, err := s.root.OpenDir(name)
		if err != nil {
			return false, err
		}
		names, err := dir.ReadNames()
		if err = errors.Join(err, dir.Close()); err != nil || len(names) > 0 {
			return len(names) > 0, err
		}
	}
	return false, nil
}

// setAside renames a damaged file so that nothing reads it any more.
func (s *Snapshotter) setAside(name string) (aside string, err error) {
	aside = name + ".damaged-" + rand.Text()
	return aside, s.root.Rename(name, s.root, aside, 0)
}

// A metadataCopy holds the content of the copy of metadata.db.
type metadataCopy struct {
	damage  error // why no copy can be used
	data    []byte
	time    time.Time
	count   int      // of snapshots
	orphans []string // directories in snapshots/ that no row needs
}

// log logs the loss of metadata.db and its consequences.
func (c *metadataCopy) log(logger *log.Entry) {
	if c.damage != nil {
		logger.WithField("copy", c.damage.Error()).
			Error("metadata.db is lost and has no copy: the store starts empty; remove containers and images, and pull the images again")
		return
	}
	logger.WithFields(log.Fields{"snapshots": c.count, "copied": c.time, "age": time.Since(c.time).Round(time.Second)}).
		Warn("metadata.db is lost, and its copy takes its place without later changes")
}

func (s *Snapshotter) readCopy(ctx context.Context) (c metadataCopy, err error) {
	if c.orphans, err = s.snaps.ReadNames(); err != nil {
		return c, err
	}
	if c.damage, err = checkDatabase(s.root, MetadataCopy); err != nil {
		return c, err
	}
	if c.damage != nil {
		if !errors.Is(c.damage, fs.ErrNotExist) {
			_, err = s.setAside(MetadataCopy)
		}
		return c, err
	}
	st, err := s.root.Lstat(MetadataCopy)
	if err != nil {
		return c, err
	}
	c.time = time.Unix(st.Mtim.Unix())
	if c.data, err = s.root.ReadFile(MetadataCopy, math.MaxInt64-1); err != nil {
		return c, err
	}
	ms, err := openMetadata(filepath.Join(s.path, MetadataCopy), readOnly)
	if err != nil {
		return c, err
	}
	err = ms.WithTransaction(ctx, false, func(ctx context.Context) error {
		if c.orphans, err = orphans(ctx, c.orphans); err != nil {
			return err
		}
		return walk(ctx, func(context.Context, snapshots.Info) error { c.count++; return nil })
	})
	return c, errors.Join(err, ms.Close())
}

// keepLost moves unneeded directories in snapshots/ to lost/ if they have content, and returns how many.
func (s *Snapshotter) keepLost(ctx context.Context, orphans []string) (kept int, err error) {
	for _, name := range orphans {
		// Directories that cannot be read are kept too.
		if pristine, err := s.isPristine(name); pristine || errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := s.root.MkdirAll(LostDir, dirMode); err != nil {
			return kept, err
		}
		to := path.Join(LostDir, name+"-"+rand.Text())
		if err := s.snaps.Rename(name, s.root, to, 0); err != nil {
			return kept, err
		}
		kept++
		log.G(ctx).WithField("directory", to).Warn("snapshot of a container is lost, its files are kept: copy the files you need from fs/, then remove the directory")
	}
	lost, err := s.root.OpenDir(LostDir)
	if err != nil {
		return kept, atfs.IgnoreNotExist(err)
	}
	// Even if none moved now: an interrupted start may have moved some.
	return kept, errors.Join(lost.Sync(), lost.Close(), s.snaps.Sync(), s.root.Sync())
}

// A DamagedMetadataError reports that metadata.db is damaged. It is an errdefs.ErrDataLoss.
type DamagedMetadataError struct{ Damage error }

func (e *DamagedMetadataError) Error() string {
	return fmt.Sprintf("%s is damaged: %v: %v", MetadataFile, errdefs.ErrDataLoss, e.Damage)
}

// Unwrap returns errdefs.ErrDataLoss and the damage.
func (e *DamagedMetadataError) Unwrap() []error { return []error{errdefs.ErrDataLoss, e.Damage} }
