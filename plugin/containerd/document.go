package containerd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// MaxDocument bounds the size of an index, manifest or config. containerd pulls no larger ones.
const MaxDocument = 4 << 20

// documents provides the indexes, manifests and configs of images. Documents larger than [MaxDocument], with another
// digest than their descriptor's, or in another encoding than UTF-8 are errors. All errors are a [DocumentError].
type documents struct{ content.Provider }

// ReaderAt reads a document into memory.
func (d documents) ReaderAt(ctx context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	b, err := d.read(ctx, desc)
	if err != nil {
		return nil, documentError(desc, err)
	}
	return document{bytes.NewReader(b)}, nil
}

func (d documents) read(ctx context.Context, desc ocispec.Descriptor) (_ []byte, err error) {
	if err := desc.Digest.Validate(); err != nil {
		return nil, err
	}
	ra, err := d.Provider.ReaderAt(ctx, desc)
	if err != nil {
		return nil, readError{err}
	}
	defer func() { err = errors.Join(err, ra.Close()) }()
	if ra.Size() > MaxDocument {
		return nil, fmt.Errorf("%d bytes, at most %d are read", ra.Size(), MaxDocument)
	}
	b := make([]byte, ra.Size())
	if _, err := io.ReadFull(content.NewReader(ra), b); err != nil {
		return nil, readError{err}
	}
	if desc.Digest.Algorithm().FromBytes(b) != desc.Digest {
		return nil, fmt.Errorf("its content has another digest: %w", objectstore.ErrCorrupt)
	}
	if !utf8.Valid(b) {
		return nil, errors.New("not UTF-8")
	}
	return b, nil
}

type document struct{ *bytes.Reader }

func (document) Close() error { return nil }

// A DocumentError reports an index, manifest or config that cannot be read or decoded.
type DocumentError struct {
	Kind   string // index, manifest or config
	Digest digest.Digest
	Err    error
}

func (e *DocumentError) Error() string {
	if e.Digest.Validate() != nil {
		return fmt.Sprintf("%s %q: %v", e.Kind, e.Digest, e.Err)
	}
	return fmt.Sprintf("%s %s: %v", e.Kind, e.Digest, e.Err)
}

func (e *DocumentError) Unwrap() error { return e.Err }

// documentError returns err as a DocumentError about desc, unless it is one already.
func documentError(desc ocispec.Descriptor, err error) error {
	var known *DocumentError
	if errors.As(err, &known) {
		return err
	}
	kind := "config"
	switch {
	case images.IsIndexType(desc.MediaType):
		kind = "index"
	case images.IsManifestType(desc.MediaType):
		kind = "manifest"
	}
	return &DocumentError{Kind: kind, Digest: desc.Digest, Err: err}
}

// A readError is an error of the provider, as opposed to one in the document.
type readError struct{ error }

func (e readError) Unwrap() error { return e.error }

// isUnusable reports whether a document is absent or invalid. After other errors, nothing is known about the document.
func isUnusable(err error) bool {
	var doc *DocumentError
	var read readError
	if !errors.As(err, &doc) {
		return false
	}
	return !errors.As(doc.Err, &read) || errdefs.IsNotFound(read) || errdefs.IsInvalidArgument(read)
}
