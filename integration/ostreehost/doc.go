// Package ostreehost runs the ostree of several Debian releases against a sysroot, and boots a sysroot without a
// machine. The real ostree-prepare-root runs on it as in an initramfs, in private mount and PID namespaces, and its
// result becomes the root of the processes there. ostree admin takes that for a booted system.
//
// A [Host] is such a pair of namespaces. Its PID 1 is the test's own binary, so a package that starts hosts must call
// [Main] first in its TestMain. Hosts, with their mounts and processes, end with the process that started them, however
// it ends.
//
// The root file systems are made by mmdebstrap and kept in the cache of package testhost, as ostree-host/<key>.
package ostreehost
