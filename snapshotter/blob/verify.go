package blob

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/panics"
)

const (
	// readSize is the size of one read from a blob. Each read through containerd's content service is a call.
	readSize = 4 << 20
	// hashSize is the size of one read while a file is hashed.
	hashSize = 1 << 20
)

// A verifier computes the digest of a blob while the blob is read. It reads a file twice, the second time from the page
// cache, so that hashing does not hold up the decompressor. It reads other blobs once.
type verifier struct {
	ctx  context.Context //nolint:containedctx // a verifier lives as long as one Tar
	blob content.ReaderAt
	desc ocispec.Descriptor
	hash hash.Hash

	done   chan struct{} // closed when the file is hashed; nil before hashing starts
	err    error         // from hashing the file
	stream io.Reader     // reads a blob that is not a file, and hashes it
	once   sync.Once
	quit   chan struct{}
}

func newVerifier(ctx context.Context, blob content.ReaderAt, desc ocispec.Descriptor) (*verifier, error) {
	if desc.Size > 0 && blob.Size() != desc.Size {
		return nil, fmt.Errorf("blob has %d bytes, descriptor says %d: %w", blob.Size(), desc.Size, errdefs.ErrFailedPrecondition)
	}
	return &verifier{ctx: ctx, blob: blob, desc: desc, hash: desc.Digest.Algorithm().Hash(), quit: make(chan struct{})}, nil
}

// section returns a reader of the whole blob.
func (v *verifier) section() io.Reader {
	return contextReader{v.ctx, io.NewSectionReader(v.blob, 0, v.blob.Size())}
}

// head returns the first n bytes of the blob, or all of a shorter one.
func (v *verifier) head(n int) ([]byte, error) {
	b := make([]byte, min(int64(n), v.blob.Size()))
	if _, err := v.blob.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return b, nil
}

// reader starts to hash the blob, and returns a reader of all of it.
func (v *verifier) reader() io.Reader {
	if _, ok := v.blob.(*FileBlob); !ok {
		v.stream = io.TeeReader(newChunkReader(v.section(), v.blob.Size()), v.hash)
		return v.stream
	}
	v.startHash()
	return v.section()
}

// startHash starts to hash a file in the background.
func (v *verifier) startHash() {
	v.done = make(chan struct{})
	panics.Go(func() error {
		defer close(v.done)
		v.err = panics.Call(func() error {
			buf := make([]byte, bufferSize(hashSize, v.blob.Size()))
			_, err := io.CopyBuffer(struct{ io.Writer }{v.hash}, stopReader{v.section(), v.quit}, buf)
			return err
		})
		return nil
	})
}

// verify waits until the whole blob is hashed, and compares its digest with the descriptor.
func (v *verifier) verify() error {
	switch {
	case v.done != nil:
		<-v.done
		if v.err != nil {
			return fmt.Errorf("hash blob: %w", v.err)
		}
	case v.stream != nil:
		// A decompressor may stop before the end of the blob.
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

// stop ends hashing. The blob can be closed afterwards.
func (v *verifier) stop() {
	v.once.Do(func() { close(v.quit) })
	if v.done != nil {
		<-v.done
	}
}

// A contextReader fails once its context is done.
type contextReader struct {
	ctx context.Context //nolint:containedctx // Read has no context
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

// A chunkReader makes large reads, whatever the size of the reads from it.
type chunkReader struct {
	r    io.Reader
	buf  []byte
	rest []byte
	err  error
}

// newChunkReader returns a chunkReader of size bytes.
func newChunkReader(r io.Reader, size int64) *chunkReader {
	return &chunkReader{r: r, buf: make([]byte, bufferSize(readSize, size))}
}

// bufferSize returns the size of a buffer for size bytes, at most limit and never 0. Most layers are smaller than limit.
func bufferSize(limit, size int64) int64 { return max(1, min(limit, size)) }

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
