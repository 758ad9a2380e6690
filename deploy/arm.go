package deploy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
)

// finalizeUnits are the units that finalize staged deployments when the system shuts down. ostree's comes first, for
// systems that have both.
var finalizeUnits = []string{"ostree-finalize-staged.service", "ostree-snapshotter-finalize-staged.service"}

// systemdStamp exists where systemd runs the system.
const systemdStamp = "/run/systemd/system"

// arm has systemd finalize the staged deployment when the running system shuts down. Path units do that too, but not at
// once: a system that is rebooted right away would lose the update. An error is an ErrNotArmed.
func (s *System) arm(ctx context.Context) error {
	if !s.Running {
		return nil
	}
	if _, err := os.Stat(systemdStamp); errors.Is(err, fs.ErrNotExist) {
		s.note("systemd does not run this system: \"ostree-snapshotter finalize-staged\" must be called when it shuts down")
		return nil
	}
	if err := startFinalizer(ctx); err != nil {
		return as(ErrNotArmed, fmt.Errorf("the deployment is staged, but nothing finalizes it at shutdown: %w", err))
	}
	return nil
}

// startFinalizer starts the first of finalizeUnits that systemd has.
func startFinalizer(ctx context.Context) error {
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
