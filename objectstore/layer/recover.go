package layer

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"runtime"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/panics"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// A LostLayer is a layer that has lost data since the last stop.
type LostLayer struct {
	ID       objectstore.Checksum
	Blob     digest.Digest // from which it was unpacked; "" if it was made of a directory, or if unknown
	BlobFile string        // from which that blob was read; "" if it was not a file
	Cause    error
}

// A Recovery is the result of [Store.Recover].
type Recovery struct {
	Entries   int                      // of the journal; 0 after a clean stop
	Objects   int                      // hashed again
	Damaged   []objectstore.ObjectName // did not match their names, and were removed unless Left names them
	Checkouts int                      // removed
	Rootfses  int                      // rootfs images removed
	Remade    []objectstore.Checksum   // rebuilt layers
	Lost      []LostLayer              // layers that could not be rebuilt
	Left      error                    // an objectstore.ErrNotRemoved that names damaged objects, and files in tmp/, that are left
}

// Recover repairs the store after a stop without warning. It hashes exactly the objects listed in the journal, in
// parallel. It removes damaged objects, and every layer that lacks something: its commit, its refs and its checkouts.
// Then it asks remake, which may be nil, to import such a layer's blob again. Finally it syncs everything, also if the
// journal was empty, and clears it. If it is interrupted, the next Recover begins again.
//
// A checkout of a layer in the journal may have damage that no object has, so it is removed too, unless the kernel has
// been running since it was made: then nothing was lost, and containers may use it. For the same reason rootfs images
// that do not match their digests are removed unless the kernel has been running since the journal was written.
//
// An object or a layer whose check panics counts as damaged, and a layer whose import panics is lost. So is one whose
// import has twice ended the process, by using up all memory for example. So no entry of the journal ends every start.
//
// A damaged object that cannot be removed, from a broken disk for example, does not stop the rest. Layers that need it are
// lost until an import replaces it: this store trusts it no more, and the journal stays for the next Recover.
//
// Nothing else may use the store meanwhile, except that remake imports into it.
func (s *Store) Recover(ctx context.Context, remake func(context.Context, LostLayer) error) (*Recovery, error) {
	r, err := s.recoverJournal(ctx, remake)
	if err != nil {
		return nil, fmt.Errorf("recover layers: %w", err)
	}
	return r, nil
}

func (s *Store) recoverJournal(ctx context.Context, remake func(context.Context, LostLayer) error) (*Recovery, error) {
	entries, err := s.journal.dir.ReadNames()
	if err != nil {
		return nil, err
	}
	if len(entries) == 0 {
		// A process that was killed may have left objects of no layer, of an import that did not end or of a layer that was
		// removed. What an import of this process finds, it takes to be on the disk.
		if s.journal.on {
			err = s.Sync(ctx)
		}
		return &Recovery{}, err
	}
	r := &recovery{
		store: s, report: &Recovery{Entries: len(entries)},
		layers: make(map[objectstore.Checksum]*journalRecord), attempts: make(map[objectstore.Checksum]int),
	}
	objects, err := r.read(entries)
	if err != nil {
		return nil, err
	}
	if err := r.judge(ctx, objects); err != nil {
		return nil, err
	}
	if err := r.remake(ctx, remake); err != nil {
		return nil, err
	}
	if r.rebooted {
		removals, err := s.discardDamagedRootfses(ctx)
		if err != nil {
			return nil, err
		}
		r.report.Rootfses = len(removals)
		for _, remove := range removals {
			r.left = append(r.left, remove())
		}
	}
	r.report.Left = objectstore.NotRemoved(r.left...)
	if err := s.Sync(ctx); err != nil {
		return nil, err
	}
	if len(s.stuckObjects()) > 0 {
		return r.report, nil
	}
	for _, name := range entries {
		if err := atfs.IgnoreNotExist(s.journal.dir.Unlink(name)); err != nil {
			return nil, err
		}
	}
	return r.report, nil
}

type recovery struct {
	store    *Store
	report   *Recovery
	rebooted bool                                    // since an entry was written
	layers   map[objectstore.Checksum]*journalRecord // the merged entries of each layer
	attempts map[objectstore.Checksum]int            // to rebuild a layer, that ended with their process
	lost     []LostLayer
	left     []error // of removals in tmp/
}

// read reads the entries, and returns their objects.
func (r *recovery) read(entries []string) ([]objectstore.ObjectName, error) {
	objects := make(map[objectstore.ObjectName]struct{})
	for _, name := range entries {
		b, err := r.store.journal.dir.ReadFile(name, maxJournalEntry)
		if err != nil {
			return nil, err
		}
		rec := parseJournal(b)
		r.rebooted = r.rebooted || rec.boot != r.store.journal.boot
		for _, o := range rec.objects {
			objects[o] = struct{}{}
		}
		if !rec.layer.IsZero() {
			r.merge(rec)
		}
		if !rec.attempt.IsZero() {
			r.attempts[rec.attempt]++
		}
	}
	return slices.Collect(maps.Keys(objects)), nil
}

