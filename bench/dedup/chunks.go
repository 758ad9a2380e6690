package dedup

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"

	chunkers "github.com/PlakarKorp/go-cdc-chunkers"
	_ "github.com/PlakarKorp/go-cdc-chunkers/chunkers/fastcdc" // registers cdcAlgorithm

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

const (
	smallChunk = 4 << 10
	largeChunk = 128 << 10

	cdcAlgorithm = "fastcdc-v1.0.0"
	cdcMin       = 16 << 10 // the defaults of casync and desync, as are the next two
	cdcNormal    = 64 << 10
	cdcMax       = 256 << 10
)

// A key is the first bytes of a hash.
type key [16]byte

func keyOf(sum []byte) key { return key(sum[:len(key{})]) }

// A chunk is a part of a file's content, or all of it.
type chunk struct {
	key  key
	size uint32
}

// chunks holds the chunks of a file's content for each method. A chunk equal to the one before it is left out.
type chunks struct{ large, small, cdc []chunk }

func (p *chunks) count() int { return len(p.large) + len(p.small) + len(p.cdc) }

func appendChunk(list []chunk, sum []byte, size int) []chunk {
	p := chunk{keyOf(sum), uint32(size)}
	if n := len(list); n > 0 && list[n-1] == p {
		return list
	}
	return append(list, p)
}

// A cutter hashes contents, whole and in chunks. It must not be used concurrently.
type cutter struct {
	chunker *chunkers.Chunker
	found   chunks // of the current content; the memory is reused

	hash  hash.Hash
	sum   []byte
	buf   []byte    // of the incomplete small chunk
	inner hash.Hash // of the sums of small chunks in a large chunk
	held  int       // bytes in the incomplete large chunk
	outer hash.Hash // of the sums of large chunks
	size  int64
}

func newCutter() (*cutter, error) {
	c := &cutter{hash: sha256.New(), inner: sha256.New(), outer: sha256.New(), buf: make([]byte, 0, smallChunk)}
	var err error
	c.chunker, err = chunkers.NewChunker(cdcAlgorithm, nil,
		&chunkers.ChunkerOpts{MinSize: cdcMin, NormalSize: cdcNormal, MaxSize: cdcMax})
	if err != nil {
		return nil, fmt.Errorf("cut content into chunks: %w", err)
	}
	return c, nil
}

// cut reads a content to its end and returns its identity: the hash of the hashes of its large chunks, which are the
// hashes of their small chunks. c.found holds the chunks until the next call.
func (c *cutter) cut(r io.Reader) (sum objectstore.Checksum, err error) {
	c.found = chunks{c.found.large[:0], c.found.small[:0], c.found.cdc[:0]}
	c.inner.Reset()
	c.outer.Reset()
	c.buf, c.held, c.size = c.buf[:0], 0, 0
	c.chunker.Reset(io.TeeReader(r, c))
	for {
		b, err := c.chunker.Next()
		if err != nil && !errors.Is(err, io.EOF) {
			return sum, err
		}
		if len(b) > 0 {
			c.found.cdc = appendChunk(c.found.cdc, c.digest(b), len(b))
		}
		if err != nil {
			break
		}
	}
	if len(c.buf) > 0 {
		c.endSmall(c.buf)
	}
	if c.held > 0 {
		c.endLarge()
	}
	var size [8]byte
	binary.BigEndian.PutUint64(size[:], uint64(c.size))
	c.outer.Write(size[:])
	c.outer.Sum(sum[:0])
	return sum, nil
}

// take returns a copy of the chunks found by the last cut.
func (c *cutter) take() *chunks {
	return &chunks{slices.Clone(c.found.large), slices.Clone(c.found.small), slices.Clone(c.found.cdc)}
}

// digest returns a hash that is valid until the next call.
func (c *cutter) digest(b []byte) []byte {
	c.hash.Reset()
	c.hash.Write(b)
	c.sum = c.hash.Sum(c.sum[:0])
	return c.sum
}

// Write adds content to the chunks of fixed size.
func (c *cutter) Write(b []byte) (int, error) {
	n := len(b)
	c.size += int64(n)
	if len(c.buf) > 0 {
		fill := min(smallChunk-len(c.buf), len(b))
		c.buf = append(c.buf, b[:fill]...)
		if b = b[fill:]; len(c.buf) < smallChunk {
			return n, nil
		}
		c.endSmall(c.buf)
		c.buf = c.buf[:0]
	}
	for ; len(b) >= smallChunk; b = b[smallChunk:] {
		c.endSmall(b[:smallChunk])
	}
	c.buf = append(c.buf, b...)
	return n, nil
}

func (c *cutter) endSmall(b []byte) {
	sum := c.digest(b)
	c.found.small = appendChunk(c.found.small, sum, len(b))
	c.inner.Write(sum)
	if c.held += len(b); c.held == largeChunk {
		c.endLarge()
	}
}

func (c *cutter) endLarge() {
	c.sum = c.inner.Sum(c.sum[:0])
	c.found.large = appendChunk(c.found.large, c.sum, c.held)
	c.outer.Write(c.sum)
	c.inner.Reset()
	c.held = 0
}
