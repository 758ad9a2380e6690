package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
)

// Units that finish staged deployments when the system shuts down: that of ostree comes first, where a system has both.
var finalizeUnits = []string{"ostree-finalize-staged.service", "ostree-snapshotter-finalize-staged.service"}

// systemdStamp exists where systemd runs the system.
const systemdStamp = "/run/systemd/system"

// armFinalize has systemd run a unit that finishes what is staged when the system shuts down. Path units start it too, but
// when they come to it: a system that is rebooted at once would lose the update.
func (c *cli) armFinalize(ctx context.Context) error {
	if _, err := os.Stat(systemdStamp); errors.Is(err, fs.ErrNotExist) {
		c.note("systemd does not run this system: \"ostree-snapshotter finalize-staged\" must be called when it shuts down")
		return nil
	}
	for _, unit := range finalizeUnits {
		out, err := exec.CommandContext(ctx, "systemctl", "show", "--property=LoadState", "--value", unit).Output()
		if err != nil {
			return fmt.Errorf("ask systemd for %s: %w", unit, err)
		}
		if strings.TrimSpace(string(out)) != "loaded" {
			continue
		}
		if out, err := exec.CommandContext(ctx, "systemctl", "start", unit).CombinedOutput(); err != nil {
			return fmt.Errorf("start %s: %w: %s", unit, err, strings.TrimSpace(string(out)))
		}
		return nil
	}
	return fmt.Errorf("systemd has none of %s", strings.Join(finalizeUnits, ", "))
}

// staged makes sure that what was staged is finished when the system shuts down.
func (c *cli) staged(ctx context.Context, s *system) error {
	if !s.running {
		return nil
	}
	if err := c.armFinalize(ctx); err != nil {
		return withHint(withStatus(exitPartly, fmt.Errorf("the deployment is staged, but nothing finishes it at shutdown: %w", err)),
			"a unit that calls \"ostree-snapshotter finalize-staged\" when it stops is in deploy/systemd")
	}
	return nil
}
