package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ostree-snapshotter/ostree-snapshotter/bench/dedup"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/snaptest"
)

func TestDedupOfContainerd(t *testing.T) {
	t.Setenv("CONTAINERD_NAMESPACE", "")
	f := newContainerd(t)
	put := func(mediaType string, b []byte) (ocispec.Descriptor, error) { return f.Blob(mediaType, b), nil }
	for name, layers := range snaptest.Images {
		desc, err := snaptest.ImageBlobs(put, layers)
		if err != nil {
			t.Fatal(err)
		}
		f.Tag("default", "example.org/"+name+":1", f.Index(desc))
	}
	gone, err := snaptest.ImageBlobs(put, [][]snaptest.TarFile{snaptest.BaseFiles, {{Name: "gone", Content: "gone"}}})
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
