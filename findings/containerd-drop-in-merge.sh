#!/usr/bin/env bash
# containerd: a drop-in file appends to some lists, replaces others, and in 1.7 resets the keys that it does not name
#
# Expected:  an imported file changes the keys that it names, and all lists behave alike: the drop-in either adds or replaces.
# Found:     a list at the top level of the file (disabled_plugins) is appended to. A list of a plugin is replaced: a drop-in
#            with one unpack_config or one differ removes those of the main file. In 2.3.7 the other keys of the plugin keep the
#            main file's values. In 1.7.24 the whole section of the plugin is replaced: a drop-in that names one key sets all
#            others of the plugin back to their defaults.
# Versions:  containerd 1.7.24 (Debian 13) and 2.3.7 (Go module proxy), seen on 2026-11-30
# Matters:   a drop-in that registers a snapshotter has to repeat every list entry that others need, and on 1.7 every key of the
#            same plugin. Of two such drop-ins only the one that is read last counts. A drop-in cannot enable a plugin that the
#            main file disables. Check with "containerd config dump", which prints the merged result.
# Needs:     root (chroot, mount namespace), apt with a Debian mirror, go
set -euo pipefail
# shellcheck source=lib/debian.bash
. "$(dirname "$0")/lib/debian.bash"
need go
need_root "chroot"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

# files DIR VERSION PATH writes a configuration file of that version to DIR, which containerd sees at PATH, and a drop-in.
files() {
	mkdir -p "$1/conf.d"
	cat >"$1/config.toml" <<-X
		version = $2
		imports = ["$3/conf.d/*.toml"]
		disabled_plugins = ["io.containerd.snapshotter.v1.zfs"]
		[plugins."io.containerd.service.v1.diff-service"]
		  default = ["first", "walking"]
		[plugins."io.containerd.transfer.v1.local"]
		  max_concurrent_downloads = 7
		  [[plugins."io.containerd.transfer.v1.local".unpack_config]]
		    platform = "linux"
		    snapshotter = "overlayfs"
	X
	cat >"$1/conf.d/drop-in.toml" <<-X
		version = $2
		disabled_plugins = ["io.containerd.snapshotter.v1.btrfs"]
		[plugins."io.containerd.service.v1.diff-service"]
		  default = ["second"]
		[plugins."io.containerd.transfer.v1.local"]
		  [[plugins."io.containerd.transfer.v1.local".unpack_config]]
		    platform = "linux"
		    snapshotter = "native"
	X
}

# keys prints the keys of interest in the output of "containerd config dump".
keys() {
	tr "'" '"' | awk '/^ *\[/ { section = $0 }
		/^disabled_plugins/ { print }
		section ~ /diff-service/ && $1 == "default" { print "diff-service:", $0 }
		section ~ /transfer.v1.local/ && ($1 == "max_concurrent_downloads" || $1 == "snapshotter") { print "transfer:", $0 }' | tr -s ' '
}

debian_root "$tmp/root" trixie containerd=1.7.24~ds1-6+deb13u1
files "$tmp/root/files" 2 /files
same "containerd 1.7.24" 'disabled_plugins = ["io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.btrfs"]
diff-service: default = ["second"]
transfer: max_concurrent_downloads = 3
transfer: snapshotter = "native"' "$(inside "$tmp/root" containerd --config /files/config.toml config dump 2>/dev/null | keys)"

GOBIN=$tmp GOWORK=off CGO_ENABLED=0 go install github.com/containerd/containerd/v2/cmd/containerd@v2.3.7
files "$tmp/files" 3 "$tmp/files"
same "containerd 2.3.7" 'disabled_plugins = ["io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.btrfs"]
diff-service: default = ["second"]
transfer: max_concurrent_downloads = 7
transfer: snapshotter = "native"' "$("$tmp/containerd" --config "$tmp/files/config.toml" config dump 2>/dev/null | keys)"
