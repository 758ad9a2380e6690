#!/usr/bin/env bash
# libselinux 3.8: a file_contexts pattern with <<none>> wins over later patterns that also match, if it has more leading directories
#
# Expected:  of the patterns that match a path the last line decides, as file_contexts(5) says, whether its context is a label or
#            <<none>>. A pattern is one regular expression: "/data/a|/data/b" stands for two paths.
# Found:     libselinux 3.4 goes by the last line. In 3.8.1 a matching line with <<none>> ends the search if it has more
#            leading directories without metacharacters (up to three) than the later line: the file gets no label. A label in the
#            same place loses to the later line in both versions. The anchors ^ and $ are added without parentheses: of
#            "/data/a|/data/b" the first alternative matches everything below /data/a too, the second every path that ends with
#            /data/b, but only below /data, because the pattern is not tried elsewhere.
# Versions:  selinux-utils 3.4 (Debian 12) and 3.8.1 (Debian 13), seen on 2026-11-30; 3.11 of Debian testing does as 3.8.1
# Matters:   an image that is labelled on one release can differ from one labelled on another, and an independent implementation
#            that matches whole regular expressions in order disagrees with all of them.
# Needs:     root (chroot, mount namespace), apt with a Debian mirror; SELinux need not be enabled
set -euo pipefail
# shellcheck source=lib/debian.bash
. "$(dirname "$0")/lib/debian.bash"
need_root "chroot"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

check() { # SUITE VERSION LABEL
	local root=$tmp/$1
	debian_root "$root" "$1" "selinux-utils=$2"
	cat >"$root/contexts" <<-'X'
		/.*	system_u:object_r:root_t:s0
		/a/b/none/.*	<<none>>
		/a/b/label/.*	system_u:object_r:early_t:s0
		/a/.*	system_u:object_r:later_t:s0
		/data/a|/data/b	system_u:object_r:data_t:s0
	X
	same "selinux-utils $2" "/a/b/none/file $3
/a/b/label/file system_u:object_r:later_t:s0
/data/a/below system_u:object_r:data_t:s0
/data/x/data/b system_u:object_r:data_t:s0
/srv/data/b system_u:object_r:root_t:s0" "$(inside "$root" matchpathcon -f /contexts -m file \
		/a/b/none/file /a/b/label/file /data/a/below /data/x/data/b /srv/data/b | tr '\t' ' ')"
}

check bookworm 3.4-1+b6 system_u:object_r:later_t:s0
check trixie 3.8.1-1 '<<none>>'
