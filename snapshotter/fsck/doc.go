// Package fsck checks every object, ref, layer, snapshot, checkout and rootfs image of a store, and repairs them from
// the blobs that layers were unpacked from.
//
// Both work beside a running daemon. What it removes meanwhile is not a problem.
package fsck
