package blob

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// readSize is how much of a blob is read at once. Through containerd's content service each read is a call.
	readSize = 4 << 20
	// hashSize is how much of a file is hashed at once.
	hashSize = 1 << 20
)

// A verifier is a blob whose digest is computed while it is read. A file is read twice, the second time from the page
// cache, so that hashing does not hold up the decompressor; anything else once.
type verifier struct {
	ctx  context.Context //nolint:containedctx // of one Apply
	blob content.ReaderAt
	desc ocispec.Descriptor
	hash hash.Hash

	file   *os.File      // nil if the blob is not a file
	done   chan struct{} // closed when the file is hashed; nil if that was not begun
	err    error         // of hashing the file
	stream io.Reader     // blobs that are not files, through the hash
	once   sync.Once
	quit   chan struct{}
}

func newVerifier(ctx context.Context, blob content.ReaderAt, desc ocispec.Descriptor) (*verifier, error) {
	if desc.Size > 0 && blob.Size() != desc.Size {
		return nil, fmt.Errorf("blob has %d bytes, descriptor says %d: %w", blob.Size(), desc.Size, errdefs.ErrFailedPrecondition)
	}
	v := &verifier{ctx: ctx, blob: blob, desc: desc, hash: desc.Digest.Algorithm().Hash(), quit: make(chan struct{})}
	if f, ok := blob.(*FileBlob); ok {
		v.file = f.File
	}
	return v, nil
}

// section reads the blob from its beginning.
func (v *verifier) section() io.Reader {
	return contextReader{v.ctx, io.NewSectionReader(v.blob, 0, v.blob.Size())}
}

// head returns the first bytes of the blob, fewer than n only if it is shorter.
func (v *verifier) head(n int) ([]byte, error) {
	b := make([]byte, min(int64(n), v.blob.Size()))
	if _, err := v.blob.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return b, nil
}

// reader begins to hash the blob, and reads it from its beginning.
func (v *verifier) reader() io.Reader {
	if v.file == nil {
		v.stream = io.TeeReader(newChunkReader(v.section()), v.hash)
		return v.stream
	}
	v.startHash()
	return v.section()
}

// startHash begins to hash a file.
func (v *verifier) startHash() {
	v.done = make(chan struct{})
	go func() {
		defer close(v.done)
		buf := make([]byte, hashSize)
		_, v.err = io.CopyBuffer(struct{ io.Writer }{v.hash}, stopReader{v.section(), v.quit}, buf)
	}()
}

// verify waits until the whole blob is hashed and compares digests.
func (v *verifier) verify() error {
	switch {
	case v.done != nil:
		<-v.done
		if v.err != nil {
			return fmt.Errorf("hash blob: %w", v.err)
		}
	case v.stream != nil:
		// A decompressor may stop before the end.
		if _, err := io.Copy(io.Discard, v.stream); err != nil {
			return fmt.Errorf("hash blob: %w", err)
		}
	default:
		return errors.New("hash blob: not read")
	}
	if got := fmt.Sprintf("%x", v.hash.Sum(nil)); got != v.desc.Digest.Encoded() {
		return fmt.Errorf("blob has digest %s:%s, descriptor says %s: %w", v.desc.Digest.Algorithm(), got, v.desc.Digest,
			errdefs.ErrFailedPrecondition)
	}
	return nil
}

// stop ends hashing, if it is still running, before the blob is closed.
func (v *verifier) stop() {
	v.once.Do(func() { close(v.quit) })
	if v.done != nil {
		<-v.done
	}
}

// contextReader stops reading when the context is done.
type contextReader struct {
	ctx context.Context //nolint:containedctx // that is its purpose
	r   io.Reader
}

func (r contextReader) Read(b []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.r.Read(b)
}

var errStopped = errors.New("stopped")

type stopReader struct {
	r    io.Reader
	quit <-chan struct{}
}

func (r stopReader) Read(b []byte) (int, error) {
	select {
	case <-r.quit:
		return 0, errStopped
	default:
		return r.r.Read(b)
	}
}

// chunkReader reads in large pieces, whatever it is asked for.
type chunkReader struct {
	r    io.Reader
	buf  []byte
	rest []byte
	err  error
}

func newChunkReader(r io.Reader) *chunkReader { return &chunkReader{r: r, buf: make([]byte, readSize)} }

func (c *chunkReader) Read(b []byte) (int, error) {
	if len(c.rest) == 0 {
		if c.err != nil {
			return 0, c.err
		}
		var n int
		n, c.err = c.r.Read(c.buf)
		c.rest = c.buf[:n]
		if n == 0 {
			return 0, c.err
		}
	}
	n := copy(b, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}
