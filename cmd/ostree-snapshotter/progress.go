package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/term"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/oscommit"
)

// progressInterval is the shortest time between two updates of a progress line.
const progressInterval = 100 * time.Millisecond

// progress shows the progress of long work on a terminal, and nothing elsewhere. Its methods may be called
// concurrently.
type progress struct {
	w    io.Writer // nil to show nothing
	verb string

	mu    sync.Mutex
	last  time.Time
	drawn bool
}

// newProgress returns a progress line on stderr that starts with verb. It must be stopped before anything else is
// written.
func (c *cli) newProgress(verb string) *progress {
	p := &progress{verb: verb}
	if f, ok := c.stderr.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		p.w = f
	}
	return p
}

// update shows that done of total steps are done. A total of 0 is unknown.
func (p *progress) update(done, total int64) {
	if p.w == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if now := time.Now(); now.Sub(p.last) >= progressInterval {
		p.last, p.drawn = now, true
		fmt.Fprint(p.w, p.line(done, total))
	}
}

// stored shows the progress of an OS commit.
func (p *progress) stored(n oscommit.Progress) { p.update(int64(n.Objects), int64(n.TotalObjects)) }

// line returns the text to draw. It starts at the first column, and clears the rest of the line.
func (p *progress) line(done, total int64) string {
	if total <= 0 {
		return fmt.Sprintf("\r%s %d\x1b[K", p.verb, done)
	}
	return fmt.Sprintf("\r%s %d/%d (%d%%)\x1b[K", p.verb, done, total, 100*done/total)
}

// stop removes the progress line.
func (p *progress) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.drawn {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.drawn = false
	}
}
