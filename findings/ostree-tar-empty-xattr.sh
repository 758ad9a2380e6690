#!/usr/bin/env bash
# ostree: fsck rejects a commit made from a tar with an empty extended attribute
#
# Expected:  "ostree commit --tree=tar=FILE" and "--tree=dir=DIR" store the same files as the same objects, and fsck accepts
#            both.
# Found:     ostree skips extended attributes with an empty value when it reads a directory, but hashes and stores them when it
#            reads a tar. fsck reads the object back without them, computes another checksum and reports "Corrupted file object"
#            in a repository that nothing has touched since the commit. The commit itself succeeds without a warning.
# Versions:  ostree 2022.7 (Debian 12) and 2025.2 (Debian 13), seen on 2026-11-30
# Matters:   empty values are common: overlayfs and composefs mark files with them (user.overlay.whiteout), "tar --xattrs" keeps
#            them, and image layers are imported as tars. Code that writes ostree objects must drop empty values before it
#            hashes, whatever the source.
# Needs:     root (chroot, mount namespace), apt with a Debian mirror, user.* extended attributes in TMPDIR
set -euo pipefail
# shellcheck source=lib/debian.bash
. "$(dirname "$0")/lib/debian.bash"
need_root "chroot"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

check() { # SUITE OSTREE TAR ATTR
	local root=$tmp/$1 found from
	debian_root "$root" "$1" "ostree=$2" "tar=$3" "attr=$4"
	ostree() { inside "$root" ostree --repo=/repo "$@"; }
	mkdir -m 755 "$root/tree"
	echo hello >"$root/tree/file"
	chmod 644 "$root/tree/file"
	inside "$root" setfattr -n user.note -v text /tree/file
	inside "$root" setfattr -n user.mark /tree/file
	inside "$root" tar --xattrs --numeric-owner --owner=0 --group=0 -C /tree -cf /tree.tar .
	found=
	for from in dir=/tree tar=/tree.tar; do
		rm -rf "$root/repo"
		ostree init --mode=bare
		ostree commit --branch=os --owner-uid=0 --owner-gid=0 --tree="$from" >/dev/null
		found+="--tree=$from"$'\n'
		found+="  attributes of the object: $(inside "$root" getfattr --absolute-names -d "$(object "$root")" | grep ^user | paste -sd ' ')"$'\n'
		found+="  fsck: $(ostree fsck 2>&1 | grep -oE 'Corrupted file object|^object fsck of 1 commits completed successfully.*' || true)"$'\n'
	done
	same "ostree $2" '--tree=dir=/tree
  attributes of the object: user.note="text"
  fsck: object fsck of 1 commits completed successfully - no errors found.
--tree=tar=/tree.tar
  attributes of the object: user.mark="" user.note="text"
  fsck: Corrupted file object
' "$found"
}

object() { (cd "$1" && find repo/objects -name "*.file" -type f -printf "/%p"); }

check bookworm 2022.7-2+deb12u1 1.34+dfsg-1.2+deb12u1 1:2.5.1-4
check trixie 2025.2-1 1.35+dfsg-3.1 1:2.5.2-3
