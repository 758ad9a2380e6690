// Package docker tests the snapshotter under BuildKit, with both of its workers, and under Docker Engine. Each builds the same
// Dockerfile, and the images are compared with what BuildKit builds on containerd's overlayfs snapshotter.
package docker
