// Package fsck checks every object, ref, layer, snapshot, checkout and rootfs image of a store, and repairs them from
// the blobs that layers were unpacked from.
//
// Both work beside a running daemon. Files that the daemon removes meanwhile are not reported.
package fsck
