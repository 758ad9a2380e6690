// Package plugin assembles the daemon: it reads the configuration, checks that the host has every required feature,
// opens the store, and serves the snapshotter and the differ on one unix socket.
package plugin
