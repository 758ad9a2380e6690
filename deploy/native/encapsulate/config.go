package encapsulate

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/native/format"
)

// Options are what an image says beside its commit.
type Options struct {
	Platform ocispec.Platform
	Labels   map[string]string // beside those of the commit, which win
	// CopyMeta are keys of the commit's metadata that become labels, CopyMetaOpt those that the commit may lack.
	CopyMeta, CopyMetaOpt []string
}

// A Blob is a layer that was written.
type Blob struct {
	*Layer
	DiffID digest.Digest
	ocispec.Descriptor
}

// Labels returns the labels of an image with the commit, which are also the annotations of its manifest. final is the diff ID
// of the last layer. A metadata key that the commit should have, and does not, is an ErrInvalid.
func (c *Commit) Labels(o Options, final digest.Digest) (map[string]string, error) {
	labels := make(map[string]string)
	maps.Copy(labels, o.Labels)
	for _, key := range o.CopyMetaOpt {
		if v, ok := c.Object.MetaString(key); ok {
			labels[key] = v
		}
	}
	for _, key := range o.CopyMeta {
		v, ok := c.Object.MetaString(key)
		if !ok {
			return nil, fmt.Errorf("%w: its metadata has no string %q", ErrInvalid, key)
		}
		labels[key] = v
	}
	if v, ok := c.Object.MetaString(metaVersion); ok {
		labels[ocispec.AnnotationVersion] = v
	}
	if v, ok := c.Object.MetaString(format.LabelLinux); ok {
		labels[format.LabelLinux] = v
	}
	if v, ok := c.Object.Lookup(format.LabelBootable); ok {
		if bootable, ok := v.Bool(); ok {
			labels[format.LabelBootable] = fmt.Sprint(bootable)
			labels[format.LabelBootc] = "1"
		}
	}
	labels[format.LabelCommit] = c.Sum.String()
	labels[format.LabelFinal] = final.String()
	return labels, nil
}

// Keys of a commit's metadata.
const (
	metaVersion = "version"
	metaCmd     = "ostree.container-cmd"
)

// An Image is the documents of an image, as canonical JSON.
type Image struct {
	Config   []byte
	Manifest []byte
}

// Image returns the documents of an image with these layers, lowest first.
func (c *Commit) Image(o Options, blobs []Blob) (*Image, error) {
	labels, err := c.Labels(o, blobs[len(blobs)-1].DiffID)
	if err != nil {
		return nil, err
	}
	epoch, created := time.Unix(0, 0).UTC(), c.Object.Time().UTC().Truncate(time.Second)
	config := ocispec.Image{
		Created: &created, Platform: o.Platform,
		Config: ocispec.ImageConfig{Labels: labels},
		RootFS: ocispec.RootFS{Type: "layers"},
	}
	if v, ok := c.Object.Lookup(metaCmd); ok {
		config.Config.Cmd, _ = v.Strings()
	}
	manifest := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Annotations: labels,
	}
	for i, b := range blobs {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, b.DiffID)
		config.History = append(config.History, ocispec.History{Created: &epoch, CreatedBy: b.Name})
		desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: b.Digest, Size: b.Size}
		if i > 0 {
			desc.Annotations = map[string]string{format.Components: strings.Join(b.Components, ",")}
		}
		manifest.Layers = append(manifest.Layers, desc)
	}
	img := new(Image)
	if img.Config, err = canonical(config); err != nil {
		return nil, err
	}
	manifest.Config = ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(img.Config), Size: int64(len(img.Config)),
	}
	img.Manifest, err = canonical(manifest)
	return img, err
}

// canonical returns JSON with sorted keys and without spaces.
func canonical(v any) ([]byte, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	var tree any
	if err := dec.Decode(&tree); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err = enc.Encode(tree)
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), err
}
