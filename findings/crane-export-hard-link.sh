#!/usr/bin/env bash
# crane export: a hard link gets the content that a later layer gave to its other name
#
# Expected:  "crane export IMAGE" writes the file system that a container of the image sees.
# Found:     layer 1 has bin/tool and bin/alias, a hard link to it. Layer 2 replaces bin/tool. In a container bin/alias keeps
#            the old content, because replacing one name of a file leaves its other names alone. crane reads the layers from
#            last to first and copies every entry whose name is new: first the new bin/tool, then the link from bin/alias to
#            bin/tool, which is now a different file. bin/alias silently gets the new content.
# Versions:  crane v0.22.1 (go-containerregistry, Go module proxy), compared with umoci 0.4.7 (Debian 13), seen on 2026-11-30
# Matters:   disks and ostree commits made from the output differ from the containers. Any flattener that merges tar entries by
#            name has the same problem. Updates that replace one of several names of a file are common (git, perl, busybox). To
#            merge layers, resolve each hard link to a file as of its own layer, not to a name.
# Needs:     root (chroot, mount namespace), apt with a Debian mirror, go, tar, jq
set -euo pipefail
# shellcheck source=lib/debian.bash
. "$(dirname "$0")/lib/debian.bash"
need go tar jq sha256sum
need_root "chroot"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
GOBIN=$tmp GOWORK=off go install github.com/google/go-containerregistry/cmd/crane@v0.22.1
debian_root "$tmp/root" trixie umoci=0.4.7+ds-4+b10
cd "$tmp"

mkdir -p 1/bin 2/bin
echo old >1/bin/tool
ln 1/bin/tool 1/bin/alias
echo new >2/bin/tool
chmod 755 1/bin/tool 2/bin/tool
tar --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -C 1 -cf 1.tar bin/tool bin/alias
tar --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -C 2 -cf 2.tar bin/tool

./crane append -f 1.tar -f 2.tar -t example.com/image:1 -o image.tar 2>/dev/null
./crane export - flat.tar <image.tar
mkdir flat
tar -C flat -xf flat.tar

# The same two layers as an OCI layout, for umoci.
blobs=root/layout/blobs/sha256
mkdir -p "$blobs"
blob() { # FILE MEDIATYPE prints the descriptor
	local digest
	digest=$(sha256sum <"$1" | cut -d' ' -f1)
	cp "$1" "$blobs/$digest"
	jq -nc --arg d "sha256:$digest" --arg t "application/vnd.oci.image.$2" --argjson s "$(stat -c %s "$1")" '{mediaType: $t, digest: $d, size: $s}'
}
layers=$(blob 1.tar layer.v1.tar; blob 2.tar layer.v1.tar)
jq -sc '{architecture: "amd64", os: "linux", rootfs: {type: "layers", diff_ids: map(.digest)}}' <<<"$layers" >config
jq -sc --argjson c "$(blob config config.v1+json)" '{schemaVersion: 2, mediaType: "application/vnd.oci.image.manifest.v1+json", config: $c, layers: .}' <<<"$layers" >manifest
jq -nc --argjson m "$(blob manifest manifest.v1+json)" '{schemaVersion: 2, manifests: [$m + {annotations: {"org.opencontainers.image.ref.name": "1"}}]}' >root/layout/index.json
echo '{"imageLayoutVersion":"1.0.0"}' >root/layout/oci-layout
inside "$tmp/root" umoci raw unpack --image /layout:1 /unpacked >/dev/null 2>&1

same "entries of crane export" "bin/tool
bin/alias link to bin/tool" "$(tar -tvf flat.tar | grep -o 'bin/[a].*\|bin/[t]ool$')"
same "unpacked" "crane: tool new, alias new
umoci: tool new, alias old" "$(for d in flat root/unpacked; do echo "$d: tool $(cat $d/bin/tool), alias $(cat $d/bin/alias)"; done | sed 's/^flat/crane/; s/^root.unpacked/umoci/')"
