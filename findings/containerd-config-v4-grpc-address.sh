#!/usr/bin/env bash
# containerd: in a config.toml with "version = 4" the [grpc] section is silently ignored
#
# Expected:  [grpc] address sets the socket path, as in every earlier version of the file. Raising the version number of a file
#            either changes nothing else or causes an error or a warning.
# Found:     containerd 2.3 introduced version 4, which moves the address to a plugin: [plugins."io.containerd.server.v1.grpc"].
#            In files of version 2 or 3, [grpc] and [debug] still apply. In a file of version 4 they remain valid keys, but
#            nothing reads them: containerd listens on /run/containerd/containerd.sock and logs no warning. "containerd config
#            dump" prints both: the ignored section, and the plugin with the default address.
# Versions:  containerd 2.3.7 (Go module proxy), seen on 2026-11-30
# Matters:   a containerd with its socket moved (a second instance, a bundled one, a test) returns to the default path, where it
#            replaces another instance's socket. Tools that print configuration snippets should print version 3, which every 2.x
#            release reads, or tell users to keep the version of their own file.
# Needs:     root (mount, network and PID namespaces; nothing listens outside them), go
set -euo pipefail
# shellcheck source=lib/debian.bash
. "$(dirname "$0")/lib/debian.bash"
need go unshare
need_root "unshare"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
GOBIN=$tmp GOWORK=off CGO_ENABLED=0 go install github.com/containerd/containerd/v2/cmd/containerd@v2.3.7

# sockets VERSION starts containerd with a file of that version and lists its sockets.
sockets() {
	mkdir "$tmp/v$1"
	cat >"$tmp/v$1/config.toml" <<-X
		version = $1
		root = "$tmp/v$1/root"
		state = "$tmp/v$1/state"
		disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"]
		[grpc]
		  address = "$tmp/v$1/moved.sock"
		[debug]
		  address = "$tmp/v$1/debug.sock"
	X
	# shellcheck disable=SC2016 # expanded by the inner shell
	unshare --mount --net --pid --fork --kill-child --mount-proc --propagation private bash -ec '
		cd "$0"
		mount -t tmpfs tmpfs /run
		../containerd --config config.toml >log 2>&1 &
		for ((i = 0; i < 300; i++)); do
			! grep -qs "containerd successfully booted" log || break
			sleep 0.2
		done
		grep -q "containerd successfully booted" log || { cat log >&2; exit 1; }
		find /run "$PWD" -type s ! -name "*.ttrpc" | sed "s|^$PWD|DIR|" | LC_ALL=C sort
		echo "warnings about the file: $(sed -nE "/level=(warning|error)/s/.*msg=\"([^\"]*(onfig|grpc|key|address)[^\"]*)\".*/\1/p" log | paste -sd ";")"
	' "$tmp/v$1"
}

for version in 2 3; do
	same "version $version" "DIR/debug.sock
DIR/moved.sock
warnings about the file: Configuration migrated from version $version, use \`containerd config migrate\` to avoid migration" "$(sockets $version)"
done
same "version 4" "/run/containerd/containerd.sock
warnings about the file: " "$(sockets 4)"
same "config dump, version 4" "[plugins.'io.containerd.server.v1.grpc'] address = '/run/containerd/containerd.sock'
[grpc] address = 'DIR/moved.sock'" "$("$tmp/containerd" --config "$tmp/v4/config.toml" config dump |
	awk '/^ *\[/ { section = $1 } $1 == "address" && section ~ /grpc.?\]$/ { print section, $0 }' | tr -s ' ' | sed "s|$tmp/v4|DIR|")"
