#!/usr/bin/env bash
# ostree: flock(1) on the lock file of a repository does not keep ostree out
#
# Expected:  "flock REPO/.lock COMMAND" keeps prune and other writers out while COMMAND runs, as the file's name suggests.
# Found:     ostree takes open file description locks with fcntl(F_OFD_SETLK), which on a local file system have nothing to do
#            with flock(2). "ostree prune" deletes objects while flock(1) holds the file exclusively. With "flock --fcntl", new
#            in util-linux 2.41, ostree waits until its time-out and fails.
# Versions:  ostree 2025.2, util-linux 2.41.5 (Debian 13), seen on 2026-11-30
# Matters:   scripts that copy or back up a repository under flock(1), and programs that call flock(2), exclude each other but
#            not ostree: a prune can delete objects that they have just found. Use F_OFD_SETLK on the whole file: a read lock to
#            add objects, a write lock to delete them. lslocks(8) shows such a lock as OFDLCK.
# Needs:     root (chroot, mount namespace), apt with a Debian mirror
set -euo pipefail
# shellcheck source=lib/debian.bash
. "$(dirname "$0")/lib/debian.bash"
need_root "chroot"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
root=$tmp/root
debian_root "$root" trixie ostree=2025.2-1 util-linux=2.41.5-0+deb13u1
ostree=(ostree --repo=/repo)

mkdir "$root/tree"
inside "$root" "${ostree[@]}" init --mode=archive
inside "$root" "${ostree[@]}" config set core.lock-timeout-secs 1

# prune_under OPTION... makes a commit without a ref and prunes while flock(1) holds the lock file.
prune_under() {
	echo hello >"$root/tree/file"
	inside "$root" "${ostree[@]}" commit --orphan --tree=dir=/tree >/dev/null
	inside "$root" flock "$@" --exclusive /repo/.lock "${ostree[@]}" prune --refs-only 2>&1 | sed 's/, .* freed//' || true
}

same "flock ostree prune" "Total objects: 4
Deleted 4 objects" "$(prune_under)"
same "flock --fcntl ostree prune" "error: Locking repo exclusive failed: Resource temporarily unavailable" "$(prune_under --fcntl)"
