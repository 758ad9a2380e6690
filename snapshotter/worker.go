package snapshotter

import (
	"sync"
	"time"
)

// A worker runs a task in the background, a while after it was last triggered, and never twice at once.
type worker struct {
	task   func() error
	failed func(error) // called with the error of a run in the background; may be nil if there never is one
	quiet  time.Duration
	limit  time.Duration

	mu      sync.Mutex
	first   time.Time // first trigger since the last run began; zero if there was none
	timer   *time.Timer
	stopped bool

	running sync.WaitGroup
	turn    chan struct{} // has an element while the task runs: the run that begins last also ends last
}

// newWorker returns a worker that runs a task when nothing has triggered it for the time quiet, or when the time limit is over
// since it was first triggered; 0 is no limit.
func newWorker(task func() error, quiet, limit time.Duration) *worker {
	return &worker{task: task, quiet: quiet, limit: limit, turn: make(chan struct{}, 1)}
}

// trigger has the task run later. It never waits for a run. After stop it does nothing.
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
	if err := w.flush(); err != nil {
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

// stop begins no more runs in the background, and waits for the one that is running.
func (w *worker) stop() {
	w.mu.Lock()
	w.stopped = true
	if w.timer != nil {
		w.timer.Stop()
	}
	w.mu.Unlock()
	w.running.Wait()
}
