// Package inflate decompresses gzip files.
//
// It is about twice as fast as Go's own decompressors. The tables are those of libdeflate: one look-up of up to 11 bits
// gives a symbol, its base value and the number of all its bits. Bits are taken from one 64-bit word, which is filled
// without a branch.
package inflate

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
)

var (
	// ErrCorrupt is the error of a file that is not gzip, or was damaged.
	ErrCorrupt = errors.New("corrupt gzip data")
	// ErrChecksum is the error of a member whose content has not the checksum or the length that the member says.
	ErrChecksum = errors.New("gzip member with a wrong checksum")
	// ErrTrailing is the error of a file that goes on after its last member with something other than zeros.
	ErrTrailing = errors.New("data after the last gzip member")
)

// Buffers are arrays of a power of two and a word. An index below the power is masked, so that the compiler needs no check
// of bounds in the inner loop; a wrong one would find wrong bytes of the same buffer.
const (
	word    = 8
	inMask  = 1<<16 - 1
	outMask = 1<<17 - 1

	window = 32 << 10 // how far back a match can begin
	// outSlack is the room behind outLimit: three literals and a match of the maximum length, which is copied in 16 bytes.
	outSlack = 3 + 258 + 16
	outLimit = outMask + 1 - outSlack

	// inSlack is the number of bytes that one round of the decoder may look at: two words, the second after the first.
	inSlack = 24
	// headerSize is more than a dynamic block's header can have: 17 bits, 19 lengths of 3 bits and 320 of at most 14.
	headerSize = 1 << 10
	inSize     = inMask + 1 - word - headerSize - 2*inSlack // of one read
)

// A Reader reads what the members of a gzip file contain, one after the other. Zeros after the last one are padding.
//
// Read returns io.EOF only if the whole file was read and is correct, io.ErrUnexpectedEOF for a file that ends too
// early, and the errors of the source.
type Reader struct {
	src    io.Reader
	srcErr error // io.EOF at its end, where zeros follow in[end]
	in     [inMask + 1 + word]byte
	pos    int // of the next byte for bits
	end    int
	bits   uint64 // the next bits; those above the first n may be set as well, to what they will be
	n      uint   // at most 63

	out     [outMask + 1 + word]byte
	read    int // out[read:write] are what Read returns next
	write   int
	start   int // of the present member, or of what is left of it
	summed  int // of what is in the member's checksum
	sum     uint32
	size    uint32
	next    func(*Reader) error // goes on, until out is full at the most
	stored  int                 // bytes left in a block that is not compressed
	last    bool                // the member has no further blocks
	err     error
	lengths [maxLit + maxDist]uint8

	pre  [1 << preBits]uint32
	lit  [1 << 12]uint32
	dist [1 << 10]uint32

	isFixed bool // lit and dist are those of the fixed codes
}

// NewReader returns a Reader of a file. It reads from src in large pieces, and more than it needs.
func NewReader(src io.Reader) *Reader {
	return &Reader{src: src, next: (*Reader).header}
}

// Read implements io.Reader.
func (r *Reader) Read(p []byte) (int, error) {
	if r.read == r.write && len(p) > 0 {
		if r.err == nil {
			r.err = r.fill()
		}
		if r.read == r.write {
			return 0, r.err
		}
	}
	n := copy(p, r.out[r.read:r.write])
	r.read += n
	return n, nil
}

// fill decodes until out is full. On an error, what was decoded before is there to be read.
func (r *Reader) fill() error {
	if left := r.write - window; left > 0 {
		copy(r.out[:window], r.out[left:r.write])
		r.write, r.read = window, window
		r.start = max(0, r.start-left)
	}
	r.summed = r.write
	for r.write < outLimit {
		if err := r.next(r); err != nil {
			return err
		}
	}
	r.checksum()
	return nil
}

func (r *Reader) checksum() {
	b := r.out[r.summed:r.write]
	r.sum = crc32.Update(r.sum, crc32.IEEETable, b)
	r.size += uint32(len(b))
	r.summed = r.write
}

// need reads until there are n bytes of input, or all of it.
func (r *Reader) need(n int) error {
	if r.end-r.pos >= n {
		return nil
	}
	if r.srcErr == nil {
		r.srcErr = r.more(n)
	}
	if errors.Is(r.srcErr, io.EOF) {
		return nil
	}
	return r.srcErr
}

// more reads until there are n bytes of input. Behind the end of the source it puts zeros.
func (r *Reader) more(n int) error {
	back := int(r.n >> 3) // whole bytes in bits, which align may return
	r.end = copy(r.in[:], r.in[r.pos-back:r.end])
	r.pos = back
	for empty := 0; r.end < r.pos+n; {
		m, err := r.src.Read(r.in[r.end : r.end+inSize])
		r.end += m
		if err == nil {
			if empty++; m > 0 {
				empty = 0
			} else if empty == 100 {
				err = io.ErrNoProgress
			}
		}
		if err != nil {
			clear(r.in[r.end : r.end+2*inSlack])
			return err
		}
	}
	return nil
}

