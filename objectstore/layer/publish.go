package layer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/panics"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/composefs"
)

const (
	smallFile = 1 << 20 // content up to this size is held in memory whole, so that a known file is never written
	chunkSize = 1 << 20 // larger content is passed on in chunks of this size
)

// A publisher makes objects of file contents. One goroutine reads the tar and feeds the publisher's workers, which write,
// and hash what the reader does not, through a bounded queue.
type publisher struct {
	ctx    context.Context //nolint:containedctx // of the workers; ends with the first error
	cancel context.CancelCauseFunc
	txn    *objectstore.Txn
	group  *panics.Group
	jobs   chan job
	memory *semaphore.Weighted
	shared *semaphore.Weighted // with the publishers of other imports; nil if there is none
	taken  atomic.Int64        // of shared
	closed bool

	mu    sync.Mutex
	added Usage
}

// A job is a file of a layer and the source of its content.
type job struct {
	n    *inode
	meta objectstore.FileMeta  // attributes when the job was made: a hard link's header may change the inode
	time unix.Timespec         // as meta
	sum  *objectstore.Checksum // if it is known
	buf  *buffer               // the whole content, or
	open func(txn *objectstore.Txn) (objectstore.Stored, error)
	drop func() // called instead of open if the job is dropped
}

func newPublisher(ctx context.Context, txn *objectstore.Txn, o Options) *publisher {
	ctx, cancel := context.WithCancelCause(ctx)
	p := &publisher{
		cancel: cancel,
		txn:    txn,
		jobs:   make(chan job, 4*o.Workers),
		memory: semaphore.NewWeighted(max(o.MaxInFlight, 4*chunkSize)),
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

// file reads the n.Size bytes of a regular file from r and queues them to become an object. n.sum is set when wait has
// returned. If d is not nil, r reads from it, and it computes the checksum.
func (p *publisher) file(n *inode, r io.Reader, d *digester) error {
	j := job{n: n, meta: FileMeta(&n.Inode), time: n.Mtime}
	if d != nil {
		if err := d.beginFile(&j.meta); err != nil {
			return &storeError{fmt.Errorf("store file: %w", err)}
		}
		j.sum = new(objectstore.Checksum)
	}
	if n.Size > smallFile {
		return p.large(j, r, d)
	}
	buf, err := p.read(r, n.Size)
	if err != nil {
		return err
	}
	if d != nil {
		*j.sum = d.endFile()
	}
	j.buf = buf
	return p.send(j)
}

func (p *publisher) send(j job) error {
	select {
	case p.jobs <- j:
		return nil
	case <-p.ctx.Done():
		p.drop(j)
		return &storeError{p.cause()}
	}
}

// drop releases the resources of a dropped job.
func (p *publisher) drop(j job) {
	if j.buf != nil {
		p.release(j.buf)
	}
	if j.drop != nil {
		j.drop()
	}
}

// read reads size bytes from r into memory, when memory is available.
func (p *publisher) read(r io.Reader, size int64) (*buffer, error) {
	buf, err := p.acquire(size)
	if err != nil {
		return nil, err
	}
	if _, err := io.ReadFull(r, buf.data); err != nil {
		p.release(buf)
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, &readError{err}
	}
	return buf, nil
}

// large streams content that is too long for memory to a separate goroutine.
func (p *publisher) large(j job, r io.Reader, d *digester) error {
	// A sparse file of a few bytes can claim any size.
	size := j.n.Size
	if err := p.txn.Room(size); err != nil {
		return &storeError{err}
	}
	create := p.txn.NewFile
	if j.sum != nil {
		create = p.txn.NewFileAs
	}
	chunks := make(chan *buffer, 2)
	ok := false // the reader below has sent everything; read, as j.sum is, after chunks is closed
	p.group.Go(func() (err error) {
		w, err := create(&j.meta, j.time)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, w.Abort()) }()
		for c := range chunks {
			if err == nil {
				_, err = w.Write(c.data)
			}
			p.release(c)
		}
		if err != nil || !ok {
			return err
		}
		var stored objectstore.Stored
		if j.sum != nil {
			stored, err = w.CommitAs(*j.sum)
		} else {
			stored, err = w.Commit()
		}
		if err != nil {
			return err
		}
		p.done(j.n, stored)
		return nil
	})
	defer close(chunks)
	for left := size; left > 0; {
		c, err := p.read(r, min(left, chunkSize))
		if err != nil {
			return err
		}
		left -= int64(len(c.data))
		select {
		case chunks <- c:
		case <-p.ctx.Done():
			p.release(c)
			return &storeError{p.cause()}
		}
	}
	if d != nil {
		*j.sum = d.endFile()
	}
	ok = true
	return nil
}

