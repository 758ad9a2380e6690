package layer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/panics"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// Live returns the IDs of the layers that are needed outside the store. It is called both without and with the
// repository's exclusive lock held, and must not take a lock of the repository.
type Live func(ctx context.Context) (map[objectstore.Checksum]struct{}, error)

// PruneStats counts what a prune removes.
type PruneStats struct {
	Layers    int   // layers that are not needed
	Checkouts int   // directories of layers
	Objects   int   // objects that no ref reaches after the removal of these layers' refs
	Leftovers int   // abandoned files in tmp/ and the repository's tmp/
	Bytes     int64 // freed on the disk by all of these
}

// A PrunePlan is the list of what a prune would remove. It is computed without any lock and checked again on execution.
type PrunePlan struct {
	s       *Store
	live    Live
	objects *objectstore.PrunePlan
	bytes   map[string]int64 // freed by the removal of a directory, without objects
	stats   PruneStats
}

// PlanPrune finds the layers that live does not name, their checkouts, and the objects that nothing else needs. It
// leaves refs of other packages, and everything they reach, alone. First it restores lost refs of live layers, so that
// neither this prune nor another program's takes the layers for garbage.
func (s *Store) PlanPrune(ctx context.Context, live Live) (*PrunePlan, error) {
	return s.restoreAndPlan(ctx, live, true)
}

// PlanUnmeasured is PlanPrune for a prune whose Bytes nobody needs: it looks at no file.
func (s *Store) PlanUnmeasured(ctx context.Context, live Live) (*PrunePlan, error) {
	return s.restoreAndPlan(ctx, live, false)
}

// Garbage returns what a prune would remove. It changes nothing, and takes refs that live layers have lost for lost.
func (s *Store) Garbage(ctx context.Context, live Live) (PruneStats, error) {
	p, err := s.planPrune(ctx, live, true)
	if err != nil {
		return PruneStats{}, err
	}
	return p.stats, nil
}

func (s *Store) restoreAndPlan(ctx context.Context, live Live, measured bool) (*PrunePlan, error) {
	ids, err := live(ctx)
	if err != nil {
		return nil, fmt.Errorf("plan prune: list live layers: %w", err)
	}
	layers := make(map[objectstore.Checksum][]digest.Digest, len(ids))
	for id := range ids {
		layers[id] = nil // its blobs are unknown here
	}
	if _, err := s.RestoreRefs(ctx, layers); err != nil {
		return nil, fmt.Errorf("plan prune: %w", err)
	}
	return s.planPrune(ctx, live, measured)
}

func (s *Store) planPrune(ctx context.Context, live Live, measured bool) (*PrunePlan, error) {
	p := &PrunePlan{s: s, live: live}
	dead, err := p.dead(ctx)
	if err != nil {
		return nil, fmt.Errorf("plan prune: %w", err)
	}
	leftovers, err := s.leftovers(time.Now())
	if err != nil {
		return nil, fmt.Errorf("plan prune: %w", err)
	}
	links := make(links)
	if measured {
		if p.bytes, err = s.measure(links, dead.checkouts, leftovers); err != nil {
			return nil, fmt.Errorf("plan prune: %w", err)
		}
	}
	p.objects, err = s.repo.PlanPrune(ctx, objectstore.PruneOptions{
		Without: dead.refs, Unlinked: links.count, Unmeasured: !measured,
	})
	if err != nil {
		return nil, fmt.Errorf("plan prune: %w", err)
	}
	st := p.objects.Stats()
	p.stats = PruneStats{
		Layers:    len(dead.layers),
		Checkouts: len(dead.checkouts),
		Objects:   st.Objects,
		Leftovers: st.Leftovers + len(leftovers),
		Bytes:     st.Bytes,
	}
	for _, bytes := range p.bytes {
		p.stats.Bytes += bytes
	}
	return p, nil
}

// links counts the removed names of inodes with several names.
type links map[atfs.Inode]uint64

func (l links) count(st *unix.Stat_t) uint64 { return l[atfs.InodeOf(st)] }

