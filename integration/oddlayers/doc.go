// Package oddlayers tests what snapshotters make of layers that they do not agree on: the table in
// docs/odd-layers.md. Each row is a test of this snapshotter in both checkout modes, and of containerd's overlayfs,
// native and erofs.
package oddlayers
