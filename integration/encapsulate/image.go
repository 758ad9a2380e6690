package encapsulate

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/images"
)

// Image writes a commit, and layers on top of it, as an OCI layout into an empty directory, with the labels of the commit.
func (c *Commit) Image(dir string, o Options, derived ...Layer) (*images.Image, error) {
	layers := c.Layers(o)
	final := len(layers) - 1
	return Layout(dir, append(layers, derived...), func(diffIDs []digest.Digest) map[string]string {
		return c.Labels(diffIDs[final].String())
	})
}

// Layout writes layers as an OCI layout into an empty directory. label returns the labels of the image from the diff IDs of
// its layers.
func Layout(dir string, layers []Layer, label func(diffIDs []digest.Digest) map[string]string) (*images.Image, error) {
	w := layoutWriter{dir: dir}
	if err := w.write(layers, label); err != nil {
		return nil, fmt.Errorf("write layout: %w", err)
	}
	return images.Open(dir)
}

// Derive writes an image with more layers on top of those of another one, as an OCI layout into an empty directory. It keeps
// the labels, and shares the blobs.
func Derive(dir string, base *images.Image, layers ...Layer) (*images.Image, error) {
	w := layoutWriter{dir: dir}
	if err := w.addLayersOf(base); err != nil {
		return nil, fmt.Errorf("write layout: %w", err)
	}
	if err := w.write(layers, func([]digest.Digest) map[string]string { return base.Config.Config.Labels }); err != nil {
		return nil, fmt.Errorf("write layout: %w", err)
	}
	return images.Open(dir)
}

func (w *layoutWriter) addLayersOf(base *images.Image) error {
	if err := os.MkdirAll(w.blob(""), 0o755); err != nil {
		return err
	}
	for _, l := range base.Manifest.Layers {
		if err := os.Symlink(base.Blob(l.Digest), w.blob(l.Digest.Encoded())); err != nil {
			return err
		}
	}
	w.layers, w.diffIDs = slices.Clone(base.Manifest.Layers), slices.Clone(base.Config.RootFS.DiffIDs)
	return nil
}

// Blob returns a layer with the content of a file, which is a plain tar.
func Blob(name string) Layer {
	return func(w io.Writer) error {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		_, err = io.Copy(w, f)
		return errors.Join(err, f.Close())
	}
}

type layoutWriter struct {
	dir     string
	layers  []ocispec.Descriptor
	diffIDs []digest.Digest
}

func (w *layoutWriter) blob(name string) string { return filepath.Join(w.dir, "blobs/sha256", name) }

func (w *layoutWriter) write(layers []Layer, label func([]digest.Digest) map[string]string) error {
	if err := os.MkdirAll(w.blob(""), 0o755); err != nil {
		return err
	}
	for i, layer := range layers {
		if err := w.layer(layer); err != nil {
			return fmt.Errorf("layer %d: %w", i, err)
		}
	}
	labels := label(w.diffIDs)
	epoch := time.Unix(0, 0).UTC()
	config, err := w.document(ocispec.MediaTypeImageConfig, ocispec.Image{
		Created:  &epoch,
		Platform: ocispec.Platform{Architecture: runtime.GOARCH, OS: "linux"},
		Config:   ocispec.ImageConfig{Labels: labels, Cmd: []string{"/bin/sh"}},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: w.diffIDs},
	})
	if err != nil {
		return err
	}
	manifest, err := w.document(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: config, Layers: w.layers, Annotations: labels,
	})
	if err != nil {
		return err
	}
	index, err := json.Marshal(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{manifest},
	})
	if err != nil {
		return err
	}
	version := `{"imageLayoutVersion":"` + ocispec.ImageLayoutVersion + `"}`
	return errors.Join(
		os.WriteFile(filepath.Join(w.dir, ocispec.ImageLayoutFile), []byte(version), 0o644),
		os.WriteFile(filepath.Join(w.dir, ocispec.ImageIndexFile), index, 0o644),
	)
}

// layer writes a layer, compressed.
func (w *layoutWriter) layer(layer Layer) (err error) {
	f, err := os.CreateTemp(w.dir, "layer")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	blob, diffID := digest.Canonical.Digester(), digest.Canonical.Digester()
	out := bufio.NewWriterSize(io.MultiWriter(f, blob.Hash()), 1<<20)
	compressed, err := gzip.NewWriterLevel(out, gzip.BestSpeed)
	if err != nil {
		return err
	}
	if err := layer(io.MultiWriter(compressed, diffID.Hash())); err != nil {
		return err
	}
	if err := errors.Join(compressed.Close(), out.Flush()); err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: blob.Digest(), Size: st.Size()}
	w.layers, w.diffIDs = append(w.layers, desc), append(w.diffIDs, diffID.Digest())
	return errors.Join(f.Chmod(0o644), os.Rename(f.Name(), w.blob(desc.Digest.Encoded())))
}

// document writes a JSON blob.
func (w *layoutWriter) document(mediaType string, v any) (ocispec.Descriptor, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	return desc, os.WriteFile(w.blob(desc.Digest.Encoded()), b, 0o644)
}