// measure returns the bytes freed by removing directories in layers/ and tmp/. It leaves out inodes with other names,
// and adds those to links.
func (s *Store) measure(links links, layers, tmp []string) (map[string]int64, error) {
	bytes := make(map[string]int64, len(layers)+len(tmp))
	for _, in := range []struct {
		dir   *atfs.Dir
		names []string
	}{{s.layers, layers}, {s.tmp, tmp}} {
		for _, name := range in.names {
			err := in.dir.Walk(name, func(st *unix.Stat_t) error {
				id := atfs.InodeOf(st)
				if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
					if links[id]++; links[id] < uint64(st.Nlink) { //nolint:unconvert // it has 32 bits on arm64
						return nil
					}
				}
				bytes[name] += atfs.Allocated(st)
				return nil
			})
			if err != nil {
				return nil, err
			}
		}
	}
	return bytes, nil
}

// unfinishedAge is the age from which a checkout in tmp/ counts as abandoned.
const unfinishedAge = 24 * time.Hour

// leftovers returns the names in tmp/ of discarded checkouts whose removal did not finish, and of unfinished ones older
// than a day. Those of the daemon itself are removed when it starts.
func (s *Store) leftovers(now time.Time) ([]string, error) {
	names, err := s.tmp.ReadNames()
	if err != nil {
		return nil, err
	}
	var old []string
	for _, name := range names {
		if !strings.HasPrefix(name, checkoutTmpPrefix) {
			continue
		}
		if !strings.HasPrefix(name, deadPrefix) {
			st, err := s.tmp.Lstat(name)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, err
			}
			if now.Sub(time.Unix(st.Mtim.Unix())) < unfinishedAge {
				continue
			}
		}
		old = append(old, name)
	}
	return old, nil
}

// Stats returns what Execute would remove, as of the plan.
func (p *PrunePlan) Stats() PruneStats { return p.stats }

// garbage is the set of unneeded layers and checkouts at one moment.
type garbage struct {
	refs      []string
	layers    map[objectstore.Checksum]struct{}
	checkouts []string // names in layers/
}

func (p *PrunePlan) dead(ctx context.Context) (*garbage, error) {
	live, err := p.live(ctx)
	if err != nil {
		return nil, fmt.Errorf("list live layers: %w", err)
	}
	refs, err := p.s.repo.Refs(RefPrefix)
	if err != nil {
		return nil, err
	}
	g := &garbage{layers: make(map[objectstore.Checksum]struct{})}
	for name, id := range refs {
		if _, ok := live[id]; !ok {
			g.refs = append(g.refs, name)
			g.layers[id] = struct{}{}
		}
	}
	slices.Sort(g.refs)
	short := make(map[string]struct{})
	for id := range live {
		short[CheckoutDir(id)] = struct{}{}
	}
	names, err := p.s.layers.ReadNames()
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if _, ok := short[name]; !ok && !strings.Contains(name, ".tmp-") {
			g.checkouts = append(g.checkouts, name)
		}
	}
	return g, nil
}

// Execute removes the garbage of the plan that is still garbage. It holds the repository's exclusive lock meanwhile: it
// waits for a running import, for the repository's lock timeout or until ctx is done, and then returns
// objectstore.ErrLocked. The next prune finds what a crash leaves behind. Files that cannot be removed do not stop the rest:
// the error is then an objectstore.ErrNotRemoved that names them.
func (p *PrunePlan) Execute(ctx context.Context) (PruneStats, error) {
	if err := p.objects.Refresh(ctx); err != nil {
		return PruneStats{}, fmt.Errorf("prune: %w", err)
	}
	lock, err := p.s.repo.Lock(ctx, objectstore.LockExclusive)
	if err != nil {
		return PruneStats{}, fmt.Errorf("prune: %w", err)
	}
	r := removal{p: p}
	err = r.unlink(ctx, lock)
	group := panics.NewGroup()
	group.SetLimit(p.s.opts.Workers)
	group.Go(func() (gerr error) {
		defer func() { gerr = errors.Join(gerr, lock.Unlock()) }()
		if err != nil {
			return err
		}
		objects, err := p.objects.ExecuteLocked(ctx, lock)
		r.count(objects)
		return err
	})
	// The links of a checkout keep its objects' bytes allocated, but nothing waits for them, so this needs no lock. It
	// takes as long as removing the objects, so it runs in parallel: whoever removes an image waits for both.
	for _, name := range r.trash {
		group.Go(func() error { r.keep(p.s.tmp.RemoveAll(name)); return nil })
	}
	err = group.Wait()
	r.sweep(p.s.tmp.RemoveAll)
	return r.end(err)
}

