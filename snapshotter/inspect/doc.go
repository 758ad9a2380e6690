// Package inspect reads a store: its snapshots and layers, the layers in use, and the disk space of each.
//
// It works beside a running daemon or without one. Only Prune and Cleanup change the store. A running daemon holds
// metadata.db locked; it then lists the snapshots, over its socket.
package inspect
