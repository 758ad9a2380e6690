// Package sysroot tests deployments against ostree itself, without a machine. The ostree admin and ostree-prepare-root
// of three Debian releases work on sysroots that we wrote, and we on theirs, and the results are compared.
//
// Sysroots are on file systems in memory, mounted in a namespace of the test (package ostreehost). The deployed trees
// are a few files. Where one boots, a release's usr is mounted over its usr.
package sysroot
