// Package deploy makes images the operating system that a machine boots. It holds the verbs: what the commands deploy, upgrade,
// switch, kargs, cleanup and install decide, without a command line and without containerd.
//
// An [Image] becomes an OS commit in the repository of a sysroot ([Promote]), and that becomes a deployment:
//
//	layer store --Source--> OS --Promote--> commit, ref ostree/container/image/... --Plan--> sysroot.Plan --Execute--> boots
//
// [System.Plan] promotes an image and decides what its deployment takes over from the one before: /etc, origin, kernel
// arguments. What it returns has changed nothing that boots; [Plan.Execute] does that, and a dry run only prints it. The parts
// are in packages of their own: oscommit makes the commit, sysroot reads and writes deployments, bootloader serves systemd-boot,
// install partitions a disk, kargs edits kernel arguments.
//
// Whoever executes plans holds the lock of [System.Lock] from before [System.Load] until after the plan is executed;
// [Change] sees to that. A process that dies in between leaves a system that boots, and at most a commit without a
// deployment, whose name the next plan that is executed removes.
package deploy
