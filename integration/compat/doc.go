// Package compat tests that this revision works with a store and a system that an earlier revision made.
//
// An archive in testdata, named after its revision, holds
//
//	store          a root with layers, checkouts of both kinds, committed and active snapshots, and a journal
//	sysroot        a system with two deployments, one of them pinned
//	expected.json  the snapshots, their files and the system, as that revision showed them
//
// The revision's own program made them, with a real containerd; see [Make] for the steps. To make the archive of a revision:
//
//	go run ./integration/compat/make -rev REV
//
// A change of a format on the disk needs an archive of the last revision before it, and must not change an older archive.
package compat
