package main

import (
	"errors"
	"fmt"
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
