#!/usr/bin/env bash
# libselinux 3.8: file_contexts.local does not override a path that the policy lists literally
#
# Expected:  a line in file_contexts.local, where "semanage fcontext -a" writes, overrides the policy's line for the same path.
# Found:     libselinux 3.4 does so. With 3.8.1 only patterns are overridden: if both lines spell the path without
#            metacharacters, the policy's line wins, and the local line is ignored without a warning. In both versions a local
#            pattern that matches the path loses to the policy's literal line.
# Versions:  selinux-utils 3.4 (Debian 12) and 3.8.1 (Debian 13), seen on 2026-11-30
# Matters:   the labels computed by an image builder or by "ostree commit --selinux-policy", and with them the checksums, depend
#            on the libselinux version as well as on the policy. An independent implementation has to choose one of the two
#            orders, and must be compared with more than one version.
# Needs:     root (chroot, mount namespace), apt with a Debian mirror; SELinux need not be enabled
set -euo pipefail
# shellcheck source=lib/debian.bash
. "$(dirname "$0")/lib/debian.bash"
need_root "chroot"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

check() { # SUITE VERSION LITERAL
	local root=$tmp/$1 path found=
	debian_root "$root" "$1" "selinux-utils=$2"
	cat >"$root/contexts" <<-'X'
		/srv/literal	--	system_u:object_r:policy_t:s0
		/srv/pattern.*	--	system_u:object_r:policy_t:s0
		/srv/mixed	--	system_u:object_r:policy_t:s0
	X
	cat >"$root/contexts.local" <<-'X'
		/srv/literal	--	system_u:object_r:local_t:s0
		/srv/pattern.*	--	system_u:object_r:local_t:s0
		/srv/mixe[d]	--	system_u:object_r:local_t:s0
	X
	for path in /srv/literal /srv/pattern-1 /srv/mixed; do
		found+=$(inside "$root" matchpathcon -f /contexts -m file "$path" | tr '\t' ' ')$'\n'
	done
	same "selinux-utils $2" "/srv/literal system_u:object_r:$3:s0
/srv/pattern-1 system_u:object_r:local_t:s0
/srv/mixed system_u:object_r:policy_t:s0
" "$found"
}

check bookworm 3.4-1+b6 local_t
check trixie 3.8.1-1 policy_t
