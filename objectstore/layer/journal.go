package layer

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/panics"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

const (
	journalTitle = "ostree-snapshotter journal 1"

	// maxJournalEntry is more than the entry of a layer takes: 77 bytes for each of maxObjects.
	maxJournalEntry = 128 << 20

	syncAfterLast  = 5 * time.Second  // after the last import
	syncAfterFirst = 30 * time.Second // after the first one not on the disk yet
)

// A journalRecord is the content of a journal entry: a layer that may be needed from now on, and those of its objects
// that a power failure could still take.
type journalRecord struct {
	boot    string // boot in which it was written
	layer   objectstore.Checksum
	blob    digest.Digest            // from which it was unpacked; may be ""
	file    string                   // from which that blob was read; may be ""
	refs    []string                 // to the layer
	objects []objectstore.ObjectName // of the layer, that may not be on the disk yet

	attempt objectstore.Checksum // layer that a recovery rebuilds as long as the entry exists; such an entry has nothing else
}

func (r *journalRecord) marshal() []byte {
	b := fmt.Appendf(nil, "%s\nboot %s\n", journalTitle, r.boot)
	if !r.attempt.IsZero() {
		b = fmt.Appendf(b, "attempt %s\n", r.attempt)
	}
	if !r.layer.IsZero() {
		b = fmt.Appendf(b, "layer %s\n", r.layer)
	}
	if r.blob != "" {
		b = fmt.Appendf(b, "blob %s\n", r.blob)
	}
	if r.file != "" {
		b = fmt.Appendf(b, "file %q\n", r.file)
	}
	for _, ref := range r.refs {
		b = fmt.Appendf(b, "ref %s\n", ref)
	}
	for _, name := range r.objects {
		b = append(b, "object "...)
		b = append(b, name.String()...)
		b = append(b, '\n')
	}
	return b
}

// parseJournal reads an entry. Unknown lines are skipped: nobody waited for an incomplete entry, so nothing needs its
// layer, but its readable part is still worth checking.
func parseJournal(b []byte) journalRecord {
	var r journalRecord
	lines := bufio.NewScanner(bytes.NewReader(b))
	for lines.Scan() {
		key, value, _ := strings.Cut(lines.Text(), " ")
		switch key {
		case "boot":
			r.boot = value
		case "layer", "attempt":
			sum, err := objectstore.ParseChecksum(value)
			switch {
			case err != nil:
			case key == "layer":
				r.layer = sum
			default:
				r.attempt = sum
			}
		case "blob":
			if d, err := digest.Parse(value); err == nil {
				r.blob = d
			}
		case "file":
			if name, err := strconv.Unquote(value); err == nil {
				r.file = name
			}
		case "ref":
			if strings.HasPrefix(value, RefPrefix+"/") && objectstore.ValidateRef(value) == nil {
				r.refs = append(r.refs, value)
			}
		case "object":
			if name, err := objectstore.ParseObjectName(value); err == nil {
				r.objects = append(r.objects, name)
			}
		}
	}
	return r
}

// A journalEntry is a file in journal/ written by this process.
type journalEntry struct {
	name  string
	layer objectstore.Checksum
	busy  int // calls that still write for the entry
}

// A journal tracks the objects that may not be on the disk yet. Before anything durable can name a layer, an entry with
// the layer's objects is on the disk itself. A sync of the file system clears the entries that were complete before it
// began.
//
// Its mutex is never held during a disk operation.
type journal struct {
	dir    *atfs.Dir
	on     bool
	boot   string
	sync   func() error // makes everything durable
	failed func(error)  // receives errors of background syncs

	mu      sync.Mutex
	pending map[objectstore.ObjectName]struct{} // published since the last sync began
	syncing map[objectstore.ObjectName]struct{} // published before it began; empty once it succeeded
	entries map[*journalEntry]struct{}          // not cleared yet
	first   time.Time                           // when the oldest unsynced object was written; zero if there is none
	timer   *time.Timer
	closed  bool
	broken  bool // a sync has failed

	work sync.WaitGroup // background syncing
	turn chan struct{}  // holds an element while a sync runs
}

func (j *journal) open(root *atfs.Dir, o Options) error {
	if err := root.MkdirAll(JournalDir, dirMode); err != nil {
		return err
	}
	var err error
	if j.dir, err = root.OpenDir(JournalDir); err != nil {
		return err
	}
	j.on = o.Journal
	j.sync = root.SyncFS
	j.failed = o.SyncFailed
	j.boot = o.Boot
	if j.boot == "" {
		b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
		if err != nil {
			return fmt.Errorf("read boot ID: %w", err)
		}
		j.boot = strings.TrimSpace(string(b))
	}
	j.pending = make(map[objectstore.ObjectName]struct{})
	j.entries = make(map[*journalEntry]struct{})
	j.turn = make(chan struct{}, 1)
	return nil
}

