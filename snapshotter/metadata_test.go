package snapshotter

import (
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// One copy is made for changes that follow each other, and one after half a minute at the latest if they do not end.
func TestCopierWaits(t *testing.T) {
	for _, tt := range []struct {
		name    string
		changes []time.Duration // when
		want    []time.Duration // copies
	}{
		{"one", []time.Duration{0}, []time.Duration{5 * time.Second}},
		{"three in a row", []time.Duration{0, 4 * time.Second, 8 * time.Second}, []time.Duration{13 * time.Second}},
		{"two apart", []time.Duration{0, 7 * time.Second}, []time.Duration{5 * time.Second, 12 * time.Second}},
		{"no end", every(3*time.Second, 40*time.Second), []time.Duration{30 * time.Second, 44 * time.Second}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				var got []time.Duration
				c := copier{make: func() error { got = append(got, time.Since(start)); return nil }}
				for _, at := range tt.changes {
					time.Sleep(at - time.Since(start))
					c.changed()
				}
				time.Sleep(time.Minute)
				synctest.Wait()
				if err := c.close(); err != nil || !slices.Equal(got, tt.want) {
					t.Errorf("got copies at %v, %v, want %v", got, err, tt.want)
				}
			})
		})
	}
}

func every(step, end time.Duration) []time.Duration {
	var at []time.Duration
	for t := time.Duration(0); t < end; t += step {
		at = append(at, t)
	}
	return at
}

// A change that comes while a copy is made does not wait, and is in the next one. Close waits for the one, and makes the
// other.
func TestCopierBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var copies atomic.Int64
		c := copier{make: func() error { time.Sleep(time.Minute); copies.Add(1); return nil }}
		c.changed()
		time.Sleep(copyAfterLast + time.Second)
		before := time.Now()
		c.changed()
		if waited := time.Since(before); waited != 0 || copies.Load() != 0 {
			t.Errorf("waited %v, %d copies, want neither", waited, copies.Load())
		}
		if err := c.close(); err != nil || copies.Load() != 2 {
			t.Errorf("got %d copies, %v, want 2", copies.Load(), err)
		}
		c.changed()
		time.Sleep(time.Hour)
		if copies.Load() != 2 {
			t.Errorf("got %d copies after close, want 2", copies.Load())
		}
	})
}

// After an error the next change has the copy made, or close.
func TestCopierFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := errors.New("no space left on device")
		var failed []error
		copies := 0
		c := copier{make: func() error { copies++; return disk }, failed: func(err error) { failed = append(failed, err) }}
		c.changed()
		time.Sleep(time.Hour)
		synctest.Wait()
		if copies != 1 || len(failed) != 1 || !errors.Is(failed[0], disk) {
			t.Errorf("got %d copies and errors %v, want one of each", copies, failed)
		}
		if err := c.close(); !errors.Is(err, disk) || copies != 2 {
			t.Errorf("close: got %v after %d copies", err, copies)
		}
	})
}
