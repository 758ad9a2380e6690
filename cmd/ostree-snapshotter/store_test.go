package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/plugin"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/inspect"
)

// newFixture is makeFixture for a test, and the store as a command sees it.
func newFixture(t *testing.T) (*fixture, *store) {
	t.Helper()
	testenv.NeedsRoot(t)
	dir := t.TempDir()
	f, err := makeFixture(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.close(); err != nil {
			t.Error(err)
		}
	})
	return f, newStore(&plugin.Config{Root: dir}, &plugin.Store{Root: f.root, Repo: f.repo, Layers: f.layers}, "")
}

// stopDaemon closes the snapshotter, as when the daemon stops.
func (f *fixture) stopDaemon(t *testing.T) {
	t.Helper()
	if err := f.sn.Close(); err != nil {
		t.Fatal(err)
	}
}

// Errors of packages have the exit status and the hint that help, however they are wrapped.
func TestStatusAndHint(t *testing.T) {
	cause := errors.New("cause")
	for _, tt := range []struct {
		err    error
		status int
		hinted bool
	}{
		{&plugin.ConfigError{File: "config.toml", Err: cause}, exitFailed, true},
		{&plugin.NoStoreError{Root: "/store", Err: cause}, exitNoRepo, true},
		{objectstore.ErrNoRepo, exitNoRepo, false},
		{&snapshotter.DamagedMetadataError{Damage: cause}, exitCorrupt, true},
		{&inspect.LostMetadataError{File: "/store/metadata.db"}, exitFailed, true},
		{&inspect.LockedError{File: "/store/metadata.db", Address: "/run/s", Err: cause}, exitLocked, true},
		{objectstore.ErrLocked, exitLocked, true},
		{objectstore.ErrCorrupt, exitCorrupt, true},
		{cause, exitFailed, false},
	} {
		err := fmt.Errorf("do this: %w", errors.Join(tt.err, nil))
		if got := statusOf(err); got != tt.status {
			t.Errorf("%T: status %d, want %d", tt.err, got, tt.status)
		}
		if hint := hintFor(err); (hint != "") != tt.hinted {
			t.Errorf("%T: hint %q", tt.err, hint)
		}
	}
}

// TestPrunePartly has an object that cannot be removed: prune removes the rest, names it, and ends with status 3.
func TestPrunePartly(t *testing.T) {
	testenv.NeedsRoot(t)
	dir := t.TempDir()
	f, err := makeFixture(t.Context(), dir)
	testenv.Must(t, err)
	testenv.Must(t, f.close())
	garbage := filepath.Join(dir, "repo/objects/00", strings.Repeat("0", 62)+".file")
	testenv.Must(t, os.MkdirAll(filepath.Dir(garbage), 0o755))
	testenv.Must(t, os.WriteFile(garbage, []byte("garbage"), 0o644))
	other := filepath.Join(filepath.Dir(garbage), strings.Repeat("1", 62)+".file")
	testenv.Must(t, os.WriteFile(other, []byte("garbage"), 0o644))
	undo := testenv.SetFlags(t, garbage, testenv.Immutable)
	var stdout, stderr bytes.Buffer
	if got := execute(t.Context(), []string{"prune", "--root", dir}, &stdout, &stderr); got != exitPartly {
		t.Errorf("exit status is %d, want %d", got, exitPartly)
	}
	if got := stdout.String(); !strings.Contains(got, " 1 objects,") {
		t.Errorf("stdout is %q, want that the other object was removed", got)
	}
	if got := stderr.String(); !strings.Contains(got, filepath.Base(garbage)) || strings.Count(got, "\n") != 1 {
		t.Errorf("stderr is %q, want one line with the object", got)
	}
	undo()
	if got := execute(t.Context(), []string{"prune", "--root", dir}, io.Discard, io.Discard); got != exitOK {
		t.Errorf("afterwards the exit status is %d, want %d", got, exitOK)
	}
}
