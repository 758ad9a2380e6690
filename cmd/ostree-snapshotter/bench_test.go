package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/ostree-snapshotter/ostree-snapshotter/bench/dedup"
)

// layoutImages are the images of scriptLayout, by tag.
var layoutImages = map[string][][]tarFile{
	"base": {baseFiles},
	"a":    {baseFiles, aFiles},
	"b":    {baseFiles, bFiles},
}

// imageBlobs makes the blobs of an image, and returns the descriptor of its manifest.
func imageBlobs(put func(mediaType string, b []byte) (ocispec.Descriptor, error), layers [][]tarFile) (desc ocispec.Descriptor, err error) {
	manifest := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	config := ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH},
		RootFS:   ocispec.RootFS{Type: "layers"},
	}
	for _, files := range layers {
		b, err := makeTar(files)
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
	add := func(layers [][]tarFile, annotations map[string]string) {
		desc, err := imageBlobs(put, layers)
		ts.Check(err)
		desc.Annotations = annotations
		index.Manifests = append(index.Manifests, desc)
	}
	if len(args) == 1 {
		add(layoutImages["base"], nil)
	}
	for _, tag := range args[1:] {
		add(layoutImages[tag], map[string]string{ocispec.AnnotationRefName: tag})
	}
	b, err := json.Marshal(index)
	ts.Check(err)
	ts.Check(os.WriteFile(filepath.Join(dir, ocispec.ImageIndexFile), b, 0o644))
	for _, tag := range args[1:] { // for scripts that damage a layer
		layers := layoutImages[tag]
		plain, err := makeTar(layers[len(layers)-1])
		ts.Check(err)
		var z bytes.Buffer
		w := gzip.NewWriter(&z)
		_, err = w.Write(plain)
		ts.Check(err)
		ts.Check(w.Close())
		ts.Setenv("LAYER_BLOB_"+strings.ToUpper(tag), digest.FromBytes(z.Bytes()).Encoded())
	}
}

func TestDedupOfContainerd(t *testing.T) {
	t.Setenv("CONTAINERD_NAMESPACE", "")
	f := newContainerd(t)
	put := func(mediaType string, b []byte) (ocispec.Descriptor, error) { return f.Blob(mediaType, b), nil }
	for name, layers := range layoutImages {
		desc, err := imageBlobs(put, layers)
		if err != nil {
			t.Fatal(err)
		}
		f.Tag("default", "example.org/"+name+":1", f.Index(desc))
	}
	gone, err := imageBlobs(put, [][]tarFile{baseFiles, {{name: "gone", content: "gone"}}})
	if err != nil {
		t.Fatal(err)
	}
	var manifest ocispec.Manifest
	text, err := content.ReadBlob(t.Context(), f.Content, gone)
	if err != nil {
		t.Fatal(err)
	}
	decode(t, string(text), &manifest)
	lost := manifest.Layers[1].Digest
	if err := f.Content.Delete(t.Context(), lost); err != nil {
		t.Fatal(err)
	}
	f.Tag("default", "example.org/gone:1", gone)
	f.Tag("default", "example.org/absent:1", ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("x")})

	run := func(args ...string) (int, string, string) {
		var stdout, stderr bytes.Buffer
		status := execute(t.Context(), append([]string{"bench", "dedup", "-a", f.Address}, args...), &stdout, &stderr)
		return status, stdout.String(), stderr.String()
	}
	status, stdout, stderr := run("--json", "example.org/base:1", "example.org/a:1", "example.org/b:1")
	if status != exitOK || stderr != "" {
		t.Fatalf("exit status %d, stderr %q", status, stderr)
	}
	var r dedup.Document
	if err := json.Unmarshal([]byte(stdout), &r); err != nil {
		t.Fatal(err)
	}
	const kib = 1 << 10
	sum := func(count, bytes, disk int64) dedup.DocumentSum {
		return dedup.DocumentSum{Count: count, Bytes: bytes, Disk: disk}
	}
	for kind, want := range map[dedup.Kind]dedup.DocumentSum{
		dedup.Images:   sum(8, 864*kib, 864*kib), // sh three times, a, b, lib/common twice, lib/sh
		dedup.Layers:   sum(6, 672*kib, 672*kib),
		dedup.Mtime:    sum(5, 472*kib, 472*kib),
		dedup.Metadata: sum(4, 376*kib, 376*kib),
		dedup.Content:  sum(4, 376*kib, 376*kib),
		dedup.Fixed4K:  sum(4, 16*kib, 16*kib), // each is one repeated page
	} {
		if got := r.Kinds[kind]; got.DocumentSum != want || got.Kind != kind.String() {
			t.Errorf("%v: got %+v, want %+v", kind, got, want)
		}
	}

	status, stdout, stderr = run("example.org/base:1", "example.org/none:1", "example.org/gone:1", "example.org/absent:1")
	if status != exitPartly || !strings.Contains(stdout, "file contents") {
		t.Errorf("exit status is %d, stdout %q", status, stdout)
	}
	want := strings.Join([]string{
		"ostree-snapshotter: error: image example.org/none:1: containerd has no such image in namespace default",
		"ostree-snapshotter: error: image example.org/gone:1: layer " + lost.String() + ": its blob is not here",
		"ostree-snapshotter: error: image example.org/absent:1: its manifest or config is not here",
		"ostree-snapshotter: hint: ",
	}, "\n")
	if !strings.HasPrefix(stderr, want) {
		t.Errorf("stderr is\n%s\nwant\n%s", stderr, want)
	}
	status, stdout, stderr = run("example.org/gone:1")
	if status != exitFailed || stdout != "" || !strings.Contains(stderr, `hint: "ctr -n default content fetch example.org/gone:1" brings`) {
		t.Errorf("exit status %d, stdout %q, stderr %q", status, stdout, stderr)
	}
}

func TestDedupInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var stdout, stderr bytes.Buffer
	if got := execute(ctx, []string{"bench", "dedup", "oci:" + t.TempDir()}, &stdout, &stderr); got != exitInterrupted {
		t.Errorf("exit status is %d, want %d; stderr %q", got, exitInterrupted, stderr.String())
	}
}

// TestDocsNameDedup keeps docs/cli.md complete.
func TestDocsNameDedup(t *testing.T) {
	b, err := os.ReadFile("../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	names := append(jsonFields(reflect.TypeFor[dedup.Document]()), jsonFields(reflect.TypeFor[dedup.DocumentSum]())...)
	for _, k := range dedup.Kinds() {
		names = append(names, k.String())
	}
	for _, name := range names {
		if !strings.Contains(string(b), "`"+name+"`") {
			t.Errorf("docs/cli.md does not name %q", name)
		}
	}
}