// ended returns the error of input that ends too early.
func (r *Reader) ended() error {
	if errors.Is(r.srcErr, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return r.srcErr
}

// refill makes n at least 56. Behind the end of the input are zeros.
func (r *Reader) refill() {
	if r.pos <= r.end+inSlack {
		r.bits |= loadIn(&r.in, r.pos) << (r.n & 63)
		r.pos += int((63 - r.n) >> 3)
	}
	r.n |= 56
}

// take takes up to 32 bits.
func (r *Reader) take(n uint) uint32 {
	if r.n < n {
		r.refill()
	}
	v := uint32(r.bits & (1<<n - 1))
	r.bits >>= n & 63
	r.n -= n
	return v
}

// overrun reports whether more bits were taken than there are.
func (r *Reader) overrun() bool { return r.pos-int(r.n>>3) > r.end }

// corrupt returns the error of bits without a meaning: if the input ends with them, they are just not all there.
func (r *Reader) corrupt() error {
	const longest = 2 // bytes of a code
	if r.srcErr != nil && r.pos-int(r.n>>3)+longest > r.end {
		return r.ended()
	}
	return ErrCorrupt
}

// align gives up the bits up to the next byte, and returns whole bytes to the input.
func (r *Reader) align() error {
	if r.overrun() {
		return r.ended()
	}
	r.pos -= int(r.n >> 3)
	r.bits, r.n = 0, 0
	return nil
}

// byte reads a byte. Call it after align.
func (r *Reader) byte() (byte, error) {
	if r.pos == r.end {
		if err := r.need(1); err != nil {
			return 0, err
		}
		if r.pos == r.end {
			return 0, r.ended()
		}
	}
	r.pos++
	return r.in[r.pos-1], nil
}

// Flags of a member's header.
const (
	flagSum     = 1 << 1
	flagExtra   = 1 << 2
	flagName    = 1 << 3
	flagComment = 1 << 4

	maxString = 512 // of name and comment, as in Go's gzip
)

// header reads the header of a member.
func (r *Reader) header() error {
	var sum uint32
	next := func() (byte, error) {
		b, err := r.byte()
		sum = crc32.Update(sum, crc32.IEEETable, []byte{b})
		return b, err
	}
	var head [10]byte
	for i := range head {
		b, err := next()
		if err != nil {
			return err
		}
		head[i] = b
	}
	if head[0] != 0x1f || head[1] != 0x8b || head[2] != 8 {
		return ErrCorrupt
	}
	if head[3]&flagExtra != 0 {
		low, err := next()
		if err != nil {
			return err
		}
		high, err := next()
		if err != nil {
			return err
		}
		for range int(high)<<8 | int(low) {
			if _, err := next(); err != nil {
				return err
			}
		}
	}
	for _, flag := range []byte{flagName, flagComment} {
		if head[3]&flag == 0 {
			continue
		}
		for i := 0; ; i++ {
			if i == maxString {
				return ErrCorrupt
			}
			b, err := next()
			if err != nil {
				return err
			}
			if b == 0 {
				break
			}
		}
	}
	if head[3]&flagSum != 0 {
		want := uint16(sum)
		low, err := r.byte()
		if err != nil {
			return err
		}
		high, err := r.byte()
		if err != nil {
			return err
		}
		if uint16(high)<<8|uint16(low) != want {
			return ErrCorrupt
		}
	}
	r.start, r.summed = r.write, r.write
	r.sum, r.size = 0, 0
	r.next = (*Reader).block
	return nil
}

// trailer reads and checks what follows the last block of a member.
func (r *Reader) trailer() error {
	if err := r.align(); err != nil {
		return err
	}
	var b [8]byte
	for i := range b {
		var err error
		if b[i], err = r.byte(); err != nil {
			return err
		}
	}
	r.checksum()
	if binary.LittleEndian.Uint32(b[:]) != r.sum || binary.LittleEndian.Uint32(b[4:]) != r.size {
		return ErrChecksum
	}
	r.next = (*Reader).member
	return nil
}

// member begins the next member. The error is io.EOF if there is none.
func (r *Reader) member() error {
	if err := r.need(2); err != nil {
		return err
	}
	switch b := r.in[r.pos:r.end]; {
	case len(b) == 0:
		return r.srcErr
	case b[0] == 0:
		r.next = (*Reader).padding
	case len(b) > 1 && (b[0] != 0x1f || b[1] != 0x8b):
		return ErrTrailing
	default:
		r.next = (*Reader).header
	}
	return nil
}

// padding reads zeros to the end of the file.
func (r *Reader) padding() error {
	for _, b := range r.in[r.pos:r.end] {
		if b != 0 {
			return ErrTrailing
		}
	}
	r.pos = r.end
	if err := r.need(1); err != nil {
		return err
	}
	if r.pos == r.end {
		return r.srcErr
	}
	return nil
}

// block reads the header of a block.
func (r *Reader) block() error {
	if r.last {
		r.last = false
		r.next = (*Reader).trailer
		return nil
	}
	if err := r.need(headerSize); err != nil {
		return err
	}
	r.last = r.take(1) == 1
	var err error
	switch r.take(2) {
	case 0:
		err = r.storedHeader()
		r.next = (*Reader).copyStored
	case 1:
		r.fixed()
		r.next = (*Reader).decode
	case 2:
		err = r.dynamic()
		r.next = (*Reader).decode
	default:
		err = r.corrupt()
	}
	if err == nil && r.overrun() {
		err = r.ended()
	}
	return err
}

func (r *Reader) storedHeader() error {
	if err := r.align(); err != nil {
		return err
	}
	var b [4]byte
	for i := range b {
		var err error
		if b[i], err = r.byte(); err != nil {
			return err
		}
	}
	n := binary.LittleEndian.Uint16(b[:])
	if binary.LittleEndian.Uint16(b[2:]) != ^n {
		return ErrCorrupt
	}
	r.stored = int(n)
	return nil
}

// copyStored copies a block that is not compressed.
func (r *Reader) copyStored() error {
	if r.stored == 0 {
		r.next = (*Reader).block
		return nil
	}
	if err := r.need(1); err != nil {
		return err
	}
	if r.pos == r.end {
		return r.ended()
	}
	n := copy(r.out[r.write:outLimit], r.in[r.pos:min(r.end, r.pos+r.stored)])
	r.pos += n
	r.write += n
	r.stored -= n
	return nil
}
