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

// A Tar is the plain tar of a layer's blob. It is for one goroutine.
type Tar struct {
	blob   content.ReaderAt
	verify *verifier
	stream *tarStream
	cancel context.CancelFunc
}

// Open begins to read the tar of the layer's blob that desc describes. Its media type decides whether the blob may be
// compressed; with an empty one, any blob may be. What it is compressed with is found out from its first bytes.
//
// A blob that the provider does not have is an errdefs.ErrNotFound, a media type that is not a layer's an
// errdefs.ErrNotImplemented, and a size that is not the descriptor's an errdefs.ErrFailedPrecondition. When ctx is done,
// reading fails.
func Open(ctx context.Context, provider content.Provider, d *Decompressor, desc ocispec.Descriptor) (_ *Tar, err error) {
	if desc.MediaType != "" {
		if err := CheckType(desc.MediaType); err != nil {
			return nil, err
		}
	}
	if err := desc.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	// Whatever ends the reading of the tar ends the decompressor and the reading of the blob too.
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
	if t.stream, err = d.open(ctx, t.verify); err != nil {
		return nil, err
	}
	return t, nil
}

// Read returns io.EOF only if the blob was decompressed without complaint to its end.
func (t *Tar) Read(b []byte) (int, error) { return t.stream.Read(b) }

// Accept says, when everything has been read, whether the blob has the digest that its descriptor names. diffID is the
// digest of what was read.
func (t *Tar) Accept(diffID digest.Digest) error { return t.stream.accept(diffID) }

// Close ends reading, whether or not everything was read.
func (t *Tar) Close() error {
	defer t.cancel()
	var err error
	if t.stream != nil {
		err = t.stream.Close()
	}
	if t.verify != nil {
		t.verify.stop()
	}
	if t.blob != nil {
		err = errors.Join(err, t.blob.Close())
	}
	return err
}