func (r *recovery) merge(rec journalRecord) {
	rec.objects = nil
	old := r.layers[rec.layer]
	if old == nil {
		r.layers[rec.layer] = &rec
		return
	}
	if rec.blob != "" {
		old.blob, old.file = rec.blob, rec.file
	}
	if rec.boot != r.store.journal.boot {
		old.boot = rec.boot
	}
	old.refs = append(old.refs, rec.refs...)
}

// judge removes damaged objects and layers, under the shared lock: another program's prune must not remove what looks
// unneeded meanwhile.
func (r *recovery) judge(ctx context.Context, objects []objectstore.ObjectName) (err error) {
	lock, err := r.store.repo.Lock(ctx, objectstore.LockShared)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Unlock()) }()
	if err := r.verify(ctx, objects); err != nil {
		return err
	}
	for _, name := range r.report.Damaged {
		r.removeObject(lock, name)
	}
	ids := slices.SortedFunc(maps.Keys(r.layers), func(a, b objectstore.Checksum) int { return bytes.Compare(a[:], b[:]) })
	for _, id := range ids {
		if err := r.removeDamagedRefs(lock, r.layers[id].refs); err != nil {
			return err
		}
	}
	for _, id := range ids {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if err := r.layer(ctx, lock, id, r.layers[id]); err != nil {
			return err
		}
	}
	return nil
}

// verify hashes objects and collects those that are damaged.
func (r *recovery) verify(ctx context.Context, objects []objectstore.ObjectName) error {
	var mu sync.Mutex
	g, gctx := panics.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for _, name := range objects {
		if gctx.Err() != nil {
			break
		}
		g.Go(func() error {
			err := unreadable(func() error { return r.store.repo.Verify(name.Type, name.Checksum) })
			mu.Lock()
			defer mu.Unlock()
			switch {
			case errors.Is(err, fs.ErrNotExist):
				return nil // layers that need it will be found incomplete
			case errors.Is(err, objectstore.ErrCorrupt), errors.Is(err, objectstore.ErrInvalid):
				r.report.Damaged = append(r.report.Damaged, name)
			case err != nil:
				return err
			}
			r.report.Objects++
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	slices.SortFunc(r.report.Damaged, func(a, b objectstore.ObjectName) int {
		return cmp.Compare(a.String(), b.String())
	})
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// unreadable is panics.Call of a function that reads the store. What cannot be read without a panic is an ErrCorrupt: it
// would panic at each start.
func unreadable(read func() error) error {
	err := panics.Call(read)
	var p *panics.Error
	if errors.As(err, &p) {
		return fmt.Errorf("%w: %w", objectstore.ErrCorrupt, err)
	}
	return err
}

// layer removes an incomplete layer, or those parts of a complete one that may be damaged.
func (r *recovery) layer(ctx context.Context, lock *objectstore.Lock, id objectstore.Checksum, rec *journalRecord) error {
	s := r.store
	switch cause := unreadable(func() error { return s.Whole(id) }); {
	case cause == nil:
		if err := s.setMissingRefs(ctx, id, rec.refs); err != nil {
			return err
		}
		if rec.boot == s.journal.boot {
			return nil
		}
	case errors.Is(cause, objectstore.ErrNotExist), errors.Is(cause, objectstore.ErrCorrupt):
		refs, err := s.refsOf(id)
		if err != nil {
			return err
		}
		if len(refs) == 0 && rec.boot == s.journal.boot && isMissing(cause, id) {
			// The kernel has been running since and has lost nothing: another process pruned the layer, after its maker
			// died before writing the refs. No snapshot can have the layer.
			return nil
		}
		r.lost = append(r.lost, LostLayer{ID: id, Blob: rec.blob, BlobFile: rec.file, Cause: cause})
		// ostree fsck reports a ref to a missing commit, and an incomplete commit.
		if err := lock.DeleteRefs(refs...); err != nil {
			return err
		}
		r.removeObject(lock, objectstore.ObjectName{Type: objectstore.TypeCommit, Checksum: id})
	default:
		return cause
	}
	return r.removeCheckouts(id)
}

// removeObject removes an object that nothing may use, or remembers that it is damaged.
func (r *recovery) removeObject(lock *objectstore.Lock, name objectstore.ObjectName) {
	err := lock.RemoveObject(name.Type, name.Checksum)
	r.store.mu.Lock()
	defer r.store.mu.Unlock()
	delete(r.store.stuck, name)
	if err != nil {
		r.left = append(r.left, err)
		r.store.stuck[name] = struct{}{}
	}
}

// stuckObjects returns a copy of the names of damaged objects.
func (s *Store) stuckObjects() map[objectstore.ObjectName]struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.stuck)
}

// trust trusts those damaged objects of a layer again that are intact now.
func (s *Store) trust(id objectstore.Checksum) error {
	stuck := s.stuckObjects()
	if len(stuck) == 0 {
		return nil
	}
	objects, err := s.Closure(id)
	if err != nil {
		return err
	}
	for _, name := range objects {
		if _, ok := stuck[name]; !ok {
			continue
		}
		if err := s.trustObject(name); err != nil {
			return err
		}
	}
	return nil
}

// trustObject trusts a damaged object again if it is intact now.
func (s *Store) trustObject(name objectstore.ObjectName) error {
	if err := s.repo.Verify(name.Type, name.Checksum); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.stuck, name)
	return nil
}

// Whole returns an error that names the first object of a layer that is missing, or damaged as far as this store has
// learned, or if the layer's connections cannot be read. It hashes only objects known to have been damaged: another
// process may have mended them.
func (s *Store) Whole(id objectstore.Checksum) error {
	names, err := s.Closure(id)
	if err != nil {
		return err
	}
	stuck := s.stuckObjects()
	for _, name := range names {
		if _, ok := stuck[name]; ok {
			if err := s.trustObject(name); err != nil {
				return err
			}
			continue
		}
		switch ok, err := s.repo.Has(name.Type, name.Checksum); {
		case err != nil:
			return err
		case !ok:
			return &objectstore.ObjectError{Type: name.Type, Checksum: name.Checksum, Err: objectstore.ErrNotExist}
		}
	}
	return nil
}

// setMissingRefs writes those refs of a layer listed in the journal that are missing.
func (s *Store) setMissingRefs(ctx context.Context, id objectstore.Checksum, refs []string) (err error) {
	txn, err := s.repo.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, txn.Abort()) }()
	for _, ref := range refs {
		switch _, err := s.repo.Ref(ref); {
		case errors.Is(err, objectstore.ErrNotExist):
			txn.SetRef(ref, id)
		case err != nil:
			return err
		}
	}
	return txn.Commit(ctx, objectstore.CommitOptions{})
}

