// Package integration tests the daemon as its users meet it: a real containerd pulls real images from a real registry,
// runs containers on them, and its clients (ctr, nerdctl, CRI) see what containerd's own overlayfs snapshotter shows.
//
// The tests need root, a kernel with overlayfs, and what package testhost installs and builds; without root and with
// -short they are skipped. Everything runs below temporary directories, on unix sockets and the loopback interface.
//
// The environment variable OSTREE_SNAPSHOTTER_BINARY names a binary to test instead of one built from this tree.
package integration
