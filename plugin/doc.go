// Package plugin assembles the daemon: it reads the configuration, checks that the host can do what is needed, opens
// the store, and serves the snapshotter and the differ on one unix socket.
package plugin
