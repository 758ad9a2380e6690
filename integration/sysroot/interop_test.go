package sysroot

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/ostreehost"
)

// TestOSTreeWaits checks that ostree waits while we hold the lock, and continues when we release it.
func TestOSTreeWaits(t *testing.T) {
	eachRelease(t, func(t *testing.T, r ostreehost.Release) {
		t.Helper()
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

// waitForWaiter waits until a process waits for a lock on the file with this inode number. The kernel has no
// notification for it.
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

// TestOSTreeReadsCounters checks that ostree reads entries with boot counters, and that a good boot ends the counting.
func TestOSTreeReadsCounters(t *testing.T) {
	eachRelease(t, func(t *testing.T, r ostreehost.Release) {
		t.Helper()
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

// TestFailureToFinalize has a staged deployment that neither we nor ostree can finalize. The next boot is the old
// deployment, and the other program then reports the failure.
func TestFailureToFinalize(t *testing.T) {
	eachRelease(t, func(t *testing.T, r ostreehost.Release) {
		t.Helper()
		for _, ours := range []bool{false, true} {
			disk, systems := newSystems(t, r, ours, "failure")
			s := systems[0]
			s.init(disk)
			s.commitTree(disk, "os/conflict", conflicting)
			steps := []op{
				deployment(deployOp{ref: "os/v1"}), boot(0, false),
				deployment(deployOp{ref: "os/conflict", stage: true}), edit("conf", "changed since"),
			}
			for _, o := range steps {
				if err := o.ostree(s); err != nil {
					t.Fatalf("%s: %v", o.name, err)
				}
			}
			before := s.list()
			fails, tells := finalize().ostree, s.failureByUs
			if ours {
				fails, tells = func(s *system) error { return finalize().ours(t.Context(), s) }, s.failureByOSTree
			}
			if err := fails(s); err == nil {
				t.Fatalf("finalize (by us: %v) has not failed", ours)
			}
			const stamp = "boot/ostree/finalize-failure.stamp"
			after := s.list()
			if after[stamp] == "" {
				t.Errorf("finalize (by us: %v) has left no %s", ours, stamp)
			}
			delete(after, stamp)
			// Leftovers of ostree's attempt are not checked.
			if diff := withoutStaged(before).diff(withoutStaged(after)); len(diff) > 0 && ours {
				t.Errorf("finalize has failed and changed\n%s", strings.Join(diff, "\n"))
			}
			if err := boot(0, false).ostree(s); err != nil {
				t.Fatal(err)
			}
			if text := tells(); !strings.Contains(text, "conf") {
				t.Errorf("what is said of the failure (by us: %v) is %q", ours, text)
			}
			if l := s.list(); l[stamp] != "" {
				t.Errorf("%s is there still: %s", stamp, l[stamp])
			}
			s.stop()
		}
	})
}

// withoutStaged returns a listing without the files in /run.
func withoutStaged(l listing) listing {
	l = maps.Clone(l)
	maps.DeleteFunc(l, func(name, _ string) bool { return strings.HasPrefix(name, stagedFile) })
	return l
}

func (s *system) failureByUs() (text string) {
	s.t.Helper()
	err := s.locked(s.t.Context(), func(sr *sysroot.Sysroot) error {
		report, err := sr.BootComplete(s.t.Context())
		if err == nil {
			text = report.Finalize
		}
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return text
}

func (s *system) failureByOSTree() string {
	s.t.Helper()
	_, err := s.admin("boot-complete")
	if _, ok := errors.AsType[*ostreehost.ExitError](err); !ok {
		s.t.Fatalf("ostree admin boot-complete: got %v, want a failure", err)
	}
	return err.Error()
}
