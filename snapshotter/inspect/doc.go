// Package inspect reads a store: its snapshots and layers, the layers in use, and the disk space of each.
//
// It works beside a running daemon or without one, and changes nothing. While a daemon runs it holds metadata.db locked,
// so snapshots are then listed by the daemon, over its socket.
package inspect
