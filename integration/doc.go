// Package integration tests the daemon from the user's side: a real containerd pulls real images from a real registry
// and runs containers on them, and its clients (ctr, nerdctl, crictl) see the same files as with containerd's overlayfs
// snapshotter.
//
// The tests need root, a kernel with overlayfs, and the programs that package testhost installs and builds. Without
// root and with -short they are skipped. Everything runs below temporary directories, on unix sockets and the loopback
// interface.
//
// The environment variable OSTREE_SNAPSHOTTER_BINARY names a binary to test instead of one built from this tree.
package integration
