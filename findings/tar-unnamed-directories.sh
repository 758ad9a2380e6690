#!/usr/bin/env bash
# tar layers: tools disagree on the attributes of directories that the tar does not name
#
# Expected:  a directory that exists only because an entry lies below it gets mode 0755 and owner root from every tool.
# Found:     for a tar whose only entry is srv/data/file, with mode 0600 and owner 1234: containerd creates srv as 0755 root
#            with any umask. GNU tar, bsdtar and podman's storage library apply the umask: 0700 root with umask 077. "mkfs.erofs
#            --tar=f" gives 0777 root to srv and to the root of the image, with any umask. "ostree commit --tree=tar" refuses
#            the tar; with --tar-autocreate-parents it gives 0755 and the owner of the entry, 1234, to srv and to the root of
#            the commit.
# Versions:  GNU tar 1.35, bsdtar 3.7.4, erofs-utils 1.8.6, ostree 2025.2 (Debian 13), containerd 2.4.2 and go.podman.io/storage
#            v1.65.1 (Go module proxy), seen on 2026-11-30
# Matters:   such layers are common: many builders write only files, and so do the chunk layers of ostree images. In a stack of
#            layers, the top layer's directory hides the attributes of the directories below it. Code that turns layers into
#            trees must take these attributes from the layers below, or choose 0755 root, and not leave them to the tool.
#            Builders should name every parent directory.
# Needs:     root (chroot, mount namespace), apt with a Debian mirror, go, tar
set -euo pipefail
# shellcheck source=lib/debian.bash
. "$(dirname "$0")/lib/debian.bash"
need go tar
need_root "chroot"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
root=$tmp/root
debian_root "$root" trixie tar=1.35+dfsg-3.1 libarchive-tools=3.7.4-4+deb13u1 erofs-utils=1.8.6-1 ostree=2025.2-1
cd "$tmp"

cat >go.mod <<'X'
module example.com/extract

go 1.25.0

require (
	github.com/containerd/containerd/v2 v2.4.2
	go.podman.io/storage v1.65.1
)
X
cat >main.go <<'X'
// Command extract unpacks standard input with the library of containerd or of podman.
package main

import (
	"context"
	"log"
	"os"

	"github.com/containerd/containerd/v2/pkg/archive"
	storage "go.podman.io/storage/pkg/archive"
)

func main() {
	var err error
	if os.Args[1] == "containerd" {
		_, err = archive.Apply(context.Background(), os.Args[2], os.Stdin)
	} else {
		err = storage.Unpack(os.Stdin, os.Args[2], &storage.TarOptions{})
	}
	if err != nil {
		log.Fatal(err)
	}
}
X
GOWORK=off GOFLAGS=-mod=mod CGO_ENABLED=0 go build -o extract .

mkdir -p tree/srv/data
echo x >tree/srv/data/file
chmod 600 tree/srv/data/file
tar --format=ustar --owner=1234 --group=1234 --numeric-owner -C tree -cf "$root/layer.tar" srv/data/file

found=
for mask in 022 077; do
	umask "$mask"
	for tool in containerd podman tar bsdtar; do
		mkdir -p "$root/$mask/$tool"
		case $tool in
		containerd | podman) ./extract $tool "$root/$mask/$tool" <"$root/layer.tar" ;;
		*) inside "$root" $tool -C "/$mask/$tool" -xf /layer.tar 2>/dev/null ;;
		esac
		found+="umask $mask, $tool: srv $(stat -c '%04a %u:%g' "$root/$mask/$tool/srv")"$'\n'
	done
	inside "$root" mkfs.erofs --quiet --tar=f "/$mask.erofs" /layer.tar >/dev/null
	for path in /srv /; do
		found+="umask $mask, mkfs.erofs: $path $(inside "$root" dump.erofs --path=$path "/$mask.erofs" | sed -nE 's/^Uid: ([0-9]+) +Gid: ([0-9]+) +Access: ([0-9]+).*/\3 \1:\2/p')"$'\n'
	done
	inside "$root" ostree --repo="/$mask/repo" init --mode=archive
	found+="umask $mask, ostree: $(inside "$root" ostree --repo="/$mask/repo" commit --branch=os --tree=tar=/layer.tar 2>&1 || true)"$'\n'
	inside "$root" ostree --repo="/$mask/repo" commit --branch=os --tree=tar=/layer.tar --tar-autocreate-parents >/dev/null
	for path in /srv /; do
		found+="umask $mask, ostree: $path $(inside "$root" ostree --repo="/$mask/repo" ls -d os $path | awk '{ print substr($1, 2), $2":"$3 }' | sed 's/^0*/0/')"$'\n'
	done
done
same "directories that the tar does not name" "umask 022, containerd: srv 0755 0:0
umask 022, podman: srv 0755 0:0
umask 022, tar: srv 0755 0:0
umask 022, bsdtar: srv 0755 0:0
umask 022, mkfs.erofs: /srv 0777 0:0
umask 022, mkfs.erofs: / 0777 0:0
umask 022, ostree: error: No such file or directory: srv
umask 022, ostree: /srv 0755 1234:1234
umask 022, ostree: / 0755 1234:1234
umask 077, containerd: srv 0755 0:0
umask 077, podman: srv 0700 0:0
umask 077, tar: srv 0700 0:0
umask 077, bsdtar: srv 0700 0:0
umask 077, mkfs.erofs: /srv 0777 0:0
umask 077, mkfs.erofs: / 0777 0:0
umask 077, ostree: error: No such file or directory: srv
umask 077, ostree: /srv 0755 1234:1234
umask 077, ostree: / 0755 1234:1234
" "$found"
