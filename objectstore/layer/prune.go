package layer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// Live returns the IDs of the layers that somebody outside the store needs. It is called without and with the
// repository's exclusive lock held, and must not take a lock of the repository.
type Live func(ctx context.Context) (map[objectstore.Checksum]struct{}, error)

// PruneStats counts what a prune removes.
type PruneStats struct {
	Layers    int   // layers that nobody needs
	Checkouts int   // directories of layers
	Objects   int   // objects that no ref reaches once the refs of these layers are gone
	Leftovers int   // in tmp/ and that of the repository, of what nobody is making any more
	Bytes     int64 // that all of these free on the disk
}

// A PrunePlan is what a prune would remove. It is computed without any lock and checked again when it is executed.
type PrunePlan struct {
	s       *Store
	live    Live
	objects *objectstore.PrunePlan
	bytes   map[string]int64 // what the removal of a directory frees, beside objects
	stats   PruneStats
}

// PlanPrune finds the layers that live does not name, their checkouts, and the objects that nothing else needs. Refs
// that are not this package's, and what they reach, are left alone. Refs that live layers have lost are restored before,
// so that neither this prune nor that of someone else takes the layers for garbage.
func (s *Store) PlanPrune(ctx context.Context, live Live) (*PrunePlan, error) {
	p := &PrunePlan{s: s, live: live}
	ids, err := live(ctx)
	if err != nil {
		return nil, fmt.Errorf("plan prune: list live layers: %w", err)
	}
	layers := make(map[objectstore.Checksum][]digest.Digest, len(ids))
	for id := range ids {
		layers[id] = nil // its blobs are not known here
	}
	if _, err := s.RestoreRefs(ctx, layers); err != nil {
		return nil, fmt.Errorf("plan prune: %w", err)
	}
	dead, err := p.dead(ctx)
	if err != nil {
		return nil, fmt.Errorf("plan prune: %w", err)
	}
	leftovers, err := s.leftovers(time.Now())
	if err != nil {
		return nil, fmt.Errorf("plan prune: %w", err)
	}
	links := make(links)
	if p.bytes, err = s.measure(links, dead.checkouts, leftovers); err != nil {
		return nil, fmt.Errorf("plan prune: %w", err)
	}
	p.objects, err = s.repo.PlanPrune(ctx, objectstore.PruneOptions{Without: dead.refs, Unlinked: links.count})
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

// links counts the names of inodes that are about to go, among those that have several.
type links map[atfs.Inode]uint64

func (l links) count(st *unix.Stat_t) uint64 { return l[atfs.InodeOf(st)] }

// measure returns what the removal of directories in layers/ and in tmp/ frees, but for inodes that have other names:
// those it adds to links.
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

// unfinishedAge is how old a checkout in tmp/ is that nobody is making any more.
const unfinishedAge = 24 * time.Hour

// leftovers returns the names in tmp/ of dead checkouts whose removal did not end, and of those that somebody began to
// make, who has not finished within a day. The daemon's own go when it starts.
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

// Stats says what Execute would remove, as of the time of the plan.
func (p *PrunePlan) Stats() PruneStats { return p.stats }

// garbage is what is dead at one moment.
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

// Execute removes what is garbage in the plan and still is. It holds the repository's exclusive lock for as long as
// that takes: a running import makes it wait, for the repository's lock timeout or until ctx is done, and then
// objectstore.ErrLocked is returned. What a crash leaves behind is found by the next prune.
func (p *PrunePlan) Execute(ctx context.Context) (PruneStats, error) {
	if err := p.objects.Refresh(ctx); err != nil {
		return PruneStats{}, fmt.Errorf("prune: %w", err)
	}
	lock, err := p.s.repo.Lock(ctx, objectstore.LockExclusive)
	if err != nil {
		return PruneStats{}, fmt.Errorf("prune: %w", err)
	}
	stats, trash, err := p.unlink(ctx, lock)
	var group errgroup.Group
	group.SetLimit(p.s.opts.Workers)
	group.Go(func() error {
		var objects objectstore.PruneStats
		if err == nil {
			objects, err = p.objects.ExecuteLocked(ctx, lock)
		}
		stats.Objects, stats.Leftovers = objects.Objects, objects.Leftovers
		stats.Bytes += objects.Bytes
		return errors.Join(err, lock.Unlock())
	})
	// The links of a checkout hold its objects' bytes, but nobody waits for them: that needs no lock. It takes as long as
	// the objects do, so it is done beside them: whoever removes an image waits for both.
	for _, name := range trash {
		group.Go(func() error { return p.s.tmp.RemoveAll(name) })
	}
	err = group.Wait()
	leftovers, terr := p.s.leftovers(time.Now())
	err = errors.Join(err, terr)
	for _, name := range leftovers {
		if rerr := p.s.tmp.RemoveAll(name); rerr != nil {
			err = errors.Join(err, rerr)
			continue
		}
		stats.Leftovers++
		stats.Bytes += p.bytes[name]
	}
	if err != nil {
		err = fmt.Errorf("prune: %w", err)
	}
	return stats, err
}

// unlink takes away the names of dead layers, under the lock, and returns the names in tmp/ that their checkouts have then.
func (p *PrunePlan) unlink(ctx context.Context, lock *objectstore.Lock) (stats PruneStats, trash []string, err error) {
	dead, err := p.dead(ctx)
	if err != nil {
		return stats, nil, err
	}
	stats.Layers = len(dead.layers)
	if err := lock.DeleteRefs(dead.refs...); err != nil {
		return stats, nil, err
	}
	if err := p.s.journal.forget(dead.layers); err != nil {
		return stats, nil, err
	}
	for _, name := range dead.checkouts {
		tmp, err := p.s.discard(p.s.layers, name)
		if err != nil {
			return stats, trash, err
		}
		trash = append(trash, tmp)
		stats.Checkouts++
		stats.Bytes += p.bytes[name]
	}
	return stats, trash, nil
}
