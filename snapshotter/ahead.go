package snapshotter

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/containerd/log"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// aheadDelay is how long nothing is committed, and nothing begun to be unpacked on what was, until an image is whole.
const aheadDelay = 30 * time.Millisecond

// ahead makes rootfs images of what was unpacked before somebody runs it, in the background. The chains of an image's lower
// layers, on which nobody runs anything, are not among them: they have a child by then, or it is being unpacked.
type ahead struct {
	make func(ctx context.Context, name string, chain []objectstore.Checksum) error

	mu     sync.Mutex
	tips   map[string][]objectstore.Checksum // by name of the snapshot; lowest layer first
	timer  *time.Timer
	closed bool

	work   sync.WaitGroup
	cancel context.CancelFunc // of what is being made
}

// committed takes notice of a snapshot. parent is "" if it has none.
func (a *ahead) committed(name, parent string, chain []objectstore.Checksum) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return
	}
	if a.tips == nil {
		a.tips = make(map[string][]objectstore.Checksum)
	}
	delete(a.tips, parent)
	a.tips[name] = chain
	if a.timer == nil {
		a.timer = time.AfterFunc(aheadDelay, a.run)
		return
	}
	a.timer.Reset(aheadDelay)
}

// forget takes notice that a snapshot is not one to run anything on: something is being unpacked on it, or it was removed.
func (a *ahead) forget(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.tips, name)
}

func (a *ahead) run() {
	a.mu.Lock()
	tips := a.tips
	a.tips = nil
	if a.closed || len(tips) == 0 {
		a.mu.Unlock()
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	a.cancel = cancel
	a.work.Add(1)
	a.mu.Unlock()
	defer a.work.Done()
	defer cancel()
	for name, chain := range tips {
		// It may have been removed meanwhile. What is wrong with a layer is said to who uses it.
		if err := a.make(ctx, name, chain); err != nil && !errors.Is(err, context.Canceled) {
			log.G(ctx).WithError(err).WithField("snapshot", name).Debug("rootfs image is not made ahead")
		}
	}
}

// close makes nothing more.
func (a *ahead) close() {
	a.mu.Lock()
	a.closed = true
	if a.timer != nil {
		a.timer.Stop()
	}
	if a.cancel != nil {
		a.cancel()
	}
	a.mu.Unlock()
	a.work.Wait()
}