func (p *publisher) work() error {
	for {
		select {
		case j, ok := <-p.jobs:
			if !ok {
				return nil
			}
			if err := p.run(j); err != nil {
				return err
			}
		case <-p.ctx.Done():
			return p.cause()
		}
	}
}

func (p *publisher) run(j job) error {
	var stored objectstore.Stored
	var err error
	if j.open != nil {
		stored, err = j.open(p.txn)
	} else {
		stored, err = p.store(j)
	}
	if err != nil {
		return err
	}
	p.done(j.n, stored)
	return nil
}

// store makes an object of content in memory.
func (p *publisher) store(j job) (objectstore.Stored, error) {
	defer p.release(j.buf)
	if j.sum != nil {
		return p.txn.StoreFileAs(&j.meta, j.time, j.buf.data, *j.sum)
	}
	return p.txn.StoreFile(&j.meta, j.time, j.buf.data)
}

func (p *publisher) done(n *inode, stored objectstore.Stored) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n.sum = stored.Checksum
	p.added.add(stored)
}

// wait closes the queue and waits until every object is stored.
func (p *publisher) wait() error {
	if !p.closed {
		p.closed = true
		close(p.jobs)
	}
	return p.group.Wait()
}

// stop cancels the workers and waits for them. After wait it does nothing.
func (p *publisher) stop() {
	p.cancel(context.Canceled)
	_ = p.group.Wait() // the error is the cancellation, or one that wait returned
	defer p.releaseRest()
	for {
		select {
		case j, ok := <-p.jobs:
			if !ok {
				return
			}
			p.drop(j)
		default:
			return
		}
	}
}

// releaseRest returns what a worker that panicked has left of the shared memory.
func (p *publisher) releaseRest() {
	if p.shared != nil {
		p.shared.Release(p.taken.Swap(0))
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

// buffer is memory for file content. Its capacity is a power of two, so that pools can be shared by size.
type buffer struct{ data []byte }

const minBuffer = 12 // bits

var buffers [21 - minBuffer]sync.Pool // up to 1 MiB

func bufferClass(size int64) int { return max(bits.Len64(uint64(size-1)), minBuffer) - minBuffer }

func (p *publisher) acquire(size int64) (*buffer, error) {
	if err := p.memory.Acquire(p.ctx, size); err != nil {
		return nil, &storeError{p.cause()}
	}
	class := bufferClass(size)
	if p.shared != nil {
		if err := p.shared.Acquire(p.ctx, 1<<(class+minBuffer)); err != nil {
			p.memory.Release(size)
			return nil, &storeError{p.cause()}
		}
		p.taken.Add(1 << (class + minBuffer))
	}
	b, _ := buffers[class].Get().(*buffer)
	if b == nil {
		b = &buffer{data: make([]byte, 1<<(class+minBuffer))}
	}
	b.data = b.data[:size]
	return b, nil
}

func (p *publisher) release(b *buffer) {
	size := int64(len(b.data))
	class := bufferClass(size)
	buffers[class].Put(b)
	p.memory.Release(size)
	if p.shared != nil {
		p.shared.Release(1 << (class + minBuffer))
		p.taken.Add(-1 << (class + minBuffer))
	}
}
