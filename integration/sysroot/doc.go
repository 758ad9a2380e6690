// Package sysroot tests deployments against ostree itself, without a machine: the ostree admin and ostree-prepare-root of
// two Debian releases work on the sysroots that we write, and we on theirs, and what both write is compared.
//
// Sysroots live on file systems in memory that are mounted in a namespace of the test's own (package ostreehost); the
// deployed trees are a few files, over whose usr a release's is mounted where one boots.
package sysroot
