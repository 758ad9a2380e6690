// Package recipe encodes everything in a tar but the content of its files. A recipe and these contents give the tar
// again, byte for byte. The package knows neither layers nor objects: contents are indexes into a list of the caller.
//
// A recipe is part of the layer commit, whose checksum must be a function of the tar alone. Hence our own coding,
// instead of a compressor whose output changes between versions. docs/design/layer-format.md specifies it:
//
//	magic
//	operations   each a byte, and what follows it
//	table        for each opContent, in order: uvarint, index in the layer commit's sorted list of objects
//	offset       of the table, 8 bytes big-endian
//
// Blocks lie on the tar's own grid of 512 bytes: a block begins where the last operation ended, and reaches to the next
// multiple of 512. It is stored as its difference (XOR) to an earlier block, in runs: uvarint number of zero bytes,
// uvarint number of others, those bytes, and so on until the block is full. The headers of a tar are much alike, so
// little is left: 15 to 60 bytes a file.
package recipe

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"iter"
	"math"
	"math/bits"
)

const magic = "ostree-snapshotter tar 1\n"

// Operations. Those up to maxPredictor are blocks; the number is how many blocks back the predecessor is, 0 for a block
// of zeros. Only whole blocks count.
const (
	maxPredictor = 4
	opContent    = 5 // uvarint: that many bytes, all of the next object
	opShort      = 6 // uvarint: the next block ends after that many bytes
	opEnd        = 7
)

const (
	blockSize = 512

	// bufferSize is the size of writes of a tar.
	bufferSize = 256 << 10

	// minZeros is the number of zero bytes that ends a run of others: fewer are cheaper within the run.
	minZeros = 3
)

// A Writer makes the recipe of a tar, all of which it is told from the beginning to the end.
type Writer struct {
	dst io.Writer
	buf []byte // encoded but not written yet
	err error  // of dst

	offset  int64           // in the tar
	block   [blockSize]byte // incomplete; its bytes are at their place on the grid
	first   int             // where in it the last operation ended
	history history
	written int64 // bytes of the recipe
}

// flushSize is the size of writes of a recipe.
const flushSize = 64 << 10

// NewWriter returns a Writer of a recipe to dst. Errors of dst are returned unchanged.
func NewWriter(dst io.Writer) *Writer {
	return &Writer{dst: dst, buf: []byte(magic)}
}

// Record adds the next bytes of the tar to the recipe.
func (w *Writer) Record(p []byte) error {
	for len(p) > 0 {
		at := int(w.offset % blockSize)
		if at == 0 && len(p) >= blockSize {
			w.offset += blockSize
			w.whole((*[blockSize]byte)(p))
			p = p[blockSize:]
			continue
		}
		n := copy(w.block[at:], p)
		p = p[n:]
		w.offset += int64(n)
		if at+n == blockSize {
			w.endBlock(blockSize)
		}
	}
	return w.err
}

// Content leaves out the next size bytes of the tar, which are the content of a file.
func (w *Writer) Content(size int64) error {
	w.endShort()
	w.buf = append(w.buf, opContent)
	w.buf = binary.AppendUvarint(w.buf, uint64(size))
	w.offset += size
	w.first = int(w.offset % blockSize)
	return w.err
}

// endBlock encodes the block, which ends at a place on the grid.
func (w *Writer) endBlock(end int) {
	if end-w.first == blockSize {
		w.whole(&w.block)
		return
	}
	b := w.block[w.first:end]
	if end < blockSize {
		w.buf = append(w.buf, opShort)
		w.buf = binary.AppendUvarint(w.buf, uint64(len(b)))
	}
	w.buf = append(w.buf, 0)
	w.buf = appendRuns(w.buf, b)
	w.first = end % blockSize
	w.flush(flushSize)
}

// whole encodes a block that is whole.
func (w *Writer) whole(b *[blockSize]byte) {
	predictor := w.history.predict(b)
	w.buf = append(w.buf, byte(predictor))
	if predictor > 0 {
		diff := *b
		xor(&diff, w.history.at(predictor))
		w.buf = appendRuns(w.buf, diff[:])
	} else {
		w.buf = appendRuns(w.buf, b[:])
	}
	w.history.add(b)
	w.first = 0
	w.flush(flushSize)
}

