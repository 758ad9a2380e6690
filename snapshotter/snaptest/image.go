package snaptest

import (
	"bytes"
	"encoding/json"
	"runtime"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Images are the layers of three images: the base, and those of a [Fixture].
var Images = map[string][][]TarFile{
	"base": {BaseFiles},
	"a":    {BaseFiles, AFiles},
	"b":    {BaseFiles, BFiles},
}

// ImageBlobs gives put the blobs of an image for this machine, its layers compressed by gzip, and returns the descriptor
// of its manifest.
func ImageBlobs(
	put func(mediaType string, b []byte) (ocispec.Descriptor, error), layers [][]TarFile,
) (desc ocispec.Descriptor, err error) {
	manifest := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	config := ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH},
		RootFS:   ocispec.RootFS{Type: "layers"},
	}
	for _, files := range layers {
		b, err := MakeTar(files)
		if err != nil {
			return desc, err
		}
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(b))
		var z bytes.Buffer
		w := gzip.NewWriter(&z)
		if _, err := w.Write(b); err != nil {
			return desc, err
		}
		if err := w.Close(); err != nil {
			return desc, err
		}
		if desc, err = put(ocispec.MediaTypeImageLayerGzip, z.Bytes()); err != nil {
			return desc, err
		}
		manifest.Layers = append(manifest.Layers, desc)
	}
	b, err := json.Marshal(config)
	if err == nil {
		manifest.Config, err = put(ocispec.MediaTypeImageConfig, b)
	}
	if err == nil {
		b, err = json.Marshal(manifest)
	}
	if err != nil {
		return desc, err
	}
	return put(ocispec.MediaTypeImageManifest, b)
}
