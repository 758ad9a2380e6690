#!/usr/bin/env bash
# containerd: whether a layer unpacks can depend on unpigz being installed on the node
#
# Expected:  a gzip layer that GNU gzip accepts either unpacks on every node or on none.
# Found:     "bsdtar -czf - DIR" pads its output to a multiple of 10,240 bytes with zeros after the end of the gzip stream
#            ("bsdtar -czf FILE DIR" does not). gzip and pigz skip these zeros. Go's compress/gzip reads them as the header of
#            another member and returns "gzip: invalid header". containerd decompresses with igzip or unpigz if its PATH has one
#            of them, and in Go otherwise, so the same containerd unpacks the layer on one node and rejects it on another.
# Versions:  containerd 2.4.2 (its package pkg/archive/compression, Go module proxy), bsdtar 3.7.4 and pigz 2.8 (Debian 13),
#            seen on 2026-11-30
# Matters:   a layer decompressor should accept zeros after the last member, and nothing else; otherwise it rejects images that
#            other tools unpack. Builders should pipe "bsdtar -cf -" through gzip instead. Image tests need a node without pigz.
# Needs:     root (chroot, mount namespace), apt with a Debian mirror, go, gzip
set -euo pipefail
# shellcheck source=lib/debian.bash
. "$(dirname "$0")/lib/debian.bash"
need go gzip
need_root "chroot"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
debian_root "$tmp/root" trixie libarchive-tools=3.7.4-4+deb13u1 pigz=2.8-1
cd "$tmp"

mkdir go
cat >go/go.mod <<'X'
module example.com/unpack

go 1.25.0

require github.com/containerd/containerd/v2 v2.4.2
X
cat >go/main.go <<'X'
// Command unpack decompresses standard input, like containerd or with Go's compress/gzip.
package main

import (
	"compress/gzip"
	"fmt"
	"io"
	"os"

	"github.com/containerd/containerd/v2/pkg/archive/compression"
)

func main() {
	var r io.Reader
	var err error
	if os.Args[1] == "containerd" {
		r, err = compression.DecompressStream(os.Stdin)
	} else {
		r, err = gzip.NewReader(os.Stdin)
	}
	if err == nil {
		_, err = io.Copy(io.Discard, r)
	}
	if err == nil {
		fmt.Println("ok")
	} else {
		fmt.Println(err)
	}
}
X
(cd go && GOWORK=off GOFLAGS=-mod=mod CGO_ENABLED=0 go build -o ../unpack .)

mkdir root/tree without with
echo hello >root/tree/file
inside "$tmp/root" bsdtar -czf - -C /tree file >padded.tar.gz 2>/dev/null
inside "$tmp/root" bsdtar -czf /plain.tar.gz -C /tree file 2>/dev/null
mv root/plain.tar.gz .
# unpigz runs from its Debian root.
printf '#!/bin/sh\nexec %s %s /usr/bin/unpigz "$@"\n' "$(command -v chroot)" "$tmp/root" >with/unpigz
chmod +x with/unpigz

found=
for file in plain padded; do
	found+="$file: size is $([ $(($(stat -c %s $file.tar.gz) % 10240)) = 0 ] || echo 'not ')a multiple of 10,240"$'\n'
	found+="  gzip --test: $(gzip -t $file.tar.gz 2>&1 && echo ok)"$'\n'
	found+="  Go: $(./unpack go <$file.tar.gz)"$'\n'
	found+="  containerd without unpigz: $(PATH=$tmp/without ./unpack containerd <$file.tar.gz)"$'\n'
	found+="  containerd with unpigz: $(PATH=$tmp/with ./unpack containerd <$file.tar.gz)"$'\n'
done
same "gzip layers" "plain: size is not a multiple of 10,240
  gzip --test: ok
  Go: ok
  containerd without unpigz: ok
  containerd with unpigz: ok
padded: size is a multiple of 10,240
  gzip --test: ok
  Go: gzip: invalid header
  containerd without unpigz: gzip: invalid header
  containerd with unpigz: ok
" "$found"
