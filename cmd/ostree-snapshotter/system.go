package main

import (
	"context"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
)

// systemFlags say which operating system a command works on, and how.
type systemFlags struct {
	sysroot   string
	stateroot string
	dryRun    bool
	esp       string
	changes   bool // the command changes something, or would
}

// addSysroot gives a command the flag for another sysroot than the running system's.
func (f *systemFlags) addSysroot(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.sysroot, "sysroot", "/", "`DIR` that holds the system; / is the running one")
}

// addStateroot gives a command the flag for the stateroot that it is about.
func (f *systemFlags) addStateroot(cmd *cobra.Command, usage string) {
	cmd.Flags().StringVar(&f.stateroot, "stateroot", "", usage)
}

// addChange gives a command the flags that all have that change a system.
func (f *systemFlags) addChange(cmd *cobra.Command) {
	f.addUnit(cmd)
	cmd.Flags().BoolVar(&f.dryRun, "dry-run", false, "say what would happen and change nothing")
}

// addUnit gives a command the flags that those have that a unit calls.
func (f *systemFlags) addUnit(cmd *cobra.Command) {
	f.changes = true
	f.addSysroot(cmd)
	f.addESP(cmd)
}

// addESP gives a command the flag for the boot loader's own file system.
func (f *systemFlags) addESP(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.esp, "esp", "", "`DIR` where the EFI system partition is mounted, instead of looking for it")
}

// options returns how the system is to be opened.
func (c *cli) options(f *systemFlags) deploy.Options {
	return deploy.Options{ESP: f.esp, ReadOnly: !f.changes, Note: func(text string) { c.note("%s", text) }}
}

// viewSystem has f look at a system.
func (c *cli) viewSystem(ctx context.Context, flags *systemFlags, f func(*deploy.System, *sysroot.State) error) error {
	return deploy.View(ctx, flags.sysroot, c.options(flags), f)
}

// lockSystem has f work on a system that nobody else changes meanwhile. With --dry-run it only looks.
func (c *cli) lockSystem(ctx context.Context, flags *systemFlags, f func(*deploy.System, *sysroot.State) error) error {
	if unix.Geteuid() == 0 || !flags.dryRun { // whether it can be written to is part of a plan
		if err := deploy.EnsureWritable(flags.sysroot); err != nil {
			return err
		}
	}
	if flags.dryRun {
		return c.viewSystem(ctx, flags, f)
	}
	return deploy.Change(ctx, flags.sysroot, c.options(flags), f)
}
