// Package commitsig compares deploy/commitsig with ostree: the same commits, signatures and keys are given to both, and both
// must accept and refuse the same. GnuPG makes the OpenPGP keys and signatures, OpenSSL those of ed25519. Each ostree runs
// in the root file system of its Debian release, below which the keys are.
package commitsig
