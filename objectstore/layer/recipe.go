package layer

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// A recipe is all of a tar but the content of its files: with the objects of the layer, it gives the tar again, byte for
// byte. It is part of the layer commit, whose checksum must be a function of the tar alone; so the coding is our own, and
// not that of a compressor whose output changes from one version to the next. docs/design/layer-format.md specifies it:
//
//	magic
//	operations   each a byte, and what follows it
//	table        for each opContent, in order: uvarint, index in the layer commit's sorted list of objects
//	offset       of the table, 8 bytes big-endian
//
// Blocks lie on the tar's own grid of 512 bytes: one begins where the last operation has ended, and reaches to the next
// multiple of 512. A block is stored as its difference (XOR) to an earlier one, in runs: uvarint number of zero bytes,
// uvarint number of others, those bytes, and so on until the block is full. Headers of one tar are much alike, so that
// little is left: 15 to 60 bytes for a file.
const recipeMagic = "ostree-snapshotter tar 1\n"

// Operations. Those up to maxPredictor are blocks, and say how many blocks back the one is that they are a difference to;
// 0 is a block of zeros. Only whole blocks count.
const (
	maxPredictor = 4
	opContent    = 5 // uvarint: so many bytes, all of the next object
	opShort      = 6 // uvarint: the next block ends after so many bytes
	opEnd        = 7
)

const (
	tarBlock = 512

	// minZeros is how many zero bytes end a run of others: fewer are cheaper as a part of it.
	minZeros = 3
)

// A recipeWriter is an io.Reader over a tar that writes down what is read from it, unless that is a file's content.
type recipeWriter struct {
	src io.Reader
	dst io.Writer
	buf []byte // encoded and not written yet
	err error  // of dst

	offset  int64            // in the tar
	block   [tarBlock]byte   // the one that is being read; its bytes are at their place on the grid
	first   int              // where in it the last operation has ended
	history [][tarBlock]byte // the last whole blocks, the latest first
	written int64            // bytes of the recipe

	content bool     // what is read is a file's content
	files   []*inode // whose content was read, in order
}

const recipeBuffer = 64 << 10

func newRecipeWriter(src io.Reader, dst io.Writer) *recipeWriter {
	return &recipeWriter{src: src, dst: dst, buf: []byte(recipeMagic)}
}

// Read implements io.Reader.
func (w *recipeWriter) Read(p []byte) (int, error) {
	n, err := w.src.Read(p)
	if w.content {
		w.offset += int64(n)
	} else {
		w.record(p[:n])
	}
	if w.err != nil {
		return 0, &storeError{w.err}
	}
	return n, err
}

func (w *recipeWriter) record(p []byte) {
	for len(p) > 0 {
		at := int(w.offset % tarBlock)
		n := copy(w.block[at:], p)
		p = p[n:]
		w.offset += int64(n)
		if at+n == tarBlock {
			w.endBlock(tarBlock)
		}
	}
}

// endBlock encodes the block, which ends at a place on the grid.
func (w *recipeWriter) endBlock(end int) {
	b := w.block[w.first:end]
	if end < tarBlock {
		w.buf = append(w.buf, opShort)
		w.buf = binary.AppendUvarint(w.buf, uint64(len(b)))
	}
	predictor := 0
	if len(b) == tarBlock {
		predictor = w.predict()
	}
	w.buf = append(w.buf, byte(predictor))
	if predictor > 0 {
		diff := w.block
		xor(&diff, &w.history[predictor-1])
		w.buf = appendRuns(w.buf, diff[:])
	} else {
		w.buf = appendRuns(w.buf, b)
	}
	if len(b) == tarBlock {
		w.history = remember(w.history, &w.block)
	}
	w.first = end % tarBlock
	w.flush(recipeBuffer)
}

// predict returns which earlier block is most like this one, the earliest operation of those that are equally so.
func (w *recipeWriter) predict() int {
	best, least := 0, differences(&w.block, &zeroBlock)
	for i := range w.history {
		if n := differences(&w.block, &w.history[i]); n < least {
			best, least = i+1, n
		}
	}
	return best
}

var zeroBlock [tarBlock]byte

// differences counts the 8-byte words that differ.
func differences(a, b *[tarBlock]byte) (n int) {
	for i := 0; i < tarBlock; i += 8 {
		if binary.NativeEndian.Uint64(a[i:]) != binary.NativeEndian.Uint64(b[i:]) {
			n++
		}
	}
	return n
}

func xor(a, b *[tarBlock]byte) {
	for i := range a {
		a[i] ^= b[i]
	}
}

// remember puts a block at the front of a history.
func remember(history [][tarBlock]byte, b *[tarBlock]byte) [][tarBlock]byte {
	if len(history) < maxPredictor {
		history = append(history, [tarBlock]byte{})
	}
	copy(history[1:], history)
	history[0] = *b
	return history
}

// appendRuns encodes bytes of which most are zero.
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

// zerosOf counts the zero bytes that b begins with.
func zerosOf(b []byte) int {
	for i, c := range b {
		if c != 0 {
			return i
		}
	}
	return len(b)
}

