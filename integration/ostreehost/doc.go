// Package ostreehost runs the ostree of several Debian releases against a sysroot, and boots a sysroot without a machine:
// the real ostree-prepare-root runs over it as an initramfs would, in private mount and PID namespaces, and what it makes
// becomes the root of the processes there. To ostree admin that is a booted system.
//
// A [Host] is such a pair of namespaces. Its PID 1 is the test's own binary, so a package that starts hosts calls [Main]
// first of all in its TestMain. Hosts end with the process that started them, however it ends, and with them their
// mounts and processes.
//
// The root file systems are made by mmdebstrap and kept in the cache of package testhost, as ostree-host/<key>.
package ostreehost
