# Helpers for the scripts in the parent directory: run Debian packages without installing them, and compare output.
# shellcheck shell=bash

# need exits with status 2 unless every named command exists.
need() {
	local c
	for c in "$@"; do
		command -v "$c" >/dev/null || { echo "missing command: $c" >&2; exit 2; }
	done
}

# need_root exits with status 2 unless the script runs as root.
need_root() {
	[ "$(id -u)" = 0 ] || { echo "needs root: $1" >&2; exit 2; }
}

# debian_root DIR SUITE PACKAGE=VERSION... unpacks the packages and their dependencies into DIR. It uses the mirror that the host's
# apt is configured with, keeps its own apt state, and runs no maintainer scripts.
debian_root() {
	local dir=$1 suite=$2 mirror apt name
	shift 2
	need apt-get dpkg-deb chroot
	# shellcheck disable=SC2016 # expanded by apt
	mirror=$(apt-get indextargets --format '$(REPO_URI)' | grep -m1 '/debian/*$' || true)
	[ -n "$mirror" ] || { echo "apt has no Debian mirror configured" >&2; exit 2; }
	apt=$dir.apt
	mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$apt/etc/preferences.d" "$apt/etc/sources.list.d" "$dir"/usr/{bin,sbin,lib,lib64}
	: >"$apt/status"
	for name in bin sbin lib lib64; do ln -s "usr/$name" "$dir/$name"; done
	echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$apt/etc/sources.list"
	local opts=(-qq -o "Dir::State=$apt" -o "Dir::State::status=$apt/status" -o "Dir::Cache=$apt/cache" -o "Dir::Etc=$apt/etc"
		-o APT::Sandbox::User=root -o Acquire::Languages=none -o APT::Install-Recommends=false -o Debug::NoLocking=true)
	apt-get "${opts[@]}" update >&2
	apt-get "${opts[@]}" install --yes --download-only "$@" >/dev/null
	for name in "$apt"/cache/archives/*.deb; do dpkg-deb --fsys-tarfile "$name" | tar -C "$dir" -x --keep-directory-symlink; done
	rm -r "$apt"
}

# inside DIR COMMAND... runs a command in such a root, with /proc and /dev mounted in its own mount namespace.
inside() {
	# shellcheck disable=SC2016 # expanded by the inner shell
	unshare --mount --propagation private bash -c \
		'mkdir -p "$0/proc" "$0/dev" && mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && exec chroot "$0" "$@"' "$@"
}

# same NAME EXPECTED FOUND prints FOUND. If it differs from EXPECTED, it prints a diff and exits with status 1.
same() {
	printf '%s:\n%s\n\n' "$1" "$3"
	diff -u --label expected --label found <(printf '%s\n' "$2") <(printf '%s\n' "$3") || { echo "$1: behaviour has changed since 2026-11-30" >&2; exit 1; }
}
