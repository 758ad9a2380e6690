// Package sysroot reads and writes ostree sysroots: the directory trees from which an operating system boots one of several
// deployments. What it writes is what libostree writes, and both can work on the same sysroot in turn.
//
//	boot/                                     may be a file system of its own
//	    loader -> loader.<B>                  the switch: what it leads to boots
//	    loader.<B>/entries/*.conf             one an entry, one a deployment
//	    ostree/<stateroot>-<bootcsum>/        kernels, initramfs images
//	ostree/
//	    repo/                                 objects, of mode bare
//	    boot.<B> -> boot.<B>.<S>              the other switch: which deployment an entry leads to
//	    boot.<B>.<S>/<stateroot>/<bootcsum>/<n> -> ../../../deploy/<stateroot>/deploy/<commit>.<serial>
//	    deploy/                               its mtime changes with every change
//	        <stateroot>/var/                  shared by the deployments of the stateroot
//	        <stateroot>/deploy/<commit>.<serial>/        hard links of objects, but for etc/
//	        <stateroot>/deploy/<commit>.<serial>.origin  where it came from
//
// A change is planned first and executed then. A [Plan] is computed from a [State] and has changed nothing; [Sysroot.Execute]
// does what it says. Whoever executes plans holds the lock of [Sysroot.Lock] from before [Sysroot.Load] until after
// [Sysroot.Execute].
//
// At every moment boot/loader leads to entries whose kernels are complete, and these to deployments that are complete: a
// process that is killed, or a power failure, leaves the sysroot bootable with what was there before or with what was to be
// there. What was left unfinished the next plan that is executed removes.
package sysroot
