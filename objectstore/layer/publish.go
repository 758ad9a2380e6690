package layer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/panics"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/composefs"
)

const (
	smallFile  = 1 << 20                 // content up to this size is held in memory whole, so that a known file is never written
	fileBlocks = smallFile/blockSize + 1 // that such a file can be in

	maxBatch = 32
)

// A publisher makes objects of file contents. One goroutine reads the tar and feeds the publisher's workers, which write,
// and hash what the reader does not, through a bounded queue. Content is never copied: it stays in the blocks of the
// reader, which its users hold.
type publisher struct {
	ctx    context.Context //nolint:containedctx // of the workers; ends with the first error
	cancel context.CancelCauseFunc
	txn    *objectstore.Txn
	group  *panics.Group
	queue  chan *batch
	next   *batch // not in the queue yet
	closed bool

	mu    sync.Mutex
	added Usage
}

// A batch is up to maxBatch files that one worker stores. Their contents are in one block, but for the end of the last one:
// what waits for its worker holds up few blocks.
type batch struct {
	jobs   []job
	parts  [][]byte // of the contents of all jobs
	blocks []*block // that have them
}

var batches = sync.Pool{New: func() any { return new(batch) }}

// A job is a file of a layer and the source of its content.
type job struct {
	n       *inode
	meta    objectstore.FileMeta // attributes when the job was made: a hard link's header may change the inode
	time    unix.Timespec        // as meta
	sum     objectstore.Checksum // if hashed
	hashed  bool
	content [][]byte // or
	open    func(txn *objectstore.Txn) (objectstore.Stored, error)
	drop    func() // called instead of open if the job is dropped
}

func newPublisher(ctx context.Context, txn *objectstore.Txn, o Options) *publisher {
	ctx, cancel := context.WithCancelCause(ctx)
	p := &publisher{
		cancel: cancel,
		txn:    txn,
		queue:  make(chan *batch, 2*o.Workers),
	}
	p.group, p.ctx = panics.WithContext(ctx)
	for range o.Workers {
		p.group.Go(p.work)
	}
	return p
}

// cause returns why the publisher's context ended: the first worker's error, or the caller's cancellation.
func (p *publisher) cause() error { return context.Cause(p.ctx) }

// FileMeta returns those attributes of a file that its object has. An ostree object cannot have an empty extended
// attribute; a checkout gives a file with one its own inode.
func FileMeta(n *composefs.Inode) objectstore.FileMeta {
	m := objectstore.FileMeta{UID: n.UID, GID: n.GID, Mode: n.Mode}
	for _, x := range n.Xattrs {
		if len(x.Value) > 0 {
			m.Xattrs = append(m.Xattrs, objectstore.Xattr{Name: x.Name, Value: x.Value})
		}
	}
	return m
}

// file reads the content of the current entry of a tar, n.Size bytes, and queues it to become an object. n.sum is set when
// wait has returned.
func (p *publisher) file(n *inode, t *tarEntries) error {
	j := job{n: n, meta: FileMeta(&n.Inode), time: n.Mtime, hashed: t.src.files}
	if j.hashed {
		if err := t.src.beginFile(&j.meta); err != nil {
			return &storeError{fmt.Errorf("store file: %w", err)}
		}
	}
	if n.Size > smallFile {
		return p.large(j, t)
	}
	b := p.batch()
	parts := len(b.parts)
	for left := n.Size; left > 0; {
		part, err := t.take(left)
		if err != nil {
			return &readError{err}
		}
		left -= int64(len(part))
		if len(b.jobs) > 0 && len(b.parts) == parts && b.blocks[0] != t.src.cur {
			if err := p.flush(); err != nil {
				return err
			}
			b, parts = p.batch(), 0
		}
		b.hold(t.src.cur)
		b.parts = append(b.parts, part)
	}
	if j.hashed {
		j.sum = t.src.endFile()
	}
	j.content = b.parts[parts:len(b.parts):len(b.parts)]
	b.jobs = append(b.jobs, j)
	if len(b.jobs) == maxBatch || len(b.blocks) > 1 {
		return p.flush()
	}
	return nil
}

// batch returns the batch that is not in the queue yet.
func (p *publisher) batch() *batch {
	if p.next == nil {
		b, ok := batches.Get().(*batch)
		if !ok {
			panic("layer: foreign value in the pool of batches")
		}
		p.next = b
	}
	return p.next
}

// hold makes the batch a user of a block.
func (b *batch) hold(c *block) {
	if len(b.blocks) == 0 || b.blocks[len(b.blocks)-1] != c {
		b.blocks = append(b.blocks, c.hold())
	}
}

// release ends the use of the batch and of its blocks.
func (b *batch) release() {
	for _, c := range b.blocks {
		c.release()
	}
	clear(b.jobs)
	clear(b.parts)
	clear(b.blocks)
	b.jobs, b.parts, b.blocks = b.jobs[:0], b.parts[:0], b.blocks[:0]
	batches.Put(b)
}

// drop releases the resources of a batch that no worker takes.
func (b *batch) drop() {
	for _, j := range b.jobs {
		if j.drop != nil {
			j.drop()
		}
	}
	b.release()
}

// send queues a job that has no content in blocks.
func (p *publisher) send(j job) error {
	b := p.batch()
	b.jobs = append(b.jobs, j)
	return p.flush()
}

