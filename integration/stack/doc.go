// Package stack starts the real programs around the snapshotter, for tests, benchmarks and the demonstration: a
// registry, containerd and the daemon, each with its own configuration and data below one temporary directory and
// listening on unix sockets and the loopback interface only.
//
//	<dir>/c.sock            containerd
//	<dir>/o.sock            the daemon
//	<dir>/containerd/       containerd's root
//	<dir>/state/            containerd's state: rootfs mounts, shims
//	<dir>/ostree/           the daemon's root
//	<dir>/*.log, *.toml     what each program wrote and was given
//
// Stop ends every process that was started, containers included, by its process ID, unmounts what is left mounted below
// the directory and removes it.
package stack
