package script

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/snaptest"
)

// layout DIR TAG...: makes an OCI layout with images by tag; without tags, with one untagged image.
func scriptLayout(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: layout DIR TAG...")
	}
	dir := ts.MkAbs(args[0])
	ts.Check(os.MkdirAll(filepath.Join(dir, "blobs/sha256"), 0o755))
	put := func(mediaType string, b []byte) (ocispec.Descriptor, error) {
		desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
		return desc, os.WriteFile(filepath.Join(dir, "blobs/sha256", desc.Digest.Encoded()), b, 0o644)
	}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}}
	add := func(layers [][]snaptest.TarFile, annotations map[string]string) {
		desc, err := snaptest.ImageBlobs(put, layers)
		ts.Check(err)
		desc.Annotations = annotations
		index.Manifests = append(index.Manifests, desc)
	}
	if len(args) == 1 {
		add(snaptest.Images["base"], nil)
	}
	for _, tag := range args[1:] {
		add(snaptest.Images[tag], map[string]string{ocispec.AnnotationRefName: tag})
	}
	b, err := json.Marshal(index)
	ts.Check(err)
	ts.Check(os.WriteFile(filepath.Join(dir, ocispec.ImageIndexFile), b, 0o644))
	for _, tag := range args[1:] { // for scripts that damage a layer
		layers := snaptest.Images[tag]
		plain, err := snaptest.MakeTar(layers[len(layers)-1])
		ts.Check(err)
		var z bytes.Buffer
		w := gzip.NewWriter(&z)
		_, err = w.Write(plain)
		ts.Check(err)
		ts.Check(w.Close())
		ts.Setenv("LAYER_BLOB_"+strings.ToUpper(tag), digest.FromBytes(z.Bytes()).Encoded())
	}
}
