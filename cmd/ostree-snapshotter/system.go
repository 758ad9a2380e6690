package main

import (
	"context"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
)

// systemFlags are the flags for the operating system that a command works on.
type systemFlags struct {
	sysroot   string
	stateroot string
	dryRun    bool
	esp       string
	changes   bool // the command changes something, unless it is a dry run
}

// addSysroot adds the flag for another sysroot than the running system's.
func (f *systemFlags) addSysroot(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.sysroot, "sysroot", "/", "`DIR` that holds the system; / is the running one")
}

// addStateroot adds the flag for a stateroot.
func (f *systemFlags) addStateroot(cmd *cobra.Command, usage string) {
	cmd.Flags().StringVar(&f.stateroot, "stateroot", "", usage)
}

// addChange adds the flags common to the commands that change a system.
func (f *systemFlags) addChange(cmd *cobra.Command) {
	f.addUnit(cmd)
	cmd.Flags().BoolVar(&f.dryRun, "dry-run", false, "report what would happen and change nothing")
}

// addUnit adds the flags common to the commands that units call.
func (f *systemFlags) addUnit(cmd *cobra.Command) {
	f.changes = true
	f.addSysroot(cmd)
	f.addESP(cmd)
}

// addESP adds the flag for the boot loader's own file system.
func (f *systemFlags) addESP(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.esp, "esp", "", "mount point `DIR` of the EFI system partition, instead of searching for it")
}

// options returns the options for opening the system.
func (c *cli) options(f *systemFlags) deploy.Options {
	return deploy.Options{ESP: f.esp, ReadOnly: !f.changes, Note: func(text string) { c.note("%s", text) }}
}

// viewSystem calls f with the system.
func (c *cli) viewSystem(ctx context.Context, flags *systemFlags, f func(*deploy.System, *sysroot.State) error) error {
	return deploy.View(ctx, flags.sysroot, c.options(flags), f)
}

// lockSystem calls f with the system while no other process can change it. With --dry-run it takes no lock.
func (c *cli) lockSystem(ctx context.Context, flags *systemFlags, f func(*deploy.System, *sysroot.State) error) error {
	if unix.Geteuid() == 0 || !flags.dryRun { // a plan depends on whether the system is writable
		if err := deploy.EnsureWritable(flags.sysroot); err != nil {
			return err
		}
	}
	if flags.dryRun {
		return c.viewSystem(ctx, flags, f)
	}
	return deploy.Change(ctx, flags.sysroot, c.options(flags), f)
}
