package snapshotter

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/containerd/log"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// aheadDelay is how long nothing is committed, and nothing begun to be unpacked on what was, until an image is taken for whole. If
// it is not, what was begun for nothing is stopped.
const aheadDelay = 5 * time.Millisecond

// ahead makes rootfs images of what was unpacked before somebody runs it, in the background. The chains of an image's lower
// layers, on which nobody runs anything, are not among them: they have a child by then, or it is being unpacked.
type ahead struct {
	make func(ctx context.Context, name string, chain []objectstore.Checksum) error

	mu     sync.Mutex
	tips   map[string][]objectstore.Checksum // by name of the snapshot; lowest layer first
	making map[string]context.CancelFunc     // by name of the snapshot
	timer  *time.Timer
	closed bool

	work sync.WaitGroup
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
		a.making = make(map[string]context.CancelFunc)
	}
	a.drop(parent)
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
	a.drop(name)
}

func (a *ahead) drop(name string) {
	delete(a.tips, name)
	if cancel, ok := a.making[name]; ok {
		cancel()
	}
}

// run makes the images of all tips, one after the other.
func (a *ahead) run() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for !a.closed {
		name, chain, ok := a.next()
		if !ok {
			return
		}
		ctx, cancel := context.WithCancel(context.Background())
		a.making[name] = cancel
		a.work.Add(1)
		a.mu.Unlock()
		// It may have been removed meanwhile. What is wrong with a layer is said to who uses it.
		if err := a.make(ctx, name, chain); err != nil && !errors.Is(err, context.Canceled) {
			log.G(ctx).WithError(err).WithField("snapshot", name).Debug("rootfs image is not made ahead")
		}
		cancel()
		a.work.Done()
		a.mu.Lock()
		delete(a.making, name)
	}
}

// next takes one of the tips for which nothing is being made.
func (a *ahead) next() (name string, chain []objectstore.Checksum, ok bool) {
	for name, chain := range a.tips {
		if _, ok := a.making[name]; !ok {
			delete(a.tips, name)
			return name, chain, true
		}
	}
	return "", nil, false
}

// close makes nothing more.
func (a *ahead) close() {
	a.mu.Lock()
	a.closed = true
	if a.timer != nil {
		a.timer.Stop()
	}
	for _, cancel := range a.making {
		cancel()
	}
	a.mu.Unlock()
	a.work.Wait()
}
