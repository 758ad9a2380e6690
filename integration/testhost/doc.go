// Package testhost prepares a machine for the integration tests. It installs the Debian packages that they need, and
// builds the real programs that they run (containerd, ctr, nerdctl, crictl) from their Go modules.
//
// Everything is kept in a cache outside the repository, ${XDG_CACHE_HOME:-$HOME/.cache}/ostree-snapshotter, under the
// hash of its inputs:
//
//	bin-containerd/<key>/   containerd, containerd-shim-runc-v2, ctr, for each release
//	bin-buildkit/<key>/     buildkitd, buildctl
//	bin-nerdctl/<key>/      nerdctl
//	bin-registry/<key>/     docker-registry, unpacked from its Debian package so that no service is started
//	rootfs/<key>/           root file systems made by mmdebstrap (package images)
//	ostree-host/<key>/      ostree of a Debian release with what it needs to run (package ostreehost)
//	erofs-utils/<key>/      mkfs.erofs of Debian 13 with what it needs to run
//	docker.io/<key>/        dockerd, docker and docker-buildx of Debian 14 with what they need to run
//	images/<key>/           OCI layouts (package images)
//	native-os/<key>/        OCI layout of an ostree-native image (package encapsulate)
//	buildah/<key>/          buildah of Debian 14 with what it needs to run (package buildah)
//
// Every entry is complete: it is built under another name and renamed.
package testhost
