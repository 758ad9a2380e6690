package sysroot

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/ostreehost"
)

// TestOSTreeWaits shows that ostree waits while we have the lock, and goes on when we give it back.
func TestOSTreeWaits(t *testing.T) {
	eachRelease(t, func(t *testing.T, r ostreehost.Release) {
		disk, systems := newSystems(t, r, false, "locked")
		s := systems[0]
		s.init(disk)
		finished := make(chan error, 1)
		err := s.locked(t.Context(), func(*sysroot.Sysroot) error {
			go func() {
				_, err := s.admin("deploy", "--os="+osName, "os/v1")
				finished <- err
			}()
			return waitForWaiter(t.Context(), stat(t, filepath.Join(s.root, "ostree/lock")).Ino, finished)
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := <-finished; err != nil {
			t.Fatal(err)
		}
		if got := len(s.entries()); got != 1 {
			t.Errorf("%d entries, want 1", got)
		}
	})
}

// waitForWaiter waits until a process waits for a lock on the file with this inode number, which the kernel tells nobody but
// who asks.
func waitForWaiter(ctx context.Context, ino uint64, finished <-chan error) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		locks, err := os.ReadFile("/proc/locks")
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(locks)) {
			if strings.Contains(line, " -> ") && strings.Contains(line, fmt.Sprintf(":%d ", ino)) {
				return nil
			}
		}
		select {
		case err := <-finished:
			return fmt.Errorf("ostree did not wait for the lock: %w", err)
		case <-ctx.Done():
			return fmt.Errorf("wait for ostree to wait for the lock: %w", context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// TestOSTreeReadsCounters shows that ostree reads entries that count boots, and that a good boot ends the counting.
func TestOSTreeReadsCounters(t *testing.T) {
	eachRelease(t, func(t *testing.T, r ostreehost.Release) {
		disk, systems := newSystems(t, r, false, "counted")
		s := systems[0]
		s.init(disk)
		for _, d := range []deployOp{
			{ref: "os/v1", stateroot: osName, set: []string{"root=/dev/vda2"}},
			{ref: "os/v2", stateroot: osName, tries: 3},
		} {
			if err := d.ours(t.Context(), s); err != nil {
				t.Fatal(err)
			}
		}
		counted := func() []string {
			t.Helper()
			names, err := filepath.Glob(filepath.Join(s.bootDir(), "loader/entries/*+3.conf"))
			if err != nil {
				t.Fatal(err)
			}
			return names
		}
		if got := counted(); len(got) != 1 {
			t.Fatalf("entries that count: %q, want one", got)
		}
		want := []string{"debian " + s.commitOf("os/v2") + ".0", "debian " + s.commitOf("os/v1") + ".0"}
		out, err := s.admin("status")
		if err != nil {
			t.Fatal(err)
		}
		if got := statusLines(out); !slices.Equal(got, want) {
			t.Errorf("ostree admin status lists %q, want %q", got, want)
		}
		s.booted = s.start(r, 0, s.setReadonly(false))
		err = s.locked(t.Context(), func(sr *sysroot.Sysroot) error {
			report, err := sr.BootComplete(t.Context())
			if err == nil && !report.Blessed {
				t.Errorf("the report of the boot is %+v", report)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if got := counted(); len(got) != 0 {
			t.Errorf("entries that count after a good boot: %q", got)
		}
		if _, err := s.admin("deploy", "--os="+osName, "os/v3"); err != nil {
			t.Fatal(err)
		}
		s.stop()
		s.check(t, s)
	})
}
