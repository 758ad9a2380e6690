package plugin

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

func TestProbeDaemon(t *testing.T) {
	running, other, stopped, absent := testConfig(t), testConfig(t), testConfig(t), testConfig(t)
	start(t, running, WithVersion("1.2 (abc)"))
	s, err := Assemble(t.Context(), stopped)
	testenv.Must(t, err)
	testenv.Must(t, s.Close())
	at := func(c *Config, address string) *Config {
		moved := *c
		moved.Address = address
		return &moved
	}
	start(t, other)
	silent := testConfig(t)
	testenv.Must(t, os.MkdirAll(silent.Root, 0o711))
	testenv.Must(t, os.MkdirAll(filepath.Dir(silent.Address), 0o711))
	l, err := net.Listen("unix", silent.Address)
	testenv.Must(t, err)
	t.Cleanup(func() { _ = l.Close() })

	const skipped = "not checked: it does not run"
	nowhere := absent.Address
	unheard := func(c *Config, address string) string {
		return fmt.Sprintf("process %d has %s open, and does not answer at %s: ", os.Getpid(), c.Root, address)
	}
	for _, tt := range []struct {
		name   string
		config *Config
		want   string // detail, or the beginning of the error
	}{
		{"running", running, "version 1.2 (abc) at " + running.Address},
		{"version unknown", other, "version unknown at " + other.Address},
		{"no root", absent, skipped + ": " + absent.Root + " does not exist yet"},
		{"stopped", stopped, skipped + " at " + stopped.Address},
		{"another address", at(running, nowhere), unheard(running, nowhere)},
		{"another root", at(stopped, running.Address), "ask the daemon at " + running.Address + ": it has another store open"},
		{"both", at(other, running.Address), unheard(other, running.Address) + "it has another store open"},
		{"no answer", silent, "ask the daemon at " + silent.Address + ": "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := ProbeDaemon(t.Context(), tt.config)
			if f.Err == nil && f.Detail != tt.want || f.Err != nil && !strings.HasPrefix(f.Err.Error(), tt.want) {
				t.Errorf("got %q, %v, want %q", f.Detail, f.Err, tt.want)
			}
			if got := errors.Is(f.Err, ErrNotChecked); got != strings.HasPrefix(tt.want, skipped) {
				t.Errorf("not checked: %v: %v", got, f.Err)
			}
			if f.Check != "daemon" || f.Err != nil && f.Detail != "" {
				t.Errorf("finding is %+v", f)
			}
		})
	}
}
