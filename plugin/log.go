package plugin

import (
	"context"
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

// Reload loads the configuration again and applies its log section. It logs the result: a configuration that cannot be
// loaded changes nothing, and other keys take a restart.
func Reload(ctx context.Context, load func() (*Config, error)) {
	c, err := load()
	if err == nil {
		err = c.Log.Apply()
	}
	if err != nil {
		log.G(ctx).WithError(err).Error("configuration is not reloaded")
		return
	}
	log.G(ctx).WithField("level", c.Log.Level).WithField("format", c.Log.Format).Info("log settings reloaded, other keys take a restart")
}