// A history holds the last whole blocks.
type history struct {
	blocks [maxPredictor][blockSize]byte // a ring
	count  int                           // of all blocks so far
}

// at returns the block that is as many blocks back, which must not be more than there are.
func (h *history) at(back int) *[blockSize]byte { return &h.blocks[(h.count-back)%maxPredictor] }

// len returns the number of blocks that can be predictors.
func (h *history) len() int { return min(h.count, maxPredictor) }

func (h *history) add(b *[blockSize]byte) {
	h.blocks[h.count%maxPredictor] = *b
	h.count++
}

// predict returns the earlier block most like this one, as the lowest operation number among equals.
func (h *history) predict(b *[blockSize]byte) int {
	best, least := 0, differences(b, &zeroBlock, blockSize)
	for back := 1; back <= h.len(); back++ {
		if n := differences(b, h.at(back), least); n < least {
			best, least = back, n
		}
	}
	return best
}

var zeroBlock [blockSize]byte

// differences counts the 8-byte words that differ, up to about most.
func differences(a, b *[blockSize]byte, most int) (n int) {
	const step = 64
	for i := 0; i < blockSize && n < most; i += step {
		for j := i; j < i+step; j += 8 {
			if binary.NativeEndian.Uint64(a[j:]) != binary.NativeEndian.Uint64(b[j:]) {
				n++
			}
		}
	}
	return n
}

func xor(a, b *[blockSize]byte) {
	for i := 0; i < blockSize; i += 8 {
		binary.NativeEndian.PutUint64(a[i:], binary.NativeEndian.Uint64(a[i:])^binary.NativeEndian.Uint64(b[i:]))
	}
}

// appendRuns encodes mostly-zero bytes.
func appendRuns(dst, b []byte) []byte {
	for len(b) > 0 {
		zeros := zerosOf(b)
		dst = binary.AppendUvarint(dst, uint64(zeros))
		if b = b[zeros:]; len(b) == 0 {
			return dst
		}
		others := 1
		for others < len(b) {
			z := zerosOf(b[others:])
			if z >= minZeros || others+z == len(b) {
				break
			}
			others += z + 1
		}
		dst = binary.AppendUvarint(dst, uint64(others))
		dst = append(dst, b[:others]...)
		b = b[others:]
	}
	return dst
}

// zerosOf counts the leading zero bytes of b.
func zerosOf(b []byte) int {
	i := 0
	for ; i+8 <= len(b); i += 8 {
		if w := binary.LittleEndian.Uint64(b[i:]); w != 0 {
			return i + bits.TrailingZeros64(w)/8
		}
	}
	for i < len(b) && b[i] == 0 {
		i++
	}
	return i
}

// flush writes the encoded bytes if there are at least that many.
func (w *Writer) flush(least int) {
	if len(w.buf) < least || w.err != nil {
		return
	}
	var n int
	n, w.err = w.dst.Write(w.buf)
	w.written += int64(n)
	w.buf = w.buf[:0]
}

// endShort encodes the bytes of an incomplete block.
func (w *Writer) endShort() {
	if at := int(w.offset % blockSize); at > w.first {
		w.endBlock(at)
	}
}

// Finish is called at the end of the tar. The recipe then lacks only its table.
func (w *Writer) Finish() error {
	w.endShort()
	w.buf = append(w.buf, opEnd)
	w.flush(0)
	return w.err
}

// WriteTable ends the recipe, after Finish. indexes are those of the contents, in reading order.
func (w *Writer) WriteTable(indexes iter.Seq[int]) error {
	offset := w.written
	for i := range indexes {
		w.buf = binary.AppendUvarint(w.buf, uint64(i))
		w.flush(flushSize)
	}
	w.buf = binary.BigEndian.AppendUint64(w.buf, uint64(offset))
	w.flush(0)
	return w.err
}

// ErrMalformed reports a malformed recipe.
var ErrMalformed = errors.New("recipe of the tar is malformed")

