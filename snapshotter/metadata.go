package snapshotter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
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

// A copier calls make in the background, a while after something has changed.
type copier struct {
	make   func() error
	failed func(error) // told of its errors

	mu     sync.Mutex
	first  time.Time // when the first thing changed of which no copy was made; zero if there is none
	timer  *time.Timer
	closed bool

	work sync.WaitGroup
	turn sync.Mutex // held while make runs: the copy that is begun last is the last one
}

// changed takes notice of a change. It never waits for a copy that is being made.
func (c *copier) changed() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	now := time.Now()
	if c.first.IsZero() {
		c.first = now
	}
	after := min(copyAfterLast, c.first.Add(copyAfterFirst).Sub(now))
	if c.timer == nil {
		c.timer = time.AfterFunc(after, c.background)
		return
	}
	c.timer.Reset(after)
}

func (c *copier) background() {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return
	}
	c.work.Add(1)
	c.mu.Unlock()
	defer c.work.Done()
	if err := c.copy(); err != nil {
		c.failed(err)
	}
}

// copy makes a copy, unless there is one of everything that has changed. After an error the next change has another one
// made, or close.
func (c *copier) copy() error {
	c.turn.Lock()
	defer c.turn.Unlock()
	c.mu.Lock()
	changed := !c.first.IsZero()
	c.first = time.Time{}
	c.mu.Unlock()
	if !changed {
		return nil
	}
	err := c.make()
	if err != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.first = time.Now()
	}
	return err
}

// close makes a copy of what has changed. No copy is being made when it returns.
func (c *copier) close() error {
	c.mu.Lock()
	c.closed = true
	if c.timer != nil {
		c.timer.Stop()
	}
	c.mu.Unlock()
	c.work.Wait()
	return c.copy()
}
