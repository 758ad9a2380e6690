#!/usr/bin/env bash
# containerd 1.7.24: all proxy plugins get the capabilities of one of them, depending on who built the binary
#
# Expected:  a proxy plugin has the capabilities in its own section of the configuration. They decide, for example, whether a client
#            changes the owners of an image for a user namespace, or leaves that to the snapshotter.
# Found:     containerd 1.7.24, built from its Go module, gives every proxy plugin the capabilities of one of them, also those that
#            have none; their addresses are right. Debian's binary of the same version and 1.7.35 give each its own.
# Versions:  containerd 1.7.24 (Go module proxy; Debian 13) and 1.7.35 (Go module proxy), seen on 2026-11-30
# Matters:   a snapshotter beside another one is asked for what it cannot do, or not asked for what it can. "ctr plugins ls -d" shows
#            the capabilities in effect. A work-around is to give all proxy plugins the same.
# Needs:     root (chroot, mount namespace), apt with a Debian mirror, go
set -euo pipefail
# shellcheck source=lib/debian.bash
. "$(dirname "$0")/lib/debian.bash"
need go ps
need_root "chroot"
tmp=$(mktemp -d)
trap 'chmod -R u+w "$tmp"; rm -rf "$tmp"' EXIT

# config DIR prints a configuration for a containerd that sees the directory for its files as DIR.
config() {
	cat <<-X
		version = 2
		root = "$1/root"
		state = "$1/state"
		disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.nri.v1.nri"]
		[grpc]
		  address = "$1/containerd.sock"
		[ttrpc]
		  address = "$1/ttrpc.sock"
		[proxy_plugins.one]
		  type = "snapshot"
		  address = "$1/one.sock"
		  capabilities = ["rebase"]
		[proxy_plugins.two]
		  type = "snapshot"
		  address = "$1/two.sock"
		[proxy_plugins.three]
		  type = "snapshot"
		  address = "$1/three.sock"
		  capabilities = ["remap-ids"]
	X
}

# plugins DIR SEEN COMMAND... runs containerd with its files in DIR, which it sees as SEEN, and prints the proxy plugins and their
# capabilities. COMMAND runs a program there.
plugins() {
	local dir=$1 seen=$2 pid
	shift 2
	mkdir -p "$dir"
	config "$seen" >"$dir/config.toml"
	"$@" containerd --config "$seen/config.toml" >"$dir/log" 2>&1 &
	pid=$! # of a shell, whose only child becomes containerd
	for _ in $(seq 100); do [ -S "$dir/containerd.sock" ] && break; sleep 0.1; done
	"$@" ctr --address "$seen/containerd.sock" plugins ls -d | awk '$1 == "ID:" { id = $2 }
		$1 == "address" && $2 ~ /\/(one|two|three)\.sock$/ { split($2, part, "/"); got[id] = "" ; list[++n] = id }
		$1 == "Capabilities:" && id in got { got[id] = $2 }
		END { for (i = 1; i <= n; i++) print list[i] ":", got[list[i]] }' | sort
	kill "$(ps --no-headers -o pid --ppid "$pid" | tr -d ' ')"
	wait "$pid" || true
}

# module VERSION builds containerd and ctr from the module of a version.
module() {
	local src
	src=$(cd "$tmp" && go mod download -json "github.com/containerd/containerd@v$1" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
	mkdir -p "$tmp/$1"
	GOWORK=off GOFLAGS=-mod=readonly CGO_ENABLED=0 go build -C "$src" -buildvcs=false -tags no_btrfs -o "$tmp/$1" ./cmd/containerd ./cmd/ctr
}

# from DIR PROGRAM... runs a program of a directory.
from() { local dir=$1 program=$2; shift 2; "$dir/$program" "$@"; }

separate='one: rebase
three: remap-ids
two: '

module 1.7.24
# Which plugin's they are changes from start to start.
same "containerd 1.7.24 of the module, different capabilities of three plugins" 1 \
	"$(plugins "$tmp/a" "$tmp/a" from "$tmp/1.7.24" | tee /dev/stderr | cut -d: -f2 | sort -u | wc -l)"
module 1.7.35
same "containerd 1.7.35 of the module" "$separate" "$(plugins "$tmp/b" "$tmp/b" from "$tmp/1.7.35")"
debian_root "$tmp/root" trixie containerd=1.7.24~ds1-6+deb13u1
same "containerd 1.7.24 of Debian" "$separate" "$(plugins "$tmp/root/files" /files inside "$tmp/root")"