// Cook writes the tar of a recipe of size bytes to w. content writes the content with the given index, exactly size
// bytes. A bad recipe is ErrMalformed; other errors are those of its reader, of w and of content. Cook takes constant
// memory.
func Cook(recipe io.ReaderAt, size int64, w io.Writer, content func(index int, size int64, w io.Writer) error) error {
	const trailer = 8
	var b [trailer]byte
	if size < int64(len(magic))+trailer {
		return ErrMalformed
	}
	if _, err := recipe.ReadAt(b[:], size-trailer); err != nil {
		return unexpected(err)
	}
	table := int64(binary.BigEndian.Uint64(b[:]))
	if table < int64(len(magic)) || table > size-trailer {
		return ErrMalformed
	}
	c := &cooking{
		ops:     bufio.NewReader(io.NewSectionReader(recipe, 0, table)),
		table:   bufio.NewReader(io.NewSectionReader(recipe, table, size-trailer-table)),
		w:       bufio.NewWriterSize(w, bufferSize),
		content: content,
	}
	if err := c.run(); err != nil {
		return err
	}
	return c.w.Flush()
}

// cooking is a tar being written.
type cooking struct {
	ops, table *bufio.Reader
	w          *bufio.Writer
	content    func(index int, size int64, w io.Writer) error

	offset  int64
	history history
}

func (c *cooking) run() error {
	begin := make([]byte, len(magic))
	if _, err := io.ReadFull(c.ops, begin); err != nil || string(begin) != magic {
		return ErrMalformed
	}
	for {
		op, err := c.ops.ReadByte()
		if err != nil {
			return unexpected(err)
		}
		rest := blockSize - int(c.offset%blockSize)
		switch op {
		case opEnd:
			return c.ended()
		case opContent:
			err = c.file()
		case opShort:
			err = c.short(rest)
		default:
			err = c.block(op, rest)
		}
		if err != nil {
			return unexpected(err)
		}
	}
}

// number reads a uvarint of at most limit.
func number(r *bufio.Reader, limit int64) (int64, error) {
	n, err := binary.ReadUvarint(r)
	if err != nil || n > uint64(limit) {
		return 0, errors.Join(ErrMalformed, err)
	}
	return int64(n), nil
}

// short writes a block that ends before its place on the grid.
func (c *cooking) short(rest int) error {
	n, err := number(c.ops, int64(rest-1))
	if err != nil {
		return err
	}
	predictor, err := c.ops.ReadByte()
	if err != nil {
		return err
	}
	return c.block(predictor, int(n))
}

// ended checks that both parts are used up.
func (c *cooking) ended() error {
	for _, r := range []*bufio.Reader{c.ops, c.table} {
		if _, err := r.ReadByte(); !errors.Is(err, io.EOF) {
			return errors.Join(ErrMalformed, err)
		}
	}
	return nil
}

// unexpected distinguishes a recipe that is too short from an error of the reader.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return ErrMalformed
	}
	return err
}

func (c *cooking) file() error {
	size, err := number(c.ops, math.MaxInt64-c.offset)
	if err != nil {
		return err
	}
	index, err := number(c.table, math.MaxInt32)
	if err != nil {
		return err
	}
	c.offset += size
	return c.content(int(index), size, c.w)
}

// block writes a block of n bytes.
func (c *cooking) block(predictor byte, n int) error {
	if int(predictor) > c.history.len() || predictor > 0 && n < blockSize {
		return ErrMalformed
	}
	var buf [blockSize]byte
	b := buf[:n]
	if err := c.runs(b); err != nil {
		return err
	}
	if predictor > 0 {
		xor(&buf, c.history.at(int(predictor)))
	}
	if n == blockSize {
		c.history.add(&buf)
	}
	c.offset += int64(n)
	_, err := c.w.Write(b)
	return err
}

// runs is the inverse of appendRuns. b must be zero.
func (c *cooking) runs(b []byte) error {
	for len(b) > 0 {
		zeros, err := number(c.ops, int64(len(b)))
		if err != nil {
			return err
		}
		if b = b[zeros:]; len(b) == 0 {
			return nil
		}
		others, err := number(c.ops, int64(len(b)))
		if err != nil {
			return err
		}
		if _, err := io.ReadFull(c.ops, b[:others]); err != nil {
			return err
		}
		b = b[others:]
	}
	return nil
}
