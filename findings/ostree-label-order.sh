#!/usr/bin/env bash
# ostree: a file with an attribute that sorts behind security.selinux gets a checksum that fsck rejects, in ostree 2022.7
#
# Expected:  "ostree commit --selinux-policy" gives a file that has a user.* attribute a label, and the object that it writes has
#            the checksum of what a later read finds.
# Found:     2022.7 appends the label to the attributes, and hashes them in this order. In mode bare they are attributes of the
#            file, which are sorted when they are read: the object has another checksum than its name says, and fsck calls it
#            corrupt. 2025.2 sorts, so the two give the same file different checksums. Files whose other attributes sort before
#            security.selinux, such as security.capability, are not concerned.
# Versions:  ostree 2022.7 (Debian 12) and 2025.2 (Debian 13), seen on 2026-11-30
# Matters:   whoever makes OS commits with labels, or compares his checksums with ostree's. For a tree with user.* attributes
#            (user.component of image builders, for example) the older version is no reference.
# Needs:     root (chroot, mount namespace), apt with a Debian mirror, setfattr
set -euo pipefail
# shellcheck source=lib/debian.bash
. "$(dirname "$0")/lib/debian.bash"
need_root "chroot"
need setfattr
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

check() { # SUITE OSTREE PLAIN ATTRIBUTE FSCK
	local root=$tmp/$1 policy=$tmp/$1/tree/etc/selinux
	debian_root "$root" "$1" "ostree=$2"
	repo() { inside "$root" ostree --repo=/repo "$@" 2>&1; }
	status() { if "$@" >"$tmp/out"; then echo ok; else grep -o 'Corrupted file object' "$tmp/out"; fi; }

	# The smallest policy that ostree takes.
	mkdir -p "$policy"/small/{policy,contexts/files} "$root"/{repo,tree/usr}
	printf 'SELINUX=permissive\nSELINUXTYPE=small\n' >"$policy/config"
	printf '/.*\tsystem_u:object_r:usr_t:s0\n' >"$policy/small/contexts/files/file_contexts"
	echo binary >"$policy/small/policy/policy.30"
	for name in plain attribute; do
		echo $name >"$root/tree/usr/$name"
	done
	setfattr -n user.name -v value "$root/tree/usr/attribute"
	repo init --mode=bare
	repo commit --branch=os --selinux-policy=/tree /tree >/dev/null
	same "ostree $2" "/usr/plain: $3
/usr/attribute: $4
fsck: $5" "/usr/plain: $(repo ls -C os /usr/plain | awk '{print $5}')
/usr/attribute: $(repo ls -C os /usr/attribute | awk '{print $5}')
fsck: $(status repo fsck)"
}

plain=077680e02c7224d55566248adf7621a42f94aa4bd59ae8d1b28f81f6455d1a27
check bookworm 2022.7-2+deb12u1 $plain cb89c97c5f4de3f5578605093cf9dd8d6afe7aa5191dfa80209712405b6321ff "Corrupted file object"
check trixie 2025.2-1 $plain 675037d352f36fc2f43bced194b2801c0b75482458d3a8d3075c16c562b82083 ok