// isMissing reports whether an error means that this layer commit does not exist.
func isMissing(err error, id objectstore.Checksum) bool {
	var oe *objectstore.ObjectError
	return errors.As(err, &oe) && oe.Type == objectstore.TypeCommit && oe.Checksum == id && errors.Is(err, objectstore.ErrNotExist)
}

// refsOf returns the readable refs to a layer.
func (s *Store) refsOf(id objectstore.Checksum) ([]string, error) {
	all, _, err := s.repo.ReadableRefs(RefPrefix)
	if err != nil {
		return nil, err
	}
	var refs []string
	for ref, got := range all {
		if got == id {
			refs = append(refs, ref)
		}
	}
	return refs, nil
}

// removeDamagedRefs removes unreadable refs: a power failure may leave their files empty.
func (r *recovery) removeDamagedRefs(lock *objectstore.Lock, refs []string) error {
	var damaged []string
	for _, ref := range refs {
		switch _, err := r.store.repo.Ref(ref); {
		case errors.Is(err, objectstore.ErrCorrupt):
			damaged = append(damaged, ref)
		case err != nil && !errors.Is(err, objectstore.ErrNotExist):
			return err
		}
	}
	return lock.DeleteRefs(damaged...)
}

// removeCheckouts removes the checkouts of a layer. They are moved away first, so that none is found half removed.
func (r *recovery) removeCheckouts(id objectstore.Checksum) error {
	tmp, err := r.store.discard(r.store.layers, CheckoutDir(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	r.report.Checkouts++
	r.left = append(r.left, r.store.tmp.RemoveAll(tmp))
	return nil
}

// remake has lost layers rebuilt, and checks the result.
func (r *recovery) remake(ctx context.Context, f func(context.Context, LostLayer) error) error {
	for _, lost := range r.lost {
		err := errors.New("its blob is not known")
		if f != nil && lost.Blob != "" {
			var attempt string
			if attempt, err = r.beginAttempt(lost.ID); err == nil {
				err = panics.Call(func() error { return f(ctx, lost) })
				if err := r.store.journal.dir.Unlink(attempt); err != nil {
					return err
				}
			}
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err == nil {
			if err = r.store.Whole(lost.ID); err == nil {
				err = r.store.setMissingRefs(ctx, lost.ID, r.layers[lost.ID].refs)
			}
		}
		if err != nil {
			lost.Cause = fmt.Errorf("%w (and cannot be rebuilt: %w)", lost.Cause, err)
			r.report.Lost = append(r.report.Lost, lost)
			continue
		}
		r.report.Remade = append(r.report.Remade, lost.ID)
	}
	return nil
}

// maxAttempts is the number of times that the process may end while a layer is rebuilt. It may end once by chance.
const maxAttempts = 2

// beginAttempt writes a journal entry that says that a layer is being rebuilt, and returns its name. It refuses if too many
// such attempts have ended with their process.
func (r *recovery) beginAttempt(id objectstore.Checksum) (string, error) {
	if n := r.attempts[id]; n >= maxAttempts {
		return "", fmt.Errorf("the process has ended %d times while rebuilding it", n)
	}
	name := rand.Text()
	rec := journalRecord{boot: r.store.journal.boot, attempt: id}
	if err := r.store.journal.write(name, rec.marshal()); err != nil {
		return "", errors.Join(fmt.Errorf("write journal: %w", err), atfs.IgnoreNotExist(r.store.journal.dir.Unlink(name)))
	}
	return name, nil
}
