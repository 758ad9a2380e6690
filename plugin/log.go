package plugin

import (
	"fmt"

	"github.com/containerd/log"
)

// Apply configures the logger of the process.
func (c LogConfig) Apply() error {
	if err := log.SetLevel(c.Level); err != nil {
		return fmt.Errorf("set log level: %w", err)
	}
	if err := log.SetFormat(log.OutputFormat(c.Format)); err != nil {
		return fmt.Errorf("set log format: %w", err)
	}
	return nil
}
