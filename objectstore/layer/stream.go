package layer

import (
	"errors"
	"io"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/panics"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/sha256x2"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

const (
	blockSize  = 256 << 10
	blockCount = 12 // in all of a digester's stages: 3 MiB

	maxEmptyReads = 100 // in a row, as in bufio
)

type block struct {
	buf []byte
	n   int
	err error // error of the source after these bytes
}

// fill reads until the block is full or the source has ended. io.ReadFull will not do: it returns io.ErrUnexpectedEOF
// for a source that ends inside the block, and a decompressor returns the same for a truncated blob.
func (b *block) fill(src io.Reader) {
	b.n, b.err = 0, nil
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

// A digester is an io.Reader over a source that computes the digest of everything read. Goroutines read the source, use
// the bytes and hash them, so that decompressing, unpacking and hashing overlap; blocks circulate between them and are
// never copied.
//
// A digester can compute the checksums of files as well, whose content is part of what is read. Then whoever reads also
// hashes, both sums in one pass.
type digester struct {
	full, used, free chan *block
	cur              *block
	off              int
	size             int64
	sum              *sha256x2.Hash
	hashErr          error // of the goroutine that hashes; read after wg
	files            bool  // there is no such goroutine: Read hashes
	file             *sha256x2.Hash
	inFile           bool // what is read now is content of a file
	stop             chan struct{}
	wg               sync.WaitGroup
	once             sync.Once
	err              error
}

// newDigester starts reading src. Finish or Close must be called. With files, beginFile can be called.
func newDigester(src io.Reader, files bool) *digester {
	d := &digester{
		full: make(chan *block, blockCount),
		used: make(chan *block, blockCount),
		free: make(chan *block, blockCount),
		sum:  sha256x2.New(),
		stop: make(chan struct{}),
	}
	if files {
		d.files, d.file = true, sha256x2.New()
	}
	for range blockCount {
		d.free <- &block{buf: make([]byte, blockSize)}
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
		var b *block
		select {
		case b = <-d.free:
		case <-d.stop:
			return
		}
		if err := panics.Call(func() error { b.fill(src); return nil }); err != nil {
			b.n, b.err = 0, err
		}
		last := b.err != nil
		select {
		case d.full <- b:
		case <-d.stop:
			return
		}
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
		d.free <- b // never blocks: only blockCount blocks exist
	}
}

// Read implements io.Reader. Only one goroutine may call it.
func (d *digester) Read(p []byte) (int, error) {
	for d.cur == nil || d.off == d.cur.n {
		if d.err != nil {
			return 0, d.err
		}
		if err := d.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, d.cur.buf[d.off:d.cur.n])
	d.off += n
	switch {
	case d.inFile:
		sha256x2.WriteBoth(d.sum, d.file, p[:n])
	case d.files:
		_, _ = d.sum.Write(p[:n])
	}
	return n, nil
}

// beginFile makes the digester compute the checksum of a file, whose content is what is read until endFile.
func (d *digester) beginFile(m *objectstore.FileMeta) error {
	header, err := m.Header()
	if err != nil {
		return err
	}
	d.file.Reset()
	_, _ = d.file.Write(header)
	d.inFile = true
	return nil
}

// endFile returns the checksum of the file.
func (d *digester) endFile() (sum objectstore.Checksum) {
	d.inFile = false
	d.file.Sum(sum[:0])
	return sum
}

// next passes the current block on to be hashed and takes another.
func (d *digester) next() error {
	if d.cur != nil {
		d.err = d.cur.err
		if d.files {
			_, _ = d.sum.Write(d.cur.buf[d.off:d.cur.n])
			d.free <- d.cur
		} else {
			d.used <- d.cur
		}
		d.cur = nil
		if d.err != nil {
			return d.err
		}
	}
	b, ok := <-d.full
	if !ok {
		d.err = io.ErrUnexpectedEOF
		return d.err
	}
	d.cur, d.off = b, 0
	d.size += int64(b.n)
	return nil
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
