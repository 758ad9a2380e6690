package encapsulate

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Blobs take the blobs of an image.
type Blobs interface {
	// Blob writes a blob, whose content is what f writes.
	Blob(mediaType string, f func(io.Writer) error) (ocispec.Descriptor, error)
}

// Gzip is how layers are compressed: by klauspost/compress, in one stream each, so that the bytes depend on nothing else.
const (
	MinLevel     = gzip.BestSpeed
	MaxLevel     = gzip.BestCompression
	DefaultLevel = 6
)

// Write writes layers, compressed with a gzip level, and the documents that describe them. It returns the image's manifest,
// whose descriptor names the platform, and the blobs of the layers. Progress, which may be nil, is called with numbers of files.
// After an error the blobs that were written are garbage.
func (c *Commit) Write(
	ctx context.Context, blobs Blobs, layers []*Layer, level int, o Options, progress func(done, total int64),
) (manifest ocispec.Descriptor, written []Blob, err error) {
	var done int64
	for i, l := range layers {
		if progress != nil {
			l.progress = func(n int) {
				done += int64(n)
				progress(done, int64(len(c.Files)))
			}
		}
		b, err := l.write(ctx, blobs, level)
		if err != nil {
			return manifest, nil, fmt.Errorf("write layer %d: %w", i, err)
		}
		written = append(written, b)
	}
	img, err := c.Image(o, written)
	if err != nil {
		return manifest, nil, err
	}
	document := func(mediaType string, data []byte) (ocispec.Descriptor, error) {
		return blobs.Blob(mediaType, func(w io.Writer) error {
			_, err := w.Write(data)
			return err
		})
	}
	if _, err := document(ocispec.MediaTypeImageConfig, img.Config); err != nil {
		return manifest, nil, err
	}
	if manifest, err = document(ocispec.MediaTypeImageManifest, img.Manifest); err != nil {
		return manifest, nil, err
	}
	manifest.Platform = &o.Platform
	return manifest, written, nil
}

func (l *Layer) write(ctx context.Context, blobs Blobs, level int) (b Blob, err error) {
	diffID := digest.SHA256.Digester()
	b.Layer = l
	b.Descriptor, err = blobs.Blob(ocispec.MediaTypeImageLayerGzip, func(w io.Writer) error {
		z, err := gzip.NewWriterLevel(w, level)
		if err != nil {
			return err
		}
		return errors.Join(l.WriteTar(ctx, io.MultiWriter(z, diffID.Hash())), z.Close())
	})
	b.DiffID = diffID.Digest()
	return b, err
}
