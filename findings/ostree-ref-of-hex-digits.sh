#!/usr/bin/env bash
# ostree: a branch named "f41" can resolve to another branch's commit
#
# Expected:  a ref name is looked up first, and an abbreviated checksum is tried only if no such ref exists, as in git.
# Found:     ostree tries the abbreviated checksum first. If a branch name consists of hexadecimal digits only, and the checksum
#            of exactly one commit in the repository starts with them, the name resolves to that commit, in rev-parse and in
#            show. The file refs/heads/f41 is unchanged. Even "pull-local" of branch f41 copies the other branch's commit and
#            names it f41 in the destination. With two such commits the name does not resolve at all.
# Versions:  ostree 2022.7 (Debian 12) and 2025.2 (Debian 13), seen on 2026-11-30
# Matters:   release names such as f41, 12 or beef are plausible branch names, and three digits match one commit in 4096, so
#            such a name works for years and then does not. A program that reads ostree repositories must resolve names in the
#            same order to agree with ostree. A program that creates branches should put a dash, a slash or a letter after f in
#            each name.
# Needs:     root (chroot, mount namespace), apt with a Debian mirror
set -euo pipefail
# shellcheck source=lib/debian.bash
. "$(dirname "$0")/lib/debian.bash"
need_root "chroot"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

check() { # SUITE VERSION
	local root=$tmp/$1 found
	debian_root "$root" "$1" "ostree=$2"
	ostree() { inside "$root" ostree --repo=/repo "$@"; }
	# The times 2927 and 18682 give commits whose checksums begin with f41.
	commit() { ostree commit --no-bindings --no-xattrs --owner-uid=0 --owner-gid=0 --timestamp="@$1" --tree=dir=/tree "${@:2}"; }
	mkdir -m 755 "$root/tree"
	echo one >"$root/tree/file"
	chmod 644 "$root/tree/file"
	ostree init --mode=archive
	commit 1000 --branch=f41 >/dev/null
	found="before: f41 is $(ostree rev-parse f41)"
	commit 2927 --branch=os/stable >/dev/null
	found+=$'\n'"after a commit to os/stable: f41 is $(ostree rev-parse f41)"
	found+=$'\n'"the file of the ref: $(cat "$root/repo/refs/heads/f41")"
	found+=$'\n'"ostree show f41: $(ostree show f41 | sed -n 's/^commit //p')"
	inside "$root" ostree --repo=/mirror init --mode=archive
	inside "$root" ostree --repo=/mirror pull-local /repo f41 >/dev/null
	found+=$'\n'"pulled as f41: $(cat "$root/mirror/refs/heads/f41")"
	commit 18682 --branch=os/testing >/dev/null
	found+=$'\n'"after another such commit: $(ostree rev-parse f41 2>&1 || true)"
	same "ostree $2" "before: f41 is 6137ae22d2a383d19e3e23bd3733edad7f1a6d159ab5427101fd5346f2777549
after a commit to os/stable: f41 is f410f7f3e3a4d3e86abcda8457c2824fc932e9cd28f79655350260ae620b1f70
the file of the ref: 6137ae22d2a383d19e3e23bd3733edad7f1a6d159ab5427101fd5346f2777549
ostree show f41: f410f7f3e3a4d3e86abcda8457c2824fc932e9cd28f79655350260ae620b1f70
pulled as f41: f410f7f3e3a4d3e86abcda8457c2824fc932e9cd28f79655350260ae620b1f70
after another such commit: error: Refspec f41 not unique" "$found"
}

check bookworm 2022.7-2+deb12u1
check trixie 2025.2-1
