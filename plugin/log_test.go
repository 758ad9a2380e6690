package plugin

import (
	"errors"
	"testing"

	"github.com/containerd/log"
)

// TestReload applies the log section of a configuration that was read again, and keeps the old one if it cannot be read.
func TestReload(t *testing.T) {
	before := DefaultConfig().Log
	t.Cleanup(func() { _ = before.Apply() })
	for _, tt := range []struct {
		name, level string
		err         error
		want        log.Level
	}{
		{"more", "debug", nil, log.DebugLevel},
		{"not readable", "error", errors.New("no such file"), log.DebugLevel},
		{"less", "warn", nil, log.WarnLevel},
		{"unknown level", "loud", nil, log.WarnLevel},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := DefaultConfig()
			c.Log.Level = tt.level
			Reload(t.Context(), func() (*Config, error) { return c, tt.err })
			if got := log.GetLevel(); got != tt.want {
				t.Errorf("got level %s, want %s", got, tt.want)
			}
		})
	}
}
