package snapshotter

import (
	"sync"
	"time"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/panics"
)

// A worker runs a task in the background, some time after it was last triggered, and never twice at once.
type worker struct {
	task   func() error
	failed func(error) // called with errors of background runs; nil if there are none
	quiet  time.Duration
	limit  time.Duration

	mu      sync.Mutex
	first   time.Time // first trigger since the last run began; zero if none
	timer   *time.Timer
	stopped bool

	running sync.WaitGroup
	turn    chan struct{} // holds an element while the task runs
}

// newWorker returns a worker that runs a task once nothing has triggered it for the duration quiet, or once limit has
// passed since it was first triggered; 0 is no limit.
func newWorker(task func() error, quiet, limit time.Duration) *worker {
	return &worker{task: task, quiet: quiet, limit: limit, turn: make(chan struct{}, 1)}
}

// trigger schedules the task. It never waits for a run. After stop it does nothing.
func (w *worker) trigger() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stopped {
		return
	}
	now := time.Now()
	if w.first.IsZero() {
		w.first = now
	}
	after := w.quiet
	if w.limit > 0 {
		after = min(after, w.first.Add(w.limit).Sub(now))
	}
	if w.timer == nil {
		w.timer = time.AfterFunc(after, w.background)
		return
	}
	w.timer.Reset(after)
}

func (w *worker) background() {
	w.mu.Lock()
	if w.stopped {
		w.mu.Unlock()
		return
	}
	w.running.Add(1)
	w.mu.Unlock()
	defer w.running.Done()
	if err := panics.Call(w.flush); err != nil && w.failed != nil {
		w.failed(err)
	}
}

// flush runs the task now if it was triggered since its last run began, or if that run failed.
func (w *worker) flush() error {
	w.turn <- struct{}{}
	defer func() { <-w.turn }()
	w.mu.Lock()
	triggered := !w.first.IsZero()
	w.first = time.Time{}
	w.mu.Unlock()
	if !triggered {
		return nil
	}
	err := w.task()
	if err != nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.first = time.Now()
	}
	return err
}

// stop prevents further background runs, and waits for the current one.
func (w *worker) stop() {
	w.mu.Lock()
	w.stopped = true
	if w.timer != nil {
		w.timer.Stop()
	}
	w.mu.Unlock()
	w.running.Wait()
}
