package snapshotter

import (
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/panics"
)

// testWorker returns a worker with the delays of the one that copies metadata.db.
func testWorker(task func() error) *worker {
	return newWorker(task, copyAfterLast, copyAfterFirst)
}

// TestWorkerWaits checks that the task runs once for triggers that follow each other, and half a minute after the first
// at the latest.
func TestWorkerWaits(t *testing.T) {
	for _, tt := range []struct {
		name     string
		triggers []time.Duration // when
		want     []time.Duration // runs
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
				w := testWorker(func() error { got = append(got, time.Since(start)); return nil })
				for _, at := range tt.triggers {
					time.Sleep(at - time.Since(start))
					w.trigger()
				}
				time.Sleep(time.Minute)
				synctest.Wait()
				w.stop()
				if err := w.flush(); err != nil || !slices.Equal(got, tt.want) {
					t.Errorf("got runs at %v, %v, want %v", got, err, tt.want)
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

// slowWorker returns a worker whose runs take a minute, and the number of its finished runs. Two runs at once are an error.
func slowWorker(t *testing.T) (*worker, *atomic.Int64) {
	t.Helper()
	var runs, atOnce atomic.Int64
	return testWorker(func() error {
		if atOnce.Add(1) > 1 {
			t.Error("two runs at once")
		}
		time.Sleep(time.Minute)
		atOnce.Add(-1)
		runs.Add(1)
		return nil
	}), &runs
}

// TestWorkerBusy checks that a trigger during a run does not wait, and causes another run. stop waits for the first
// run, and flush does the second.
func TestWorkerBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, runs := slowWorker(t)
		w.trigger()
		time.Sleep(copyAfterLast + time.Second)
		before := time.Now()
		w.trigger()
		if waited := time.Since(before); waited != 0 || runs.Load() != 0 {
			t.Errorf("waited %v, %d runs, want neither", waited, runs.Load())
		}
		w.stop()
		if err := w.flush(); err != nil || runs.Load() != 2 {
			t.Errorf("got %d runs, %v, want 2", runs.Load(), err)
		}
		w.trigger()
		time.Sleep(time.Hour)
		if runs.Load() != 2 {
			t.Errorf("got %d runs after stop, want 2", runs.Load())
		}
	})
}

// TestWorkerRunsOnceAtATime checks that a run that takes longer than the delay is not joined by a second one.
func TestWorkerRunsOnceAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, runs := slowWorker(t)
		w.trigger()
		time.Sleep(copyAfterLast + time.Second)
		w.trigger()
		time.Sleep(time.Hour)
		if runs.Load() != 2 {
			t.Errorf("got %d runs, want 2", runs.Load())
		}
		w.stop()
	})
}

// TestWorkerFails checks that after an error the task runs at the next trigger, or when flushed.
func TestWorkerFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := errors.New("no space left on device")
		var failed []error
		runs := 0
		w := testWorker(func() error { runs++; return disk })
		w.failed = func(err error) { failed = append(failed, err) }
		w.trigger()
		time.Sleep(time.Hour)
		synctest.Wait()
		if runs != 1 || len(failed) != 1 || !errors.Is(failed[0], disk) {
			t.Errorf("got %d runs and errors %v, want one of each", runs, failed)
		}
		w.stop()
		if err := w.flush(); !errors.Is(err, disk) || runs != 2 {
			t.Errorf("flush: got %v after %d runs", err, runs)
		}
	})
}

// TestWorkerPanic has the task of a worker panic. The worker reports it, and runs the next time.
func TestWorkerPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		runs := 0
		var failed []error
		w := newWorker(func() error {
			if runs++; runs == 1 {
				panic("boom")
			}
			return nil
		}, time.Second, 0)
		w.failed = func(err error) { failed = append(failed, err) }
		for range 2 {
			w.trigger()
			time.Sleep(2 * time.Second)
			synctest.Wait()
		}
		var p *panics.Error
		if runs != 2 || len(failed) != 1 || !errors.As(failed[0], &p) {
			t.Errorf("got %d runs, errors %v; want 2 and the panic", runs, failed)
		}
		w.stop()
	})
}
