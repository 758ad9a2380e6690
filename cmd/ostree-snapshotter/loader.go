package main

import (
	"errors"
	"io/fs"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/bootloader"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
)

// openLoader opens the boot loader of a system, if it is one that does not read /boot itself; nil if not. It is that of the
// ESP that the flags name, else the one that the system has. Commands that only look do without one that cannot be had, and
// see no boot counting.
func (c *cli) openLoader(f *systemFlags, dir *atfs.Dir, running bool) (*bootloader.SystemdBoot, error) {
	if f.esp != "" {
		return bootloader.Open(f.esp)
	}
	b, err := bootloader.FindFor(dir, running)
	switch {
	case err == nil:
		return b, nil
	case errors.Is(err, bootloader.ErrNone), errors.Is(err, fs.ErrPermission) && unix.Geteuid() != 0:
		return nil, nil
	case !f.changes:
		c.note("%v", err)
		return nil, nil
	}
	return nil, withHint(err, "--esp DIR says where the EFI system partition is mounted")
}

// canCount makes sure that the boot loader counts boots.
func (s *system) canCount() error {
	if s.loader == nil {
		return withHint(errors.New("boots are counted by systemd-boot with an EFI system partition alone, and none is there"),
			"--esp DIR says where it is mounted; or do without --boot-tries")
	}
	if err := s.loader.CanCount(); err != nil {
		return withHint(err, "do without --boot-tries")
	}
	return nil
}
