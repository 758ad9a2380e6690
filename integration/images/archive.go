package images

import (
	"archive/tar"
	"bytes"
	"encoding/json"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A Layer is a layer of an Archive.
type Layer struct {
	MediaType   string
	Blob        []byte
	Annotations map[string]string // of its descriptor
}

// Archive returns an image as an OCI archive, which "ctr images import" takes. Equal arguments give equal bytes.
// Nothing checks that config has the diff IDs of the layers.
func Archive(name string, config ocispec.Image, layers ...Layer) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	put := func(name string, data []byte) error {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data)), ModTime: epoch}); err != nil {
			return err
		}
		_, err := w.Write(data)
		return err
	}
	blob := func(mediaType string, data []byte) (ocispec.Descriptor, error) {
		desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
		return desc, put("blobs/sha256/"+desc.Digest.Encoded(), data)
	}
	document := func(mediaType string, v any) (ocispec.Descriptor, error) {
		data, err := json.Marshal(v)
		if err != nil {
			return ocispec.Descriptor{}, err
		}
		return blob(mediaType, data)
	}
	manifest := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for _, l := range layers {
		desc, err := blob(l.MediaType, l.Blob)
		if err != nil {
			return nil, err
		}
		desc.Annotations = l.Annotations
		manifest.Layers = append(manifest.Layers, desc)
	}
	var err error
	if manifest.Config, err = document(ocispec.MediaTypeImageConfig, config); err != nil {
		return nil, err
	}
	desc, err := document(ocispec.MediaTypeImageManifest, manifest)
	if err != nil {
		return nil, err
	}
	desc.Annotations = map[string]string{images.AnnotationImageName: name}
	index, err := json.Marshal(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{desc},
	})
	if err != nil {
		return nil, err
	}
	if err := put(ocispec.ImageIndexFile, index); err != nil {
		return nil, err
	}
	if err := put(ocispec.ImageLayoutFile, []byte(`{"imageLayoutVersion":"`+ocispec.ImageLayoutVersion+`"}`)); err != nil {
		return nil, err
	}
	err = w.Close()
	return b.Bytes(), err
}
