#!/usr/bin/env bash
# ostree: a repository with a parent can be checked, listed and checked out, but not pulled into a bare repository
#
# Expected:  what "ostree fsck" calls whole can be pulled. An object that only the parent repository (core.parent) has is as
#            good as one of the repository's own.
# Found:     "ostree pull-local" between two repositories in mode bare links each object from the source's own directory, and
#            fails with ENOENT at the first object that the parent has. --untrusted does not help. Into an archive or bare-user
#            repository, where files are not linked, the same pull works. The parent may have another mode: bare-split-xattrs,
#            whose files can be hard links of files that another repository keeps with a label.
# Versions:  ostree 2022.7 (Debian 12), 2025.2 (Debian 13), seen on 2026-11-30
# Matters:   a parent repository is the way to keep one copy of a file for two checksums that differ in extended attributes
#            alone, since fsck, ls, checkout and prune accept it; who does so must serve such pulls in another way.
# Needs:     root (chroot, mount namespace), apt with a Debian mirror, setfattr
set -euo pipefail
# shellcheck source=lib/debian.bash
. "$(dirname "$0")/lib/debian.bash"
need_root "chroot"
need setfattr
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

check() { # SUITE OSTREE
	local root=$tmp/$1 file name
	debian_root "$root" "$1" "ostree=$2"
	repo() { inside "$root" ostree --repo="/$1" "${@:2}" 2>&1; }
	status() { if "$@" >"$tmp/out"; then echo ok; else sed 's/.*: linkat/linkat/' "$tmp/out"; fi; }
	mkdir -p "$root"/{child,parent/objects,parent/refs/heads,parent/tmp,parent/state,parent/extensions,bare,archive,bare-user,tree}
	for name in child bare; do repo $name init --mode=bare; done
	for name in archive bare-user; do repo $name init --mode=$name; done
	echo text >"$root/tree/file"
	repo child commit --branch=os /tree >/dev/null

	# The file moves to the parent, as a file that also has a label.
	file=$(cd "$root/child/objects" && ls -- */*.file)
	mkdir "$root/parent/objects/${file%/*}"
	mv "$root/child/objects/$file" "$root/parent/objects/$file"
	setfattr -n security.selinux -v system_u:object_r:usr_t:s0 "$root/parent/objects/$file"
	: >"$root/parent/objects/$file-xattrs-link"
	printf '[core]\nrepo_version=1\nmode=bare-split-xattrs\n' >"$root/parent/config"
	echo parent=/parent >>"$root/child/config"

	same "ostree $2" "fsck: ok
ls: ok
checkout: ok
prune: ok
pull-local to archive: ok
pull-local to bare-user: ok
pull-local to bare: linkat: No such file or directory
pull-local --untrusted to bare: linkat: No such file or directory
fsck afterwards: ok" "fsck: $(status repo child fsck)
ls: $(status repo child ls -R -X -C os)
checkout: $(status repo child checkout os /checkout)
prune: $(status repo child prune --refs-only --depth=0)
pull-local to archive: $(status repo archive pull-local /child os)
pull-local to bare-user: $(status repo bare-user pull-local /child os)
pull-local to bare: $(status repo bare pull-local /child os)
pull-local --untrusted to bare: $(status repo bare pull-local --untrusted /child os)
fsck afterwards: $(status repo child fsck)"
}

check bookworm 2022.7-2+deb12u1
check trixie 2025.2-1
