package images

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// UnsaidTimes returns the directories of the image whose modification time is not in any layer, sorted: the root
// directory, and directories for which the uppermost layer with files in them has no entry.
func (img *Image) UnsaidTimes() ([]string, error) {
	said := map[string]bool{".": false}
	for _, layer := range img.Manifest.Layers {
		entries, parents, err := img.directories(layer)
		if err != nil {
			return nil, fmt.Errorf("read layer %s: %w", layer.Digest, err)
		}
		for dir := range parents {
			said[dir] = entries[dir]
		}
		for dir := range entries {
			said[dir] = true
		}
	}
	said["."] = false
	var unsaid []string
	for dir, ok := range said {
		if !ok {
			unsaid = append(unsaid, dir)
		}
	}
	slices.Sort(unsaid)
	return unsaid, nil
}

// directories returns the directories that have an entry in a layer, and those of its files.
func (img *Image) directories(layer ocispec.Descriptor) (entries, parents map[string]bool, err error) {
	f, err := os.Open(img.Blob(layer.Digest))
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	plain, err := decompress(bufio.NewReaderSize(f, 1<<20), layer.MediaType)
	if err != nil {
		return nil, nil, err
	}
	defer plain.Close()
	entries, parents = make(map[string]bool), make(map[string]bool)
	for tr := tar.NewReader(plain); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return entries, parents, nil
		}
		if err != nil {
			return nil, nil, err
		}
		name := path.Clean(h.Name)
		if h.Typeflag == tar.TypeDir {
			entries[name] = true
		}
		for name != "." && name != "/" {
			name = path.Dir(name)
			parents[name] = true
		}
	}
}

func decompress(r io.Reader, mediaType string) (io.ReadCloser, error) {
	switch {
	case strings.HasSuffix(mediaType, "gzip"):
		return gzip.NewReader(r)
	case strings.HasSuffix(mediaType, "zstd"):
		dec, err := zstd.NewReader(r)
		if err != nil {
			return nil, err
		}
		return dec.IOReadCloser(), nil
	default:
		return io.NopCloser(r), nil
	}
}
