// Package sha256x2 computes two SHA-256 sums of the same bytes in little more than the time of one.
//
// A processor's SHA-256 instruction takes its operands from the previous one, and has half of its time left while it
// waits for them. WriteBoth fills that half with the blocks of a second sum. The two need not have the same alignment:
// each reads the bytes at its own offset. Where the processor or the package has no such instructions, WriteBoth writes
// to one sum after the other.
package sha256x2

import (
	"crypto/fips140"
	"crypto/sha256"
	"encoding"
	"encoding/binary"
	"hash"
)

const (
	// minBlocks is the number of blocks from which on taking the states out of both sums and putting them back pays.
	minBlocks = 4
	// maxBlocks bounds the time in assembly, where a goroutine cannot be preempted.
	maxBlocks = 1024
)

type state [8]uint32

// blocks adds n > 0 blocks at p to a, and n at q to b. It is nil if this machine has no faster way than two passes.
var blocks func(a, b *state, p, q *byte, n int)

// Enabled reports whether WriteBoth is faster than two calls of Write.
func Enabled() bool { return blocks != nil }

// setBlocks sets blocks, unless crypto/sha256 encodes its state in another way than this package knows, or everything
// must be computed by Go's own module.
func setBlocks(f func(a, b *state, p, q *byte, n int)) {
	if !fips140.Enabled() && knownEncoding() {
		blocks = f
	}
}

// A Hash is a hash.Hash that computes a SHA-256 sum: crypto/sha256's, of which it knows how many bytes it has.
type Hash struct {
	sum interface {
		hash.Hash
		encoding.BinaryAppender
		encoding.BinaryUnmarshaler
	}
	size    uint64
	state   state
	encoded [encodedSize]byte
}

// The encoded state of crypto/sha256: the magic number, eight words, an incomplete block, the number of bytes.
const (
	magic       = "sha\x03"
	wordsAt     = len(magic)
	blockAt     = wordsAt + sha256.Size
	sizeAt      = blockAt + sha256.BlockSize
	encodedSize = sizeAt + 8
)

// knownEncoding reports whether crypto/sha256 encodes its state as this package expects. Later versions of Go may
// encode it in another way, though they will decode this one.
func knownEncoding() bool {
	h := New()
	h.write([]byte("abc"))
	b, err := h.sum.AppendBinary(nil)
	if err != nil || len(b) != encodedSize {
		return false
	}
	want := append([]byte(magic), 0x6a, 0x09, 0xe6, 0x67, 0xbb, 0x67, 0xae, 0x85, 0x3c, 0x6e, 0xf3, 0x72, 0xa5, 0x4f, 0xf5, 0x3a,
		0x51, 0x0e, 0x52, 0x7f, 0x9b, 0x05, 0x68, 0x8c, 0x1f, 0x83, 0xd9, 0xab, 0x5b, 0xe0, 0xcd, 0x19, 'a', 'b', 'c')
	return string(b[:len(want)]) == string(want) && binary.BigEndian.Uint64(b[sizeAt:]) == 3
}

// New returns the hash of nothing.
func New() *Hash {
	h := new(Hash)
	sum := sha256.New()
	// What sha256.New returns has had these methods since Go 1.24.
	h.sum = sum.(interface { //nolint:forcetypeassert // documented
		hash.Hash
		encoding.BinaryAppender
		encoding.BinaryUnmarshaler
	})
	return h
}

// Write implements io.Writer. It never returns an error.
func (h *Hash) Write(p []byte) (int, error) {
	h.write(p)
	return len(p), nil
}

func (h *Hash) write(p []byte) {
	h.size += uint64(len(p))
	h.sum.Write(p)
}

// Sum implements hash.Hash.
func (h *Hash) Sum(b []byte) []byte { return h.sum.Sum(b) }

// Reset implements hash.Hash.
func (h *Hash) Reset() {
	h.size = 0
	h.sum.Reset()
}

// Size implements hash.Hash.
func (h *Hash) Size() int { return sha256.Size }

// BlockSize implements hash.Hash.
func (h *Hash) BlockSize() int { return sha256.BlockSize }

// WriteBoth writes p to a and to b, which are not the same.
func WriteBoth(a, b *Hash, p []byte) {
	pa, pb := a.pad(p), b.pad(p)
	n := (len(p) - max(pa, pb)) / sha256.BlockSize
	if blocks == nil || n < minBlocks {
		a.write(p)
		b.write(p)
		return
	}
	a.take(p[:pa])
	b.take(p[:pb])
	p, q := p[pa:], p[pb:]
	for left := n; left > 0; {
		m := min(left, maxBlocks)
		blocks(&a.state, &b.state, &p[0], &q[0], m)
		p, q = p[m*sha256.BlockSize:], q[m*sha256.BlockSize:]
		left -= m
	}
	a.put(n, p)
	b.put(n, q)
}

// pad returns the number of bytes of p that complete a block.
func (h *Hash) pad(p []byte) int {
	return min(len(p), int(-h.size%sha256.BlockSize))
}

// take writes p, which completes a block, and takes the state out.
func (h *Hash) take(p []byte) {
	h.write(p)
	if _, err := h.sum.AppendBinary(h.encoded[:0]); err != nil {
		panic("sha256x2: encode state: " + err.Error())
	}
	for i := range h.state {
		h.state[i] = binary.BigEndian.Uint32(h.encoded[wordsAt+4*i:])
	}
}

// put puts the state back, to which n blocks were added, and writes p.
func (h *Hash) put(n int, p []byte) {
	for i, w := range h.state {
		binary.BigEndian.PutUint32(h.encoded[wordsAt+4*i:], w)
	}
	h.size += uint64(n) * sha256.BlockSize
	binary.BigEndian.PutUint64(h.encoded[sizeAt:], h.size)
	if err := h.sum.UnmarshalBinary(h.encoded[:]); err != nil {
		panic("sha256x2: decode state: " + err.Error())
	}
	h.write(p)
}