// flush writes what is encoded if it is that much.
func (w *recipeWriter) flush(least int) {
	if len(w.buf) < least || w.err != nil {
		return
	}
	var n int
	n, w.err = w.dst.Write(w.buf)
	w.written += int64(n)
	w.buf = w.buf[:0]
}

// beginContent says that what is read from now on is the content of a file.
func (w *recipeWriter) beginContent() {
	w.endShort()
	w.content = true
}

// endContent says that all of it was read.
func (w *recipeWriter) endContent(n *inode) {
	w.content = false
	w.files = append(w.files, n)
	w.buf = append(w.buf, opContent)
	w.buf = binary.AppendUvarint(w.buf, uint64(n.Size))
	w.first = int(w.offset % tarBlock)
}

// endShort encodes what there is of a block.
func (w *recipeWriter) endShort() {
	if at := int(w.offset % tarBlock); at > w.first {
		w.endBlock(at)
	}
}

// finish reads the rest of the source. After it, the recipe lacks nothing but its table.
func (w *recipeWriter) finish() error {
	buf := make([]byte, blockSize)
	if _, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{w}, buf); err != nil {
		return err
	}
	w.endShort()
	w.buf = append(w.buf, opEnd)
	w.flush(0)
	return w.err
}

// withObjects adds the objects that the recipe needs to those that the layer's image does: they are those of files that a
// later entry of the tar has replaced. The list is sorted.
func (w *recipeWriter) withObjects(objects []objectstore.Checksum) []objectstore.Checksum {
	for _, n := range w.files {
		objects = append(objects, n.sum)
	}
	slices.SortFunc(objects, compareSums)
	return slices.Compact(objects)
}

// writeTable ends the recipe. index tells which of the layer commit's objects one is.
func (w *recipeWriter) writeTable(index func(objectstore.Checksum) int) error {
	offset := w.written
	for _, n := range w.files {
		w.buf = binary.AppendUvarint(w.buf, uint64(index(n.sum)))
		w.flush(recipeBuffer)
	}
	w.buf = binary.BigEndian.AppendUint64(w.buf, uint64(offset))
	w.flush(0)
	return w.err
}

var errRecipe = fmt.Errorf("recipe of the tar is malformed: %w", objectstore.ErrCorrupt)

// cook writes the tar that a recipe of a given size describes. content has the bytes of one of the layer's objects
// written, of which there must be as many as it is told. What is wrong with the recipe is an ErrCorrupt. It takes
// constant memory.
func cook(recipe io.ReaderAt, size int64, w io.Writer, content func(index int, size int64, w io.Writer) error) error {
	const trailer = 8
	var b [trailer]byte
	if size < int64(len(recipeMagic))+trailer {
		return errRecipe
	}
	if _, err := recipe.ReadAt(b[:], size-trailer); err != nil {
		return unexpected(err)
	}
	table := int64(binary.BigEndian.Uint64(b[:]))
	if table < int64(len(recipeMagic)) || table > size-trailer {
		return errRecipe
	}
	c := &cooking{
		ops:     bufio.NewReader(io.NewSectionReader(recipe, 0, table)),
		table:   bufio.NewReader(io.NewSectionReader(recipe, table, size-trailer-table)),
		w:       bufio.NewWriterSize(w, blockSize),
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
	history [][tarBlock]byte
}

func (c *cooking) run() error {
	magic := make([]byte, len(recipeMagic))
	if _, err := io.ReadFull(c.ops, magic); err != nil || string(magic) != recipeMagic {
		return errRecipe
	}
	for {
		op, err := c.ops.ReadByte()
		if err != nil {
			return unexpected(err)
		}
		rest := tarBlock - int(c.offset%tarBlock)
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

// number reads a uvarint that is at most limit.
func number(r *bufio.Reader, limit int64) (int64, error) {
	n, err := binary.ReadUvarint(r)
	if err != nil || n > uint64(limit) {
		return 0, errors.Join(errRecipe, err)
	}
	return int64(n), nil
}

// short writes a block that ends before the grid says so.
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

// ended checks that both parts were used up.
func (c *cooking) ended() error {
	for _, r := range []*bufio.Reader{c.ops, c.table} {
		if _, err := r.ReadByte(); !errors.Is(err, io.EOF) {
			return errors.Join(errRecipe, err)
		}
	}
	return nil
}

// unexpected tells a recipe that is too short from an error of the reader.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errRecipe
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
	if int(predictor) > len(c.history) || predictor > 0 && n < tarBlock {
		return errRecipe
	}
	var buf [tarBlock]byte
	b := buf[:n]
	if err := c.runs(b); err != nil {
		return err
	}
	if predictor > 0 {
		xor(&buf, &c.history[predictor-1])
	}
	if n == tarBlock {
		c.history = remember(c.history, &buf)
	}
	c.offset += int64(n)
	_, err := c.w.Write(b)
	return err
}

// runs is the inverse of appendRuns; b is zero.
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
