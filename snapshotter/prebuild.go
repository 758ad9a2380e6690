package snapshotter

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// prebuildDelay is how long no snapshot must be committed, and no layer begun on a committed one, for an image to count
// as unpacked. If it was not, the build that began too early is cancelled.
const prebuildDelay = 5 * time.Millisecond

// A prebuilder builds the rootfs images of unpacked images in the background, before a container needs them. It skips
// the chains of an image's lower layers, on which nothing runs: they have a child by then, or a layer is being unpacked
// on them. A nil prebuilder does nothing.
type prebuilder struct {
	build  func(ctx context.Context, name string, chain []objectstore.Checksum) error
	worker *worker

	mu       sync.Mutex
	tips     map[string][]objectstore.Checksum // to be built, by name of the snapshot; lowest layer first
	building string                            // name of the snapshot whose chain is being built; "" if none
	cancel   context.CancelFunc                // cancels building
	closed   bool
}

func newPrebuilder(build func(ctx context.Context, name string, chain []objectstore.Checksum) error) *prebuilder {
	p := &prebuilder{build: build, tips: make(map[string][]objectstore.Checksum)}
	p.worker = newWorker(p.buildAll, prebuildDelay, 0)
	return p
}

// committed schedules the chain of a committed snapshot, lowest layer first, and cancels that of its parent, "" if it
// has none.
func (p *prebuilder) committed(name, parent string, chain []objectstore.Checksum) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	p.drop(parent)
	p.tips[name] = chain
	p.worker.trigger()
}

// cancelPrebuild cancels building for a snapshot that nothing will run on: a layer is being unpacked on it, or it was
// removed.
func (p *prebuilder) cancelPrebuild(name string) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.drop(name)
}

func (p *prebuilder) drop(name string) {
	delete(p.tips, name)
	if p.building == name && p.cancel != nil {
		p.cancel()
	}
}

// buildAll builds all tips, one after the other.
func (p *prebuilder) buildAll() error {
	for {
		ctx, name, chain, ok := p.next()
		if !ok {
			return nil
		}
		err := p.build(ctx, name, chain)
		// The snapshot may be gone. Layer errors are reported when the layer is used.
		if err != nil && !errors.Is(err, context.Canceled) {
			log.G(ctx).WithError(err).WithField("snapshot", name).Debug("rootfs image not prebuilt")
		}
		p.done()
	}
}

// next takes a tip to build, with a context that cancelPrebuild cancels.
func (p *prebuilder) next() (ctx context.Context, name string, chain []objectstore.Checksum, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, chain := range p.tips {
		delete(p.tips, name)
		ctx, p.cancel = context.WithCancel(context.Background())
		p.building = name
		return ctx, name, chain, true
	}
	return nil, "", nil, false
}

func (p *prebuilder) done() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cancel()
	p.building, p.cancel = "", nil
}

// close cancels the current build and prevents further ones.
func (p *prebuilder) close() {
	if p == nil {
		return
	}
	p.mu.Lock()
	p.closed = true
	clear(p.tips)
	if p.cancel != nil {
		p.cancel()
	}
	p.mu.Unlock()
	p.worker.stop()
}

// prebuild calls build for the chain of a committed snapshot, unless it belongs to an image's lower layers.
func (s *Snapshotter) prebuild(ctx context.Context, name string, chain []objectstore.Checksum, build func(context.Context, []objectstore.Checksum) error) error {
	if lower, err := s.isLower(ctx, name); err != nil || lower {
		return err
	}
	if err := build(ctx, chain); err != nil {
		return err
	}
	if _, err := s.Stat(ctx, name); !errdefs.IsNotFound(err) {
		return err
	}
	// The snapshot was removed meanwhile: a Cleanup that saw no image did not remove it.
	s.idle.Store(true)
	return s.sweepMounts(ctx)
}

// labelParentChain is the label on an unpack snapshot that names its future parent's chain ID.
const labelParentChain = "containerd.io/snapshot/parent-chain-id"

// isLower reports whether a layer is being unpacked that will lie on a snapshot.
func (s *Snapshotter) isLower(ctx context.Context, name string) (lower bool, err error) {
	chainID := clientName(name)
	err = s.read(ctx, func(ctx context.Context) error {
		return walk(ctx, func(_ context.Context, info snapshots.Info) error {
			lower = lower || info.Kind == snapshots.KindActive && isUnpackKey(info.Name) && info.Labels[labelParentChain] == chainID
			return nil
		})
	})
	return lower, err
}
