#!/usr/bin/env bash
# zstd:chunked: two incompatible formats have this name, and their magic numbers differ in the case of one letter
#
# Expected:  zstd:chunked is one format: any tool that knows it can pull parts of such a layer, and conversion keeps the diff
#            ID.
# Found:     the compressor of podman, buildah and skopeo (go.podman.io/storage) ends a layer with "GNUlInUx", describes it in
#            the annotations io.github.containers.zstd-chunked.*, and adds a tar-split record from which the original tar is
#            rebuilt. The compressor of stargz-snapshotter and nerdctl ends it with "GnUlInUx", uses
#            io.containers.zstd-chunked.*, has no tar-split record, and changes the tar, so that the diff ID differs from the
#            source's.
# Versions:  go.podman.io/storage v1.65.1, github.com/containerd/stargz-snapshotter/estargz v0.19.1 (Go module proxy), seen on
#            2026-11-30
# Matters:   the media type does not tell the two apart: a reader must look at the annotations and compare the magic number
#            exactly. Everything that compares diff IDs or chain IDs sees an image converted by nerdctl as a different image.
# Needs:     go
set -euo pipefail
# shellcheck source=lib/debian.bash
. "$(dirname "$0")/lib/debian.bash"
need go
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"

cat >go.mod <<'X'
module example.com/chunked

go 1.25.0

require (
	github.com/containerd/stargz-snapshotter/estargz v0.19.1
	github.com/klauspost/compress v1.20.3
	go.podman.io/storage v1.65.1
)
X
cat >main.go <<'X'
// Command chunked compresses one tar in both ways and describes the results.
package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"log"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	"github.com/klauspost/compress/zstd"
	"go.podman.io/storage/pkg/chunked/compressor"
)

type stargz struct {
	*zstdchunked.Compressor
	*zstdchunked.Decompressor
}

func main() {
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	check(w.WriteHeader(&tar.Header{Name: "file", Mode: 0o644, Size: 6}))
	must(io.WriteString(w, "hello\n"))
	check(w.Close())

	var blob bytes.Buffer
	annotations := map[string]string{}
	c := must(compressor.ZstdCompressor(&blob, annotations, nil))
	must(c.Write(layer.Bytes()))
	check(c.Close())
	report("podman", blob.Bytes(), annotations, layer.Bytes())

	annotations = map[string]string{}
	format := stargz{&zstdchunked.Compressor{CompressionLevel: zstd.SpeedDefault, Metadata: annotations}, &zstdchunked.Decompressor{}}
	built := must(estargz.Build(io.NewSectionReader(bytes.NewReader(layer.Bytes()), 0, int64(layer.Len())), estargz.WithCompression(format)))
	report("stargz", must(io.ReadAll(built)), annotations, layer.Bytes())
}

func report(name string, blob []byte, annotations map[string]string, layer []byte) {
	raw := must(io.ReadAll(must(zstd.NewReader(bytes.NewReader(blob)))))
	fmt.Printf("%s: the last 8 bytes are %q\n", name, blob[len(blob)-8:])
	fmt.Printf("%s: annotations %s\n", name, strings.Join(slices.Sorted(maps.Keys(annotations)), " "))
	fmt.Printf("%s: decompresses to the tar it was made from: %v\n", name, bytes.Equal(raw, layer))
}

func must[T any](v T, err error) T {
	check(err)
	return v
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
X
GOWORK=off GOFLAGS=-mod=mod CGO_ENABLED=0 go build -o chunked .

same "zstd:chunked" 'podman: the last 8 bytes are "GNUlInUx"
podman: annotations io.github.containers.zstd-chunked.manifest-checksum io.github.containers.zstd-chunked.manifest-position io.github.containers.zstd-chunked.tarsplit-position
podman: decompresses to the tar it was made from: true
stargz: the last 8 bytes are "GnUlInUx"
stargz: annotations io.containers.zstd-chunked.manifest-checksum io.containers.zstd-chunked.manifest-position
stargz: decompresses to the tar it was made from: false' "$(./chunked)"