// ExecuteInSteps is Execute for a background task. It works in small steps, one after the other, and holds the lock only
// during one that removes names of layers or objects: see [objectstore.PrunePlan.ExecuteInSteps].
func (p *PrunePlan) ExecuteInSteps(ctx context.Context, steps objectstore.Steps) (PruneStats, error) {
	r := removal{p: p}
	err := p.s.locked(ctx, func(lock *objectstore.Lock) error { return r.unlink(ctx, lock) })
	if err != nil {
		return r.end(err)
	}
	objects, err := p.objects.ExecuteInSteps(ctx, steps)
	r.count(objects)
	if err != nil && !errors.Is(err, objectstore.ErrNotRemoved) {
		return r.end(err)
	}
	files, start := 0, time.Now()
	removeAll := func(name string) error {
		return p.s.tmp.RemoveAllWith(name, func() error {
			if files++; ctx.Err() != nil {
				r.stop = context.Cause(ctx)
			} else if files > steps.Objects {
				r.stop = steps.Between(ctx, time.Since(start))
				files, start = 1, time.Now()
			}
			return r.stop
		})
	}
	for _, name := range r.trash {
		left := removeAll(name)
		if r.stop != nil {
			return r.end(errors.Join(err, left))
		}
		r.keep(left)
	}
	r.sweep(removeAll)
	return r.end(errors.Join(err, r.stop))
}

// Forget removes what finds the layers that live does not name: refs, entries of the journal, names of checkouts. The
// next prune removes the rest. It waits for the lock as [PrunePlan.Execute] does.
func (s *Store) Forget(ctx context.Context, live Live) (PruneStats, error) {
	r := removal{p: &PrunePlan{s: s, live: live}}
	err := s.locked(ctx, func(lock *objectstore.Lock) error { return r.unlink(ctx, lock) })
	if err == nil {
		err = objectstore.NotRemoved(r.left...)
	}
	if err != nil {
		err = fmt.Errorf("forget layers: %w", err)
	}
	return r.stats, err
}

// locked calls f with the repository's exclusive lock.
func (s *Store) locked(ctx context.Context, f func(*objectstore.Lock) error) error {
	lock, err := s.repo.Lock(ctx, objectstore.LockExclusive)
	if err != nil {
		return err
	}
	return errors.Join(f(lock), lock.Unlock())
}

// A removal is an execution of a plan.
type removal struct {
	p     *PrunePlan
	trash []string // names in tmp/ of discarded checkouts
	stop  error    // that ended the removal of directories in tmp/

	mu    sync.Mutex
	stats PruneStats
	left  []error // of files that could not be removed
}

func (r *removal) keep(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.left = append(r.left, err)
}

// count adds the objects that were removed.
func (r *removal) count(objects objectstore.PruneStats) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stats.Objects += objects.Objects
	r.stats.Leftovers += objects.Leftovers
	r.stats.Bytes += objects.Bytes
}

// sweep removes leftovers in tmp/, until removeAll sets r.stop.
func (r *removal) sweep(removeAll func(name string) error) {
	leftovers, err := r.p.s.leftovers(time.Now())
	r.keep(err)
	for _, name := range leftovers {
		err := removeAll(name)
		if r.stop != nil {
			return
		}
		if err != nil {
			r.keep(err)
			continue
		}
		r.stats.Leftovers++
		r.stats.Bytes += r.p.bytes[name]
	}
}

// end returns the result. err is the error that ended the removal, or that of the objects.
func (r *removal) end(err error) (PruneStats, error) {
	if err == nil {
		err = objectstore.NotRemoved(r.left...)
	} else {
		err = errors.Join(append(r.left, err)...)
	}
	if err != nil {
		err = fmt.Errorf("prune: %w", err)
	}
	return r.stats, err
}

// unlink removes the names of dead layers, under the lock, and moves their checkouts to tmp/.
func (r *removal) unlink(ctx context.Context, lock *objectstore.Lock) error {
	s := r.p.s
	dead, err := r.p.dead(ctx)
	if err != nil {
		return err
	}
	r.stats.Layers = len(dead.layers)
	if err := lock.DeleteRefs(dead.refs...); err != nil {
		return err
	}
	if err := s.journal.forget(dead.layers); err != nil {
		return err
	}
	for _, name := range dead.checkouts {
		tmp, err := s.discard(s.layers, name)
		if err != nil {
			r.left = append(r.left, err)
			continue
		}
		r.trash = append(r.trash, tmp)
		r.stats.Checkouts++
		r.stats.Bytes += r.p.bytes[name]
	}
	return nil
}
