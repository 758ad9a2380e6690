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

// progressInterval is how often a progress line is redrawn at most.
const progressInterval = 100 * time.Millisecond

// progress shows on a terminal how far long work is. On anything else it shows nothing. Its methods may be called by
// many goroutines at once.
type progress struct {
	w    io.Writer // nil: show nothing
	verb string

	mu    sync.Mutex
	last  time.Time
	drawn bool
}

// newProgress returns a progress line on stderr that begins with verb. Call its stop before writing anything else.
func (c *cli) newProgress(verb string) *progress {
	p := &progress{verb: verb}
	if f, ok := c.stderr.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		p.w = f
	}
	return p
}

// update says that done of total steps are done. A total of 0 means that it is not known.
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

// stored says how far an OS commit is.
func (p *progress) stored(n oscommit.Progress) { p.update(int64(n.Objects), int64(n.TotalObjects)) }

// line is what is drawn: it returns the cursor to the first column and clears what is behind the text.
func (p *progress) line(done, total int64) string {
	if total <= 0 {
		return fmt.Sprintf("\r%s %d\x1b[K", p.verb, done)
	}
	return fmt.Sprintf("\r%s %d/%d (%d%%)\x1b[K", p.verb, done, total, 100*done/total)
}

// stop removes the line.
func (p *progress) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.drawn {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.drawn = false
	}
}
