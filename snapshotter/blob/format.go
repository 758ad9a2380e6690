package blob

import (
	"fmt"
	"io"
	"slices"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/inflate"
)

// A format is a compression format of layers.
type format struct {
	mediaTypes []string // that name the format
	detect     func(head []byte) bool
	open       func(v *verifier) (*tarStream, error) // the caller sets accept
}

// formats lists the known formats. Like containerd, we tell the format of a blob by its first bytes and not by its
// media type.
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
	// plainTypes are the media types of uncompressed layers.
	plainTypes = []string{ocispec.MediaTypeImageLayer, "application/vnd.oci.image.layer.nondistributable.v1.tar"}
	// vagueTypes are the media types of layers that may have any format, or none.
	vagueTypes = []string{images.MediaTypeDockerSchema2Layer, images.MediaTypeDockerSchema2LayerForeign}
)

// CheckType returns an errdefs.ErrNotImplemented for a media type that does not belong to a layer, or belongs to an
// encrypted one.
func CheckType(mediaType string) error {
	named := func(f format) bool { return slices.Contains(f.mediaTypes, mediaType) }
	if IsTar(mediaType) || slices.Contains(vagueTypes, mediaType) || slices.ContainsFunc(formats, named) {
		return nil
	}
	return fmt.Errorf("media type %q: %w", mediaType, errdefs.ErrNotImplemented)
}

// IsTar reports whether blobs of a media type are never compressed. The digest of such a blob is its diff ID.
func IsTar(mediaType string) bool { return slices.Contains(plainTypes, mediaType) }

func detects(c compression.Compression) func([]byte) bool {
	return func(head []byte) bool { return compression.DetectCompression(head) == c }
}

const (
	// headSize is the number of bytes that tell the format of a blob.
	headSize = 512
	// zstdMaxWindow bounds the memory that a zstd frame can demand. zstd(1) has the same limit without --long=31.
	zstdMaxWindow = 128 << 20
)

// A tarStream reads the plain tar of a blob. Read returns io.EOF only if the whole blob was decompressed without error.
type tarStream struct {
	io.Reader
	format string // gzip, zstd or none
	accept func(diffID digest.Digest) error
	close  func() // nil if there is nothing to do
}

// openStream starts to decompress a blob.
func openStream(v *verifier) (*tarStream, error) {
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
	s, err := formats[i].open(v)
	if err != nil {
		return nil, err
	}
	s.accept = func(digest.Digest) error { return v.verify() }
	return s, nil
}

func openGzip(v *verifier) (*tarStream, error) {
	return &tarStream{Reader: inflate.NewReader(v.reader()), format: "gzip"}, nil
}

func openZstd(v *verifier) (*tarStream, error) {
	r, err := zstd.NewReader(v.reader(), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(zstdMaxWindow))
	if err != nil {
		return nil, err
	}
	return &tarStream{Reader: r, format: "zstd", close: r.Close}, nil
}

// openPlain passes an uncompressed blob through. Its digest is the diff ID, which the import computes anyway.
func openPlain(v *verifier) *tarStream {
	s := &tarStream{format: "none"}
	if v.desc.Digest.Algorithm() != digest.SHA256 {
		s.Reader = v.reader()
		s.accept = func(digest.Digest) error { return v.verify() }
		return s
	}
	s.Reader = newChunkReader(v.section(), v.blob.Size())
	s.accept = func(diffID digest.Digest) error {
		if diffID != v.desc.Digest {
			return fmt.Errorf("blob has digest %s, descriptor says %s: %w", diffID, v.desc.Digest, errdefs.ErrFailedPrecondition)
		}
		return nil
	}
	return s
}
