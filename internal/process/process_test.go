package process_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/process"
)

func TestProcess(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	p, err := process.Start(log, []string{"WORD=ready"}, "sh", "-c", "echo $WORD; exec sleep 1000")
	if err != nil {
		t.Fatal(err)
	}
	err = p.WaitFor(t.Context(), func(context.Context) error {
		if b, err := os.ReadFile(log); err != nil || string(b) != "ready\n" {
			return errors.Join(err, errors.New("it does not say so"))
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if err := unix.Kill(p.Pid, 0); err != nil || p.Err() != nil {
		t.Errorf("got %v, %v, want a process that runs", err, p.Err())
	}
	if err := p.Stop(); err != nil {
		t.Error(err)
	}
	if err := unix.Kill(p.Pid, 0); !errors.Is(err, unix.ESRCH) || p.Err() == nil {
		t.Errorf("got %v, %v, want a process that was killed", err, p.Err())
	}
	if err := p.Stop(); err != nil {
		t.Errorf("stop it again: %v", err)
	}
}

// If a program does not become ready, the error shows the end of its log.
func TestProcessEndsAtOnce(t *testing.T) {
	p, err := process.Start(filepath.Join(t.TempDir(), "log"), nil, "sh", "-c", "echo no disk >&2; exit 3")
	if err != nil {
		t.Fatal(err)
	}
	err = p.WaitFor(t.Context(), func(context.Context) error { return errors.New("not ready") })
	if err == nil || !strings.Contains(err.Error(), "exit status 3\nno disk") {
		t.Errorf("got %v, want its exit status and what it printed", err)
	}
}