// published records an object before it gets its name. Whoever sees the object also sees it pending.
func (j *journal) published(name objectstore.ObjectName) {
	if !j.on {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.pending[name] = struct{}{}
	if j.first.IsZero() {
		j.first = time.Now()
		j.arm(syncAfterFirst)
	}
}

// isPending must be called with the mutex held.
func (j *journal) isPending(name objectstore.ObjectName) bool {
	if _, ok := j.pending[name]; ok {
		return true
	}
	_, ok := j.syncing[name]
	return ok
}

// begin writes an entry, or none if everything that r names is on the disk. r.objects are all objects of the layer; the
// entry lists those that may not be on the disk. When it returns, the entry's refs or files may be written; then call
// end.
func (j *journal) begin(r journalRecord) (*journalEntry, error) {
	if !j.on {
		return nil, nil
	}
	r.boot = j.boot
	all := r.objects
	r.objects = nil
	j.mu.Lock()
	for _, name := range all {
		if j.isPending(name) {
			r.objects = append(r.objects, name)
		}
	}
	j.mu.Unlock()
	if len(all) > 0 && len(r.objects) == 0 && len(r.refs) == 0 {
		return nil, nil
	}
	e := &journalEntry{name: rand.Text(), layer: r.layer, busy: 1}
	if err := j.write(e.name, r.marshal()); err != nil {
		return nil, errors.Join(fmt.Errorf("write journal: %w", err), atfs.IgnoreNotExist(j.dir.Unlink(e.name)))
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.entries[e] = struct{}{}
	return e, nil
}

// write makes a file and makes it durable, name included. It need not appear at once: see parseJournal.
func (j *journal) write(name string, data []byte) (err error) {
	f, err := j.dir.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return j.dir.Sync()
}

// hold keeps the entry of a layer from being cleared, because a checkout of the layer is being made. If the entry was
// cleared, it writes another. Then call end.
func (j *journal) hold(layer objectstore.Checksum) (*journalEntry, error) {
	for {
		e := j.find(layer)
		if e == nil {
			return j.begin(journalRecord{layer: layer})
		}
		ok, err := j.dir.Exists(e.name)
		if ok {
			return e, nil
		}
		// Another process has pruned the layer, and it was stored again.
		j.mu.Lock()
		e.busy--
		delete(j.entries, e)
		j.mu.Unlock()
		if err != nil {
			return nil, err
		}
	}
}

// find returns an entry of a layer and marks it as busy, nil if there is none.
func (j *journal) find(layer objectstore.Checksum) *journalEntry {
	j.mu.Lock()
	defer j.mu.Unlock()
	for e := range j.entries {
		if e.layer == layer {
			e.busy++
			return e
		}
	}
	return nil
}

// end releases an entry: its refs or files are written, or will not be. The next sync may clear it.
func (j *journal) end(e *journalEntry) {
	if e == nil {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	e.busy--
	now := time.Now()
	if j.first.IsZero() {
		j.first = now
	}
	j.arm(min(syncAfterLast, j.first.Add(syncAfterFirst).Sub(now)))
}

// arm schedules a background sync. It must be called with the mutex held.
func (j *journal) arm(after time.Duration) {
	if j.closed {
		return
	}
	if j.timer == nil {
		j.timer = time.AfterFunc(after, j.background)
		return
	}
	j.timer.Reset(after)
}

func (j *journal) background() {
	j.mu.Lock()
	if j.closed {
		j.mu.Unlock()
		return
	}
	j.work.Add(1)
	j.mu.Unlock()
	defer j.work.Done()
	err := panics.Call(func() error { return j.flush(context.Background()) })
	if err != nil && j.failed != nil {
		j.failed(err)
	}
}

// flush syncs the file system and clears the entries that were complete when it began.
//
// When a sync fails the kernel may have dropped data that it could not write, and the next sync succeeds all the same.
// So from then on nothing is cleared, and the next start checks it.
func (j *journal) flush(ctx context.Context) error {
	select {
	case j.turn <- struct{}{}:
		defer func() { <-j.turn }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	done := j.startSync()
	err := j.sync()
	if err != nil {
		err = fmt.Errorf("sync store: %w", err)
	}
	if !j.endSync(done, err == nil) {
		return err
	}
	for _, e := range done {
		err = errors.Join(err, atfs.IgnoreNotExist(j.dir.Unlink(e.name)))
	}
	return err
}

// startSync returns the entries that a sync starting now clears. They are not found any more.
func (j *journal) startSync() []*journalEntry {
	j.mu.Lock()
	defer j.mu.Unlock()
	var done []*journalEntry
	for e := range j.entries {
		if e.busy == 0 {
			done = append(done, e)
			delete(j.entries, e)
		}
	}
	if len(j.syncing) == 0 {
		j.syncing = j.pending
	} else {
		for name := range j.pending {
			j.syncing[name] = struct{}{}
		}
	}
	j.pending = make(map[objectstore.ObjectName]struct{})
	j.first = time.Time{}
	return done
}

// endSync reports whether the entries can be cleared.
func (j *journal) endSync(done []*journalEntry, ok bool) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.broken = j.broken || !ok
	if j.broken {
		for _, e := range done {
			j.entries[e] = struct{}{}
		}
		return false
	}
	j.syncing = nil
	return true
}

// forget removes the entries of removed layers, whichever process wrote them: losing them loses nothing. Their objects
// may be used again: they stay pending in the process that published them, and after its death Recover syncs them. The
// caller holds the repository's exclusive lock, so that no such layer is being made.
func (j *journal) forget(layers map[objectstore.Checksum]struct{}) error {
	if len(layers) == 0 {
		return nil
	}
	names, err := j.dir.ReadNames()
	if err != nil {
		return err
	}
	for _, name := range names {
		layer, err := j.layerOf(name)
		if err != nil {
			return err
		}
		if _, ok := layers[layer]; !ok || !j.drop(name) {
			continue
		}
		if err := atfs.IgnoreNotExist(j.dir.Unlink(name)); err != nil {
			return err
		}
	}
	return nil
}

// layerOf returns the layer of an entry, zero if the entry does not name one. The rest of the entry may be long.
func (j *journal) layerOf(name string) (layer objectstore.Checksum, err error) {
	f, err := j.dir.Open(name)
	if err != nil {
		return layer, atfs.IgnoreNotExist(err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	head := make([]byte, 512)
	n, err := f.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return layer, err
	}
	return parseJournal(head[:n]).layer, nil
}

// drop forgets an entry of this process, and reports whether its file may be removed: it is not in use, or belongs to
// another process.
func (j *journal) drop(name string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	for e := range j.entries {
		if e.name == name {
			if e.busy > 0 {
				return false
			}
			delete(j.entries, e)
		}
	}
	return true
}

// close syncs everything not on the disk yet. No sync is running when it returns.
func (j *journal) close() error {
	if j.dir == nil {
		return nil
	}
	j.mu.Lock()
	j.closed = true
	if j.timer != nil {
		j.timer.Stop()
	}
	j.mu.Unlock()
	j.work.Wait()
	j.mu.Lock()
	dirty := len(j.pending)+len(j.syncing)+len(j.entries) > 0
	j.mu.Unlock()
	var err error
	if dirty {
		err = j.flush(context.Background())
	}
	return errors.Join(err, j.dir.Close())
}

// Sync makes everything stored so far durable, and clears the journal.
func (s *Store) Sync(ctx context.Context) error { return s.journal.flush(ctx) }

// publishRefs ends the transaction that stored a layer: it lists objects that may not be on the disk in the journal,
// then writes the refs.
func (s *Store) publishRefs(ctx context.Context, txn *objectstore.Txn, r journalRecord) error {
	entry, err := s.journalLayer(r)
	if err != nil {
		return err
	}
	defer s.journal.end(entry)
	for _, ref := range r.refs {
		txn.SetRef(ref, r.layer)
	}
	return txn.Commit(ctx, objectstore.CommitOptions{})
}

// journalLayer begins an entry for the layer and those refs that are new.
func (s *Store) journalLayer(r journalRecord) (*journalEntry, error) {
	if !s.journal.on {
		return nil, nil
	}
	var refs []string
	for _, ref := range r.refs {
		if id, err := s.repo.Ref(ref); err != nil || id != r.layer {
			refs = append(refs, ref)
		}
	}
	r.refs = refs
	var err error
	if r.objects, err = s.Closure(r.layer); err != nil {
		return nil, err
	}
	return s.journal.begin(r)
}

// Closure returns the names of all objects of a layer, its commit first, without duplicates. Only the objects that name
// the others must exist: commit and dirtrees.
func (s *Store) Closure(id objectstore.Checksum) ([]objectstore.ObjectName, error) {
	c, err := s.repo.Commit(id)
	if err != nil {
		return nil, err
	}
	var names []objectstore.ObjectName
	seen := make(map[objectstore.ObjectName]struct{})
	add := func(typ objectstore.ObjectType, sum objectstore.Checksum) bool {
		name := objectstore.ObjectName{Type: typ, Checksum: sum}
		if _, ok := seen[name]; ok {
			return false
		}
		seen[name] = struct{}{}
		names = append(names, name)
		return true
	}
	add(objectstore.TypeCommit, id)
	add(objectstore.TypeDirMeta, c.Meta)
	todo := []objectstore.Checksum{c.Tree}
	for len(todo) > 0 {
		tree := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if !add(objectstore.TypeDirTree, tree) {
			continue
		}
		t, err := s.repo.DirTree(tree)
		if err != nil {
			return nil, err
		}
		for _, f := range t.Files {
			add(objectstore.TypeFile, f.Checksum)
		}
		for _, d := range t.Dirs {
			add(objectstore.TypeDirMeta, d.Meta)
			todo = append(todo, d.Tree)
		}
	}
	return names, nil
}
