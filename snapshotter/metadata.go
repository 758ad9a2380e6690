package snapshotter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

const (
	// databaseTimeout is how long to wait for another process that has metadata.db open.
	databaseTimeout = 5 * time.Second

	copyAfterLast  = 5 * time.Second  // after the last change of the rows
	copyAfterFirst = 30 * time.Second // after the first one that is not in the copy
)

// copyMetadata makes the copy anew, with the rows as they are when it is called, and has it on the disk. Nothing waits
// for it: what it does inside a transaction is to copy to memory, since bbolt lets no writer make the database larger
// while a transaction is open.
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
	if db, ok := tx.(interface { // a *bolt.Tx, of which package storage hides the rest
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
