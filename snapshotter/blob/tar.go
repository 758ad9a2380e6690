package blob

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A Tar reads the plain tar of a layer's blob. It must not be used by several goroutines at once.
type Tar struct {
	blob   content.ReaderAt
	verify *verifier
	stream *tarStream
	cancel context.CancelFunc
}

// Open opens the blob that desc describes, and starts to decompress it. The media type decides whether the blob may be
// compressed; with an empty media type it may be. The first bytes of the blob tell the compression format.
//
// The error is an errdefs.ErrNotFound if the provider does not have the blob, an errdefs.ErrNotImplemented if the media
// type does not belong to a layer, and an errdefs.ErrFailedPrecondition if the blob's size is not the descriptor's.
// Reads fail once ctx is done.
func Open(ctx context.Context, provider content.Provider, desc ocispec.Descriptor) (_ *Tar, err error) {
	if desc.MediaType != "" {
		if err := CheckType(desc.MediaType); err != nil {
			return nil, err
		}
	}
	if err := desc.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	// Close cancels the context, which ends the decompressor and all reads from the blob.
	ctx, cancel := context.WithCancel(ctx)
	t := &Tar{cancel: cancel}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.Close())
		}
	}()
	blob, err := provider.ReaderAt(ctx, desc)
	if err != nil {
		return nil, fmt.Errorf("open blob: %w", err)
	}
	t.blob = blob
	if t.verify, err = newVerifier(ctx, blob, desc); err != nil {
		return nil, err
	}
	if t.stream, err = openStream(t.verify); err != nil {
		return nil, err
	}
	return t, nil
}

// Read returns io.EOF only if the whole blob was decompressed without error.
func (t *Tar) Read(b []byte) (int, error) { return t.stream.Read(b) }

// Accept checks, after everything was read, that the blob has the digest of its descriptor. diffID is the digest of the
// tar. A mismatch is an errdefs.ErrFailedPrecondition.
func (t *Tar) Accept(diffID digest.Digest) error { return t.stream.accept(diffID) }

// Close closes the blob, also before everything was read.
func (t *Tar) Close() error {
	defer t.cancel()
	if t.stream != nil && t.stream.close != nil {
		t.stream.close()
	}
	if t.verify != nil {
		t.verify.stop()
	}
	if t.blob != nil {
		return t.blob.Close()
	}
	return nil
}
