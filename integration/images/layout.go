package images

import (
	"archive/tar"
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Media types of Docker's image format, schema 2.
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
	dockerLayer    = "application/vnd.docker.image.rootfs.diff.tar.gzip"
)

// types returns the media types of an image's manifest, config and layers.
func (m media) types() (manifest, config, layer string) {
	switch m {
	case dockerGzip:
		return dockerManifest, dockerConfig, dockerLayer
	case ociZstd:
		return ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageConfig, ocispec.MediaTypeImageLayerZstd
	case ociTar:
		return ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageConfig, ocispec.MediaTypeImageLayer
	default:
		return ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageConfig, ocispec.MediaTypeImageLayerGzip
	}
}

// compressor returns the writer that compresses a layer.
func (m media) compressor(w io.Writer) (io.WriteCloser, error) {
	switch m {
	case ociZstd:
		return zstd.NewWriter(w)
	case ociTar:
		return nopCloser{w}, nil
	default:
		return gzip.NewWriter(w), nil
	}
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// A layoutWriter writes an image of one platform as an OCI layout.
type layoutWriter struct {
	dir     string
	media   media
	layers  []ocispec.Descriptor
	diffIDs []digest.Digest
}

func newLayoutWriter(dir string, m media) (*layoutWriter, error) {
	w := &layoutWriter{dir: dir, media: m}
	if err := os.MkdirAll(w.blob(""), 0o755); err != nil {
		return nil, fmt.Errorf("make layout: %w", err)
	}
	return w, nil
}

func (w *layoutWriter) blob(hex string) string { return filepath.Join(w.dir, "blobs/sha256", hex) }

// addLayer adds a layer written by fill.
func (w *layoutWriter) addLayer(fill func(*layerWriter)) (err error) {
	f, err := os.CreateTemp(w.dir, "layer")
	if err != nil {
		return fmt.Errorf("write layer: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	diffID, blob := digest.Canonical.Digester(), digest.Canonical.Digester()
	buf := bufio.NewWriterSize(io.MultiWriter(f, blob.Hash()), 1<<20)
	comp, err := w.media.compressor(buf)
	if err != nil {
		return fmt.Errorf("compress layer: %w", err)
	}
	plain := io.MultiWriter(comp, diffID.Hash())
	l := &layerWriter{w: plain, tw: tar.NewWriter(plain), seen: make(map[string]tar.Header)}
	fill(l)
	if err := l.close(); err != nil {
		return fmt.Errorf("write layer: %w", err)
	}
	if err := comp.Close(); err != nil {
		return fmt.Errorf("compress layer: %w", err)
	}
	if err := buf.Flush(); err != nil {
		return fmt.Errorf("write layer: %w", err)
	}
	st, err := f.Stat()
	if err != nil {
		return fmt.Errorf("write layer: %w", err)
	}
	if err := f.Chmod(0o644); err != nil {
		return fmt.Errorf("write layer: %w", err)
	}
	if err := os.Rename(f.Name(), w.blob(blob.Digest().Encoded())); err != nil {
		return fmt.Errorf("write layer: %w", err)
	}
	_, _, typ := w.media.types()
	w.layers = append(w.layers, ocispec.Descriptor{MediaType: typ, Digest: blob.Digest(), Size: st.Size()})
	w.diffIDs = append(w.diffIDs, diffID.Digest())
	return nil
}

// addLayersOf adds the layers of another layout, sharing its blobs by link, os.Link or os.Symlink.
func (w *layoutWriter) addLayersOf(dir string, link func(oldname, newname string) error) error {
	img, err := Open(dir)
	if err != nil {
		return err
	}
	for _, l := range img.Manifest.Layers {
		if err := link(img.Blob(l.Digest), w.blob(l.Digest.Encoded())); err != nil {
			return fmt.Errorf("share layer: %w", err)
		}
	}
	w.layers = append(w.layers, img.Manifest.Layers...)
	w.diffIDs = append(w.diffIDs, img.Config.RootFS.DiffIDs...)
	return nil
}

// finish writes config, manifest and index.
func (w *layoutWriter) finish(cmd []string, labels map[string]string) error {
	manifestType, configType, _ := w.media.types()
	config := ocispec.Image{
		Created:  &epoch,
		Platform: ocispec.Platform{Architecture: runtime.GOARCH, OS: "linux"},
		Config: ocispec.ImageConfig{
			Env:    []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
			Cmd:    cmd,
			Labels: labels,
		},
		RootFS: ocispec.RootFS{Type: "layers", DiffIDs: w.diffIDs},
	}
	configDesc, err := w.putJSON(configType, config)
	if err != nil {
		return err
	}
	manifest, err := w.putJSON(manifestType, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: manifestType,
		Config:    configDesc,
		Layers:    w.layers,
	})
	if err != nil {
		return err
	}
	index, err := json.Marshal(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{manifest},
	})
	if err != nil {
		return err
	}
	layout := `{"imageLayoutVersion":"` + ocispec.ImageLayoutVersion + `"}`
	if err := os.WriteFile(filepath.Join(w.dir, ocispec.ImageLayoutFile), []byte(layout), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(w.dir, ocispec.ImageIndexFile), index, 0o644)
}

func (w *layoutWriter) putJSON(mediaType string, v any) (ocispec.Descriptor, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	return d, os.WriteFile(w.blob(d.Digest.Encoded()), b, 0o644)
}

// An Image is the image of an OCI layout.
type Image struct {
	dir        string
	Descriptor ocispec.Descriptor // of the manifest
	Manifest   ocispec.Manifest
	Config     ocispec.Image
}

// Open reads the image of an OCI layout.
func Open(dir string) (*Image, error) {
	img := &Image{dir: dir}
	var index ocispec.Index
	if err := readJSON(filepath.Join(dir, ocispec.ImageIndexFile), &index); err != nil {
		return nil, err
	}
	if len(index.Manifests) == 0 {
		return nil, fmt.Errorf("open layout %s: %w", dir, errEmpty)
	}
	img.Descriptor = index.Manifests[0]
	if err := readJSON(img.Blob(img.Descriptor.Digest), &img.Manifest); err != nil {
		return nil, err
	}
	if err := readJSON(img.Blob(img.Manifest.Config.Digest), &img.Config); err != nil {
		return nil, err
	}
	return img, nil
}

// Blob returns the path of a blob.
func (img *Image) Blob(d digest.Digest) string {
	return filepath.Join(img.dir, "blobs", d.Algorithm().String(), d.Encoded())
}

func readJSON(name string, v any) error {
	b, err := os.ReadFile(name)
	if err != nil {
		return fmt.Errorf("open layout: %w", err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("open layout: parse %s: %w", name, err)
	}
	return nil
}
