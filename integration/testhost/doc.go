// Package testhost makes a machine ready for the integration tests: it installs the Debian packages they need, and
// builds the real programs they run against (containerd, ctr, nerdctl) from their Go modules.
//
// Everything is kept in a cache outside the repository, ${XDG_CACHE_HOME:-$HOME/.cache}/ostree-snapshotter, under the
// hash of what it was made from:
//
//	bin-containerd/<key>/   containerd, containerd-shim-runc-v2, ctr
//	bin-nerdctl/<key>/      nerdctl
//	bin-registry/<key>/     docker-registry, unpacked from its Debian package so that no service is started
//	rootfs/<key>/           root file systems made by mmdebstrap (package images)
//	ostree-host/<key>/      ostree of a Debian release with what it needs to run (package ostreehost)
//	erofs-utils/<key>/      mkfs.erofs of Debian 13 with what it needs to run
//	images/<key>/           OCI layouts (package images)
//
// A key that is there is complete: entries are built beside it and renamed.
package testhost
