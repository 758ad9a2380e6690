// Package script runs the scripts in testdata with the real program: what a command prints, its exit status, and what
// that leaves on the disk. It is a separate module, so that the product's go.mod does not require testscript.
//
// The scripts need root. OSTREE_SNAPSHOTTER_BINARY names a binary to test instead of one built from this tree. Run
// them with -count=1: Go's cache of results knows neither.
package script
