package snapshotter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/internal/boltcheck"
)

const (
	// databaseTimeout limits how long to wait for another process that has metadata.db open.
	databaseTimeout = 5 * time.Second

	copyAfterLast  = 5 * time.Second  // after the last change of the rows
	copyAfterFirst = 30 * time.Second // after the first change missing from the copy
)

// copyMetadata writes a new copy, with the current rows, and syncs it. No call waits for it: its transaction ends after
// copying to memory, since bbolt cannot enlarge the database while a transaction is open.
func (s *Snapshotter) copyMetadata() (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("copy %s: %w", MetadataFile, err)
		}
	}()
	_, tx, err := s.ms.TransactionContext(context.Background(), false)
	if err != nil {
		return err
	}
	var data bytes.Buffer
	if db, ok := tx.(interface { // a *bolt.Tx, whose other methods package storage hides
		io.WriterTo
		Size() int64
	}); ok {
		data.Grow(int(db.Size()))
		_, err = db.WriteTo(&data)
	} else {
		err = fmt.Errorf("transaction is a %T: %w", tx, errors.ErrUnsupported)
	}
	if err = errors.Join(err, tx.Rollback()); err != nil {
		return err
	}
	return s.root.WriteFile(MetadataCopy, data.Bytes(), fileMode, true)
}

// WalkMetadata calls f for every snapshot in metadata.db, with its ID, in one read-only transaction. It stops at the
// first error of f and returns it; its other errors are those of [CheckMetadata]. A store that never had a snapshot is
// empty.
func WalkMetadata(ctx context.Context, root *atfs.Dir, f func(id string, info snapshots.Info) error) error {
	if err := CheckMetadata(root); err != nil {
		return err
	}
	ms, err := openMetadata(filepath.Join(root.Path(), MetadataFile), readOnly, dontWait)
	if err != nil {
		return err
	}
	err = ms.WithTransaction(ctx, false, func(ctx context.Context) error {
		return walk(ctx, func(ctx context.Context, info snapshots.Info) error {
			id, _, _, err := storage.GetInfo(ctx, info.Name)
			if err != nil {
				return err
			}
			return f(id, info)
		})
	})
	return errors.Join(err, ms.Close())
}

// CheckMetadata reads all of metadata.db. If it is damaged, which would crash bbolt itself, the error is a
// [DamagedMetadataError]; if it does not exist, an fs.ErrNotExist; while a daemon has it open, bbolt's ErrTimeout.
func CheckMetadata(root *atfs.Dir) (err error) {
	f, err := root.Open(MetadataFile)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	err = unix.Flock(f.FD(), unix.LOCK_SH|unix.LOCK_NB) // bbolt holds LOCK_EX
	if errors.Is(err, unix.EWOULDBLOCK) {
		return bolterrors.ErrTimeout
	}
	if err != nil {
		return fmt.Errorf("lock %s: %w", MetadataFile, err)
	}
	damage, err := checkDatabase(root, MetadataFile)
	if damage != nil {
		err = &DamagedMetadataError{damage}
	}
	return err
}

// openMetadata opens a database that CheckMetadata or checkDatabase found intact. It waits for another process that has
// it open.
func openMetadata(file string, options ...func(*bolt.Options)) (*storage.MetaStore, error) {
	return storage.NewMetaStore(file, func(o *bolt.Options) error {
		o.Timeout = databaseTimeout
		for _, option := range options {
			option(o)
		}
		return nil
	})
}

func readOnly(o *bolt.Options) { o.ReadOnly = true }

// dontWait fails at once if another process has the database open: to bbolt, that is the shortest timeout.
func dontWait(o *bolt.Options) { o.Timeout = time.Nanosecond }

var errEmptyDatabase = errors.New("file is empty")

// checkDatabase reads every page of a database below the root and returns the damage it finds. For a missing file that
// is an fs.ErrNotExist.
func checkDatabase(root *atfs.Dir, name string) (damage, err error) {
	st, err := root.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return err, nil
	case err != nil:
		return nil, err
	case st.Size == 0:
		return errEmptyDatabase, nil
	}
	data, err := root.ReadFile(name, math.MaxInt64-1)
	if err != nil {
		return nil, err
	}
	return boltcheck.Check(data), nil
}
