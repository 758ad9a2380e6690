// Package containerd is our client of containerd, for the daemon and the commands: version, plugins, content store,
// images, pulls, and the configuration that makes our daemon one of its plugins. No other package connects to
// containerd.
//
// Documents of images are bounded in size and verified by their digests.
package containerd
