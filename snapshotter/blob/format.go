package blob

import (
	"context"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A format is one way to compress a layer.
type format struct {
	mediaTypes []string // of layers that have it in their name
	detect     func(head []byte) bool
	open       func(ctx context.Context, d *Decompressor, v *verifier) (*tarStream, error) // accept is set by the caller
}

// formats are the ways to compress that are known. Which one a blob has is decided by its first bytes and not by its
// media type, as containerd does it.
var formats = []format{
	{
		mediaTypes: []string{
			ocispec.MediaTypeImageLayerGzip,
			"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
			images.MediaTypeDockerSchema2LayerGzip,
			images.MediaTypeDockerSchema2LayerForeignGzip,
		},
		detect: detects(compression.Gzip),
		open:   openGzip,
	},
	{
		mediaTypes: []string{
			ocispec.MediaTypeImageLayerZstd,
			"application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
			images.MediaTypeDockerSchema2LayerZstd,
		},
		detect: detects(compression.Zstd),
		open:   openZstd,
	},
}

var (
	// plainTypes are the media types of layers that are not compressed.
	plainTypes = []string{ocispec.MediaTypeImageLayer, "application/vnd.oci.image.layer.nondistributable.v1.tar"}
	// vagueTypes are those of layers that may be compressed in any way.
	vagueTypes = []string{images.MediaTypeDockerSchema2Layer, images.MediaTypeDockerSchema2LayerForeign}
)

// CheckType returns an errdefs.ErrNotImplemented if a media type is not that of a layer, or is that of an encrypted one.
func CheckType(mediaType string) error {
	named := func(f format) bool { return slices.Contains(f.mediaTypes, mediaType) }
	if IsTar(mediaType) || slices.Contains(vagueTypes, mediaType) || slices.ContainsFunc(formats, named) {
		return nil
	}
	return fmt.Errorf("media type %q: %w", mediaType, errdefs.ErrNotImplemented)
}

// IsTar reports whether blobs of a media type are never compressed, so that a blob's digest is that of its tar.
func IsTar(mediaType string) bool { return slices.Contains(plainTypes, mediaType) }

func detects(c compression.Compression) func([]byte) bool {
	return func(head []byte) bool { return compression.DetectCompression(head) == c }
}

const (
	// headSize is how much of a blob is looked at to find out its format.
	headSize = 512
	// zstdMaxWindow bounds the memory that a zstd frame can demand. It is what zstd(1) accepts without --long=31.
	zstdMaxWindow = 128 << 20
)

// open begins to decompress a blob. When ctx is done, reading fails.
func (d *Decompressor) open(ctx context.Context, v *verifier) (*tarStream, error) {
	if IsTar(v.desc.MediaType) {
		return openPlain(v), nil
	}
	head, err := v.head(headSize)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(formats, func(f format) bool { return f.detect(head) })
	if i < 0 {
		return openPlain(v), nil
	}
	s, err := formats[i].open(ctx, d, v)
	if err != nil {
		return nil, err
	}
	s.accept = func(digest.Digest) error { return v.verify() }
	return s, nil
}

func openGzip(ctx context.Context, d *Decompressor, v *verifier) (*tarStream, error) {
	ok, err := d.useIgzip(v)
	if err != nil {
		return nil, err
	}
	if ok {
		v.startHash()
		return startIgzip(ctx, d.igzip, v)
	}
	r, err := gzip.NewReader(v.reader())
	if err != nil {
		return nil, err
	}
	return &tarStream{Reader: r, name: "gzip", close: r.Close}, nil
}

func openZstd(_ context.Context, _ *Decompressor, v *verifier) (*tarStream, error) {
	r, err := zstd.NewReader(v.reader(), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(zstdMaxWindow))
	if err != nil {
		return nil, err
	}
	return &tarStream{Reader: r, name: "zstd", close: func() error { r.Close(); return nil }}, nil
}

// openPlain passes a blob that is not compressed through. Its digest is the diff ID, which the import computes anyway.
func openPlain(v *verifier) *tarStream {
	s := &tarStream{name: "none"}
	if v.desc.Digest.Algorithm() != digest.SHA256 {
		s.Reader = v.reader()
		s.accept = func(digest.Digest) error { return v.verify() }
		return s
	}
	s.Reader = newChunkReader(v.section())
	s.accept = func(diffID digest.Digest) error {
		if diffID != v.desc.Digest {
			return fmt.Errorf("blob has digest %s, descriptor says %s: %w", diffID, v.desc.Digest, errdefs.ErrFailedPrecondition)
		}
		return nil
	}
	return s
}
