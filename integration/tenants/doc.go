// Package tenants attacks a running store from every side that the design calls hostile, and checks after each attack
// that the image of another tenant shows the same bytes and has kept its secret.
//
// The adversaries are the program in directory attacker, as root and as an ordinary user of containers and as a user of
// the host; a repository of dedup_repos; and images. Everything else is real: containerd, runc, the daemon, ostree.
//
// Privileged containers are out of scope: they can open the host's disk. A container with CAP_SYS_ADMIN and no device
// is in scope.
//
// The package itself is the program: the ways to write to a file that one can read, to get out of a container, and to
// reach a store as a user. Its tests run them.
package tenants
