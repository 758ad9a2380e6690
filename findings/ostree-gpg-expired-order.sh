#!/usr/bin/env bash
# ostree: a new signature does not help a commit whose earlier signature has expired, but the same two in the other order do
#
# Expected:  "ostree pull" with gpg-verify accepts a commit if any of its signatures is good. So a commit whose signature has
#            expired is signed again, by another key of the remote, and can be pulled.
# Found:     the order decides. With the expired signature first, the pull fails and tells of the expired one only; with
#            the good one first, it succeeds. "ostree gpg-sign" adds to the end, so signing again never helps. The expired
#            signature must go: after its file (objects/XX/*.commitmeta) is removed, a new signature counts.
# Versions:  ostree 2022.7 (Debian 12) and 2025.2 (Debian 13), seen on 2026-12-01
# Matters:   keys and signatures are rotated by adding before removing. Whoever mirrors a repository with an expired signature
#            cannot repair it by adding one, and a verifier that accepts "any good signature" disagrees with ostree.
# Needs:     root (chroot, mount namespace), apt with a Debian mirror
set -euo pipefail
# shellcheck source=lib/debian.bash
. "$(dirname "$0")/lib/debian.bash"
need_root "chroot"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

check() { # SUITE VERSION
	local root=$tmp/$1
	debian_root "$root" "$1" "ostree=$2" gpg gpg-agent gpgconf dash coreutils grep
	mkdir -p "$root"/{tree,gnupg,tmp}
	chmod 700 "$root/gnupg"
	# One call for all, because the agent must not outlive it.
	cat >"$root/run" <<-'X'
		set -eu
		export GNUPGHOME=/gnupg HOME=/tmp
		gpg="gpg --quiet --batch --yes --pinentry-mode loopback --passphrase="
		echo hello >/tree/file
		for key in old new; do $gpg --quick-generate-key $key ed25519 sign never 2>/dev/null; done
		$gpg --export >/keys
		id() { $gpg --with-colons --list-keys $1 | grep ^pub: | cut -d: -f5; }
		# sign ORDER KEY...: the signature by the key "old" is valid for one second.
		sign() {
			ostree --repo=/$1 init --mode=archive
			ostree --repo=/$1 commit --branch=os --timestamp=2026-01-01 --tree=dir=/tree >/dev/null
			for key in $2 $3; do
				: >/gnupg/gpg.conf
				[ $key = new ] || echo default-sig-expire seconds=1 >/gnupg/gpg.conf
				ostree --repo=/$1 gpg-sign --gpg-homedir=/gnupg os "$(id $key)" >/dev/null
			done
			: >/gnupg/gpg.conf
		}
		sign old-new old new
		sign new-old new old
		sleep 2
		pull() {
			rm -rf /client
			ostree --repo=/client init --mode=bare-user-only
			ostree --repo=/client remote add --gpg-import=/keys o file:///$1 >/dev/null
			ostree --repo=/client pull o os 2>&1 | grep -o 'Signature expired\|[0-9] metadata, [0-9] content objects imported' | head -1
		}
		for order in old-new new-old; do echo "$order: $(pull $order)"; done
		rm /old-new/objects/*/*.commitmeta
		ostree --repo=/old-new gpg-sign --gpg-homedir=/gnupg os "$(id new)" >/dev/null
		echo "new alone: $(pull old-new)"
		gpgconf --kill gpg-agent
	X
	same "ostree $2" "old-new: Signature expired
new-old: 3 metadata, 1 content objects imported
new alone: 3 metadata, 1 content objects imported" "$(inside "$root" sh /run)"
}

check bookworm 2022.7-2+deb12u1
check trixie 2025.2-1
