#!/usr/bin/env bash
# ostree: an upgrade drops the ACL of a file in /etc, unless something else about the file changed too
#
# Expected:  local changes in /etc survive an upgrade, and an ACL is such a change, as owner and mode are.
# Found:     the three-way merge compares type, content, owner and mode, but no extended attributes. A file of the image that
#            the administrator only gave an ACL counts as unchanged: "ostree admin config-diff" does not list it, and the next
#            deployment has the image's file without the ACL. A file whose content was edited as well is copied with its ACL.
# Versions:  ostree 2022.7 (Debian 12) and 2025.2 (Debian 13), seen on 2026-11-30
# Matters:   a service that reads its key through "setfacl -m u:service:r" loses access at the first upgrade, and no tool
#            reports why. An independent merge has to decide whether to follow ostree or to compare extended attributes as well.
# Needs:     root (chroot, mount namespace), apt with a Debian mirror, POSIX ACLs and chattr in TMPDIR
set -euo pipefail
# shellcheck source=lib/debian.bash
. "$(dirname "$0")/lib/debian.bash"
need_root "chroot"
need chattr
tmp=$(mktemp -d)
clean() {
	chattr -f -i "$tmp"/*/sysroot/ostree/deploy/os/deploy/*.0 || true # ostree makes deployments immutable
	rm -rf "$tmp"
}
trap clean EXIT

check() { # SUITE OSTREE ACL
	local root=$tmp/$1 tree=$tmp/$1/tree first second file
	debian_root "$root" "$1" "ostree=$2" "acl=$3"
	repo() { inside "$root" ostree --repo=/sysroot/ostree/repo "$@"; }
	admin() { inside "$root" ostree admin "$@" --sysroot=/sysroot; }
	acl() { inside "$root" getfacl --absolute-names --numeric --omit-header "${1#"$root"}" | grep -c '^user:1234:' || true; }

	mkdir -p "$root/sysroot" "$tree"/{boot,usr/etc,usr/lib/modules/1,var,sysroot}
	echo kernel >"$tree/usr/lib/modules/1/vmlinuz"
	echo initramfs >"$tree/usr/lib/modules/1/initramfs.img"
	printf 'ID=os\nPRETTY_NAME=OS\n' >"$tree/usr/lib/os-release"
	for file in acl acl-and-text mode; do
		echo secret >"$tree/usr/etc/$file"
		chmod 640 "$tree/usr/etc/$file"
	done
	inside "$root" ostree admin init-fs --modern /sysroot
	repo config set sysroot.bootloader none
	admin os-init os >/dev/null
	first=$(repo commit --branch=os --tree=dir=/tree)
	admin deploy --os=os os >/dev/null

	first=$root/sysroot/ostree/deploy/os/deploy/$first.0/etc
	inside "$root" setfacl -m u:1234:r "${first#"$root"}/acl" "${first#"$root"}/acl-and-text"
	echo changed >>"$first/acl-and-text"
	chmod 600 "$first/mode"
	echo "new" >"$tree/usr/new"
	second=$(repo commit --branch=os --tree=dir=/tree)
	same "ostree $2, config-diff" "M acl-and-text
M mode" "$(admin config-diff --os=os | tr -s ' ' | LC_ALL=C sort)"
	admin deploy --os=os os >/dev/null
	second=$root/sysroot/ostree/deploy/os/deploy/$second.0/etc
	same "ostree $2, after the upgrade" "acl: 640, entries for user 1234: 1, then 0
acl-and-text: 640, entries for user 1234: 1, then 1
mode: 600" "acl: $(stat -c %a "$second/acl"), entries for user 1234: $(acl "$first/acl"), then $(acl "$second/acl")
acl-and-text: $(stat -c %a "$second/acl-and-text"), entries for user 1234: $(acl "$first/acl-and-text"), then $(acl "$second/acl-and-text")
mode: $(stat -c %a "$second/mode")"
}

check bookworm 2022.7-2+deb12u1 2.3.1-3
check trixie 2025.2-1 2.3.2-2+b1
