// Package stack starts the real programs around the snapshotter, for tests, benchmarks and the demonstration: a
// registry, containerd and the daemon. Each has its own configuration and data below one temporary directory, and
// listens on unix sockets and the loopback interface only.
//
//	<dir>/c.sock            containerd
//	<dir>/o.sock            the daemon
//	<dir>/containerd/       containerd's root
//	<dir>/state/            containerd's state: rootfs mounts, shims
//	<dir>/ostree/           the daemon's root
//	<dir>/*.log, *.toml     what each program wrote and was given
//
// Stop ends every process of the stack, including containers, by its process ID. It unmounts everything below the
// directory and removes it.
package stack
