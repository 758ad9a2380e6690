package layer

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/panics"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/sha256x2"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

const (
	blockSize = 256 << 10 // a multiple of that of a tar's blocks

	// minBlocks is the least number of blocks of a digester: a file in memory holds fileBlocks of them, while others are
	// read, filled and hashed.
	minBlocks = fileBlocks + 3
	// scanBlocks is the number of blocks of a digester whose blocks nobody holds.
	scanBlocks = 12

	maxEmptyReads = 100 // in a row, as in bufio
)

// A block is a part of a tar, whose last user puts it back into the pool.
type block struct {
	buf  [blockSize]byte
	n    int
	err  error // error of the source after these bytes
	d    *digester
	uses atomic.Int32
}

// blocks is shared by all imports.
var blocks = sync.Pool{New: func() any { return new(block) }}

func (d *digester) newBlock() *block {
	b, ok := blocks.Get().(*block)
	if !ok {
		panic("layer: foreign value in the pool of blocks")
	}
	b.n, b.err, b.d = 0, nil, d
	b.uses.Store(1)
	return b
}

// hold adds a user of the block.
func (b *block) hold() *block {
	b.uses.Add(1)
	return b
}

// release ends one use of the block.
func (b *block) release() {
	if b.uses.Add(-1) == 0 {
		d := b.d
		b.d = nil
		blocks.Put(b)
		d.room <- struct{}{} // never blocks: a token for each block
	}
}

// fill reads until the block is full or the source has ended. io.ReadFull will not do: it returns io.ErrUnexpectedEOF
// for a source that ends inside the block, and a decompressor returns the same for a truncated blob.
func (b *block) fill(src io.Reader) {
	for empty := 0; b.n < len(b.buf) && b.err == nil; {
		var n int
		n, b.err = src.Read(b.buf[b.n:])
		b.n += n
		if empty++; n > 0 {
			empty = 0
		} else if b.err == nil && empty == maxEmptyReads {
			b.err = io.ErrNoProgress
		}
	}
}

// A digester reads a source block by block and computes the digest of everything. Goroutines read the source, use the
// bytes and hash them, so that decompressing, unpacking and hashing overlap; blocks pass between them and are never
// copied. All blocks but the last are full.
//
// A digester can compute the checksums of files as well, whose content is part of what is read. Then whoever reads also
// hashes, both sums in one pass.
type digester struct {
	ctx        context.Context //nolint:containedctx // of one import
	full, used chan *block
	room       chan struct{} // a token for each block that may be filled
	cur        *block
	off        int // of the next byte to read in cur
	hashed     int // bytes of cur that are in the sums, if this goroutine hashes
	size       int64
	sum        *sha256x2.Hash
	hashErr    error // of the goroutine that hashes; read after wg
	files      bool  // there is no such goroutine: the reader hashes
	file       *sha256x2.Hash
	header     []byte // of the file, before its content
	inFile     bool   // what is read now is content of a file
	fileSum    objectstore.Checksum
	stop       chan struct{}
	wg         sync.WaitGroup
	once       sync.Once
	err        error
}

// newDigester starts reading src, in at most count blocks at once. Finish or Close must be called. When ctx ends, reading
// returns its cause as a storeError: those who hold blocks may have stopped. With files, beginFile can be called.
func newDigester(ctx context.Context, src io.Reader, count int, files bool) *digester {
	d := &digester{
		ctx:  ctx,
		full: make(chan *block, count),
		used: make(chan *block, count),
		room: make(chan struct{}, count),
		sum:  sha256x2.New(),
		stop: make(chan struct{}),
	}
	if files {
		d.files, d.file = true, sha256x2.New()
	}
	for range count {
		d.room <- struct{}{}
	}
	d.wg.Go(func() { d.fill(src) })
	if !files {
		d.wg.Go(d.hash)
	}
	return d
}

func (d *digester) fill(src io.Reader) {
	defer close(d.full)
	for {
		select {
		case <-d.room:
		case <-d.stop:
			return
		}
		b := d.newBlock()
		if err := panics.Call(func() error { b.fill(src); return nil }); err != nil {
			b.n, b.err = 0, err
		}
		last := b.err != nil
		d.full <- b // never blocks
		if last {
			return
		}
	}
}

func (d *digester) hash() {
	for b := range d.used {
		if d.hashErr == nil {
			d.hashErr = panics.Call(func() error { _, err := d.sum.Write(b.buf[:b.n]); return err })
		}
		b.release()
	}
}

// peek returns the next bytes, at most n and all of one block, without reading them. It returns none only with an error.
// Only one goroutine may read.
func (d *digester) peek(n int64) ([]byte, error) {
	for d.cur == nil || d.off == d.cur.n {
		if d.err != nil {
			return nil, d.err
		}
		if err := d.next(); err != nil {
			return nil, err
		}
	}
	return d.cur.buf[d.off : d.off+int(min(n, int64(d.cur.n-d.off)))], nil
}

// take is peek that reads the bytes. They are valid as long as the caller holds the block, which is current until the
// next call.
func (d *digester) take(n int64) ([]byte, error) {
	p, err := d.peek(n)
	d.off += len(p)
	return p, err
}

// beginFile makes the digester compute the checksum of a file, whose content is what is read until endFile.
func (d *digester) beginFile(m *objectstore.FileMeta) (err error) {
	d.catchUp()
	if d.header, err = m.AppendHeader(d.header[:0]); err != nil {
		return err
	}
	d.file.Reset()
	_, _ = d.file.Write(d.header)
	d.inFile = true
	return nil
}

// endFile returns the checksum of the file.
func (d *digester) endFile() objectstore.Checksum {
	d.catchUp()
	d.inFile = false
	d.file.Sum(d.fileSum[:0])
	return d.fileSum
}

// catchUp hashes what was read of the current block.
func (d *digester) catchUp() {
	if d.cur == nil || !d.files {
		return
	}
	p := d.cur.buf[d.hashed:d.off]
	d.hashed = d.off
	if d.inFile {
		sha256x2.WriteBoth(d.sum, d.file, p)
	} else {
		_, _ = d.sum.Write(p)
	}
}

// next passes the current block on to be hashed and takes another.
func (d *digester) next() error {
	if d.cur != nil {
		d.err = d.cur.err
		d.off = d.cur.n
		d.catchUp()
		if d.files {
			d.cur.release()
		} else {
			d.used <- d.cur
		}
		d.cur = nil
		if d.err != nil {
			return d.err
		}
	}
	select {
	case b, ok := <-d.full:
		if !ok {
			d.err = io.ErrUnexpectedEOF
			return d.err
		}
		d.cur, d.off, d.hashed = b, 0, 0
		d.size += int64(b.n)
		return nil
	case <-d.ctx.Done():
		d.err = &storeError{context.Cause(d.ctx)}
		return d.err
	}
}

// Finish reads the rest of the source and returns digest and size of everything read. It returns errors of the source
// other than io.EOF.
func (d *digester) Finish() (digest.Digest, int64, error) {
	for d.err == nil {
		if err := d.next(); err != nil && !errors.Is(err, io.EOF) {
			d.Close()
			return "", 0, err
		}
	}
	d.Close()
	if !errors.Is(d.err, io.EOF) {
		return "", 0, d.err
	}
	if d.hashErr != nil {
		return "", 0, d.hashErr
	}
	return digest.NewDigest(digest.SHA256, d.sum), d.size, nil
}

// Close stops the goroutines. If the source blocks in Read, its owner must make it return.
func (d *digester) Close() {
	d.once.Do(func() {
		close(d.stop)
		close(d.used)
		d.wg.Wait()
	})
}
