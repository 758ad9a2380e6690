package blob

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
)

// gzipBuffer is the size of one read from a gzip blob.
const gzipBuffer = 64 << 10

// errAfterGzip is the error of a gzip blob that goes on after its last member with something other than zeros.
var errAfterGzip = errors.New("data after the last gzip member")

// A gzipReader reads the members of a gzip blob. Zeros after the last one are padding, as for gzip(1) and igzip; anything
// else is an errAfterGzip.
type gzipReader struct {
	buf *bufio.Reader
	z   *gzip.Reader
	err error // returned by further reads
}

func newGzipReader(r io.Reader) (*gzipReader, error) {
	buf := bufio.NewReaderSize(r, gzipBuffer)
	z, err := gzip.NewReader(buf) // it reads no further than the end of a member
	if err != nil {
		return nil, err
	}
	z.Multistream(false)
	return &gzipReader{buf: buf, z: z}, nil
}

func (r *gzipReader) Read(b []byte) (int, error) {
	for r.err == nil {
		n, err := r.z.Read(b)
		if errors.Is(err, io.EOF) {
			err = r.next()
		}
		r.err = err
		if n > 0 || len(b) == 0 {
			return n, nil
		}
	}
	return 0, r.err
}

// next begins the next member. The error is io.EOF if there is none.
func (r *gzipReader) next() error {
	first, err := r.buf.Peek(1)
	switch {
	case err != nil:
		return err
	case first[0] == 0:
		return r.padding()
	}
	head, err := r.buf.Peek(2)
	if err == nil && (head[0] != 0x1f || head[1] != 0x8b) {
		return errAfterGzip
	}
	switch err := r.z.Reset(r.buf); {
	case errors.Is(err, io.EOF):
		return io.ErrUnexpectedEOF
	case err != nil:
		return fmt.Errorf("read next gzip member: %w", err)
	}
	r.z.Multistream(false)
	return nil
}

// padding reads zeros to the end of the blob and returns io.EOF.
func (r *gzipReader) padding() error {
	for {
		b, err := r.buf.Peek(1)
		if err != nil {
			return err
		}
		if b[0] != 0 {
			return errAfterGzip
		}
		b, _ = r.buf.Peek(r.buf.Buffered()) // it is in the buffer
		n := 0
		for n < len(b) && b[n] == 0 {
			n++
		}
		if _, err := r.buf.Discard(n); err != nil {
			return err
		}
	}
}

// Close releases the decompressor.
func (r *gzipReader) Close() error { return r.z.Close() }
