// Package sysroot reads and writes ostree sysroots: the directory trees from which an operating system boots one of
// several deployments. It writes what libostree writes, and both can work on the same sysroot in turn.
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
// A change is first planned, then executed. A [Plan] is computed from a [State] and has changed nothing;
// [Sysroot.Execute] carries it out. The executor holds the lock of [Sysroot.Lock] from before [Sysroot.Load] until
// after [Sysroot.Execute].
//
// At every moment boot/loader leads to entries whose kernels are complete, and these to complete deployments: a killed
// process, or a power failure, leaves a sysroot that boots as before or as planned. The next plan that is executed
// removes unfinished parts.
package sysroot
