package blob

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A Tar is the plain tar of a layer's blob. It is for one goroutine.
type Tar struct {
	blob   Blob
	verify *verifier
	stream *tarStream
	cancel context.CancelFunc
}

// OpenTar begins to read the tar of the layer that desc describes. A blob that the source does not have is an
// errdefs.ErrNotFound, and a media type that is no layer's an errdefs.ErrNotImplemented. When ctx is done, reading fails.
func OpenTar(ctx context.Context, source Source, d *Decompressor, desc ocispec.Descriptor) (*Tar, error) {
	compressed, err := IsCompressed(desc.MediaType)
	if err != nil {
		return nil, err
	}
	if err := desc.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	return openTar(ctx, source, d, desc, compressed)
}

func openTar(ctx context.Context, source Source, d *Decompressor, desc ocispec.Descriptor, compressed bool) (_ *Tar, err error) {
	// Whatever ends the reading of the tar ends the decompressor and the reading of the blob too.
	ctx, cancel := context.WithCancel(ctx)
	t := &Tar{cancel: cancel}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.Close())
		}
	}()
	blob, err := source.Open(ctx, desc)
	if err != nil {
		return nil, fmt.Errorf("open blob: %w", err)
	}
	t.blob = blob
	if t.verify, err = newVerifier(ctx, blob, desc); err != nil {
		return nil, err
	}
	if t.stream, err = d.open(ctx, t.verify, compressed); err != nil {
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