// flush queues the files that are not in the queue yet.
func (p *publisher) flush() error {
	b := p.next
	if b == nil {
		return nil
	}
	p.next = nil
	select {
	case p.queue <- b:
		return nil
	case <-p.ctx.Done():
		b.drop()
		return &storeError{p.cause()}
	}
}

// A part is bytes of a block, which it holds.
type part struct {
	data  []byte
	block *block
}

// large streams content that is too long for memory to a separate goroutine.
func (p *publisher) large(j job, t *tarEntries) error {
	size := j.n.Size
	if err := p.room(size); err != nil {
		return err
	}
	create := p.txn.NewFile
	if j.hashed {
		create = p.txn.NewFileAs
	}
	parts := make(chan part, 2)
	ok := false // the reader below has sent everything; read, as j.sum is, after parts is closed
	p.group.Go(func() (err error) {
		w, err := create(&j.meta, j.time)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, w.Abort()) }()
		for c := range parts {
			if err == nil {
				_, err = w.Write(c.data)
			}
			c.block.release()
		}
		if err != nil || !ok {
			return err
		}
		var stored objectstore.Stored
		if j.hashed {
			stored, err = w.CommitAs(j.sum)
		} else {
			stored, err = w.Commit()
		}
		if err != nil {
			return err
		}
		p.done(j.n, stored)
		return nil
	})
	defer close(parts)
	for left := size; left > 0; {
		data, err := t.take(left)
		if err != nil {
			return &readError{err}
		}
		left -= int64(len(data))
		c := part{data, t.src.cur.hold()}
		select {
		case parts <- c:
		case <-p.ctx.Done():
			c.block.release()
			return &storeError{p.cause()}
		}
	}
	if j.hashed {
		j.sum = t.src.endFile()
	}
	ok = true
	return nil
}

// room returns an error if a file of size bytes does not fit: a sparse file of a few bytes can claim any size.
func (p *publisher) room(size int64) error {
	if err := p.txn.Room(size); err != nil {
		return &storeError{err}
	}
	return nil
}

// sparse stores the content of a sparse file, which are rare: at once, and not in blocks.
func (p *publisher) sparse(n *inode, r io.Reader) (err error) {
	if err := p.room(n.Size); err != nil {
		return err
	}
	meta := FileMeta(&n.Inode)
	w, err := p.txn.NewFile(&meta, n.Mtime)
	if err != nil {
		return &storeError{err}
	}
	defer func() {
		if aerr := w.Abort(); aerr != nil {
			err = errors.Join(err, &storeError{aerr})
		}
	}()
	buf := make([]byte, blockSize)
	for left := n.Size; left > 0; {
		if p.ctx.Err() != nil {
			return &storeError{p.cause()}
		}
		m, err := io.ReadFull(r, buf[:min(left, int64(len(buf)))])
		if err != nil {
			return &readError{unexpectedEOF(err)}
		}
		if _, err := w.Write(buf[:m]); err != nil {
			return &storeError{err}
		}
		left -= int64(m)
	}
	stored, err := w.Commit()
	if err != nil {
		return &storeError{err}
	}
	p.done(n, stored)
	return nil
}

func (p *publisher) work() error {
	for {
		select {
		case b, ok := <-p.queue:
			if !ok {
				return nil
			}
			if err := p.run(b); err != nil {
				return err
			}
		case <-p.ctx.Done():
			return p.cause()
		}
	}
}

// run stores the files of a batch.
func (p *publisher) run(b *batch) error {
	defer b.release()
	var added Usage
	for i := range b.jobs {
		j := &b.jobs[i]
		stored, err := p.store(j)
		if err != nil {
			return err
		}
		j.n.sum = stored.Checksum
		added.add(stored)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.added.Bytes += added.Bytes
	p.added.Inodes += added.Inodes
	return nil
}

func (p *publisher) store(j *job) (objectstore.Stored, error) {
	switch {
	case j.open != nil:
		return j.open(p.txn)
	case j.hashed:
		return p.txn.StoreFileAs(&j.meta, j.time, j.sum, j.content...)
	}
	return p.txn.StoreFile(&j.meta, j.time, j.content...)
}

func (p *publisher) done(n *inode, stored objectstore.Stored) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n.sum = stored.Checksum
	p.added.add(stored)
}

// wait closes the queue and waits until every object is stored.
func (p *publisher) wait() error {
	err := p.flush()
	if !p.closed {
		p.closed = true
		close(p.queue)
	}
	if werr := p.group.Wait(); werr != nil {
		return werr
	}
	return err
}

// stop cancels the workers and waits for them. After wait it does nothing.
func (p *publisher) stop() {
	p.cancel(context.Canceled)
	_ = p.group.Wait() // the error is the cancellation, or one that wait returned
	if p.next != nil {
		p.next.drop()
		p.next = nil
	}
	for {
		select {
		case b, ok := <-p.queue:
			if !ok {
				return
			}
			b.drop()
		default:
			return
		}
	}
}

// restore rebuilds a file's object from its old one, with its present attributes. Call it after wait.
func (p *publisher) restore(repo *objectstore.Repo, n *inode) (err error) {
	f, err := repo.OpenFile(n.sum)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	meta := FileMeta(&n.Inode)
	w, err := p.txn.NewFile(&meta, n.Mtime)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Abort()) }()
	if _, err := io.Copy(w, f); err != nil {
		return fmt.Errorf("copy object %s: %w", n.sum, err)
	}
	stored, err := w.Commit()
	if err != nil {
		return err
	}
	p.done(n, stored)
	return nil
}
