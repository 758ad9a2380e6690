#!/usr/bin/env bash
# containerd: "ctr images export" ends with status 0 before the archive is written
#
# Expected:  when "ctr images export" ends with status 0, the archive is complete, however slowly it is read.
# Found:     by default ctr has containerd's transfer service export the image, and ends when the service has sent everything. What
#            ctr has received and not written by then, some tens of KiB at the end, is missing. If the reader of a pipe pauses
#            shortly before the end, the archive is truncated each time; with a file it happens now and then. With --local the
#            archive is complete. A Go client sees the same: Transfer returns before the writer of NewImageExportStream is closed.
# Versions:  containerd 2.3.7 (Go module proxy), seen on 2026-11-30; 2.4.2 does the same
# Matters:   backups and "ctr images export - NAME | ssh HOST ..." can lose the end of an image, its index among it, without an error.
#            Use --local, or check the archive; a Go client must wait until the writer is closed.
# Needs:     root (containerd), go
set -euo pipefail
# shellcheck source=lib/debian.bash
. "$(dirname "$0")/lib/debian.bash"
need go tar sha256sum
need_root "containerd"
tmp=$(mktemp -d)
pid=
trap '[ -z "$pid" ] || { kill "$pid"; wait "$pid" || true; }; rm -rf "$tmp"' EXIT

for name in containerd ctr; do
	GOBIN=$tmp GOWORK=off CGO_ENABLED=0 go install "github.com/containerd/containerd/v2/cmd/$name@v2.3.7"
done
cat >"$tmp/config.toml" <<X
version = 3
root = "$tmp/root"
state = "$tmp/state"
disabled_plugins = ["io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri", "io.containerd.nri.v1.nri"]
[grpc]
  address = "$tmp/containerd.sock"
[ttrpc]
  address = "$tmp/ttrpc.sock"
X

# An image of one layer of 3 MB, as an OCI layout.
mkdir -p "$tmp/oci/blobs/sha256" "$tmp/layer"
add() { # FILE, prints a descriptor without its media type
	local digest
	digest=$(sha256sum "$1" | cut -d' ' -f1)
	cp "$1" "$tmp/oci/blobs/sha256/$digest"
	printf '"digest": "sha256:%s", "size": %d' "$digest" "$(stat -c %s "$1")"
}
type=application/vnd.oci.image
head -c 3000000 /dev/urandom >"$tmp/layer/file"
tar -C "$tmp/layer" -cf "$tmp/layer.tar" file
layer=$(add "$tmp/layer.tar")
echo "{\"architecture\": \"amd64\", \"os\": \"linux\", \"rootfs\": {\"type\": \"layers\", \"diff_ids\": [\"sha256:$(sha256sum "$tmp/layer.tar" | cut -d' ' -f1)\"]}}" >"$tmp/config.json"
echo "{\"schemaVersion\": 2, \"mediaType\": \"$type.manifest.v1+json\", \"config\": {\"mediaType\": \"$type.config.v1+json\", $(add "$tmp/config.json")}, \"layers\": [{\"mediaType\": \"$type.layer.v1.tar\", $layer}]}" >"$tmp/manifest.json"
echo "{\"schemaVersion\": 2, \"manifests\": [{\"mediaType\": \"$type.manifest.v1+json\", $(add "$tmp/manifest.json"), \"annotations\": {\"io.containerd.image.name\": \"example.org/image:1\"}}]}" >"$tmp/oci/index.json"
echo '{"imageLayoutVersion": "1.0.0"}' >"$tmp/oci/oci-layout"
tar -C "$tmp/oci" -cf "$tmp/image.tar" .

"$tmp/containerd" --config "$tmp/config.toml" >"$tmp/log" 2>&1 &
pid=$!
ctr() { "$tmp/ctr" --address "$tmp/containerd.sock" "$@" 2>>"$tmp/log"; }
for _ in $(seq 100); do ctr version >/dev/null && break; sleep 0.1; done
ctr images import --local --no-unpack "$tmp/image.tar" >/dev/null

# The reader pauses when as much is left as a pipe (64 KiB) and a window of the stream hold.
size=$(ctr images export --local - example.org/image:1 | wc -c)
export_slowly() { # FLAG...
	ctr images export "$@" - example.org/image:1 | (head -c $((size - 110000)); sleep 3; cat) >"$tmp/export.tar"
	local status=${PIPESTATUS[0]} got
	got=$(stat -c %s "$tmp/export.tar")
	if ((got == size)); then echo "status $status, complete"; else echo "status $status, truncated"; fi
}
same "containerd 2.3.7, transfer service" "status 0, truncated" "$(export_slowly)"
same "containerd 2.3.7, --local" "status 0, complete" "$(export_slowly --local)"
