// Package deploy turns images into the operating system that a machine boots. It makes the decisions of the commands
// deploy, upgrade, switch, kargs, cleanup and install, without a command line and without containerd.
//
// An [Image] becomes an OS commit in the repository of a sysroot ([Promote]), and that becomes a deployment:
//
//	layers --Source--> OS --Promote--> commit and ref --Plan--> sysroot.Plan --Execute--> deployment
//
// [System.Plan] promotes an image and decides what its deployment takes over from the previous one: /etc, origin,
// kernel arguments. A plan has changed nothing that boots. [Plan.Execute] carries it out, a dry run prints it. Other
// packages do the work: oscommit makes the commit, sysroot reads and writes deployments, bootloader serves
// systemd-boot, install partitions a disk, kargs edits kernel arguments.
//
// The executor of a plan holds the lock of [System.Lock] from before [System.Load] until after the plan is executed, as
// [Change] does. If the process dies in between the system boots, and at most a commit without a deployment is left,
// whose ref the next executed plan removes.
package deploy
