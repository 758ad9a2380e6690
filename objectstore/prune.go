package objectstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/gvariant"
)

// PruneStats counts the objects that a prune removes or has removed.
type PruneStats struct {
	Objects   int
	Failed    int   // objects that could not be removed
	Leftovers int   // abandoned files in tmp/
	Bytes     int64 // freed; an object that a checkout links to frees nothing
}

// PruneOptions describe what the caller will do besides the prune.
type PruneOptions struct {
	// Without names refs that will be gone: the caller deletes them before executing the plan, under the same lock. A
	// ref that still exists then keeps what it reaches.
	Without []string
	// NoHistory takes parents of commits for unneeded unless a ref reaches them itself, as ostree does in a sysroot.
	NoHistory bool
	// Unlinked returns how many links to an inode, other than the object's own name, the caller removes too: the object
	// frees its bytes if no other links remain. Nil means none.
	Unlinked func(*unix.Stat_t) uint64
	// Unmeasured leaves the bytes of objects out of the statistics: then no object is looked at.
	Unmeasured bool
}

// frees returns the bytes freed by removing an object with this inode.
func (o *PruneOptions) frees(st *unix.Stat_t) int64 {
	links := uint64(1)
	if st.Nlink > 1 && o.Unlinked != nil {
		links += o.Unlinked(st)
	}
	if uint64(st.Nlink) > links { //nolint:unconvert // it has 32 bits on arm64
		return 0
	}
	return atfs.Allocated(st)
}

// PrunePlan is the list of objects that a prune will remove.
type PrunePlan struct {
	repo    *Repo
	refs    map[string]Checksum   // what they reach is not in garbage
	commits map[Checksum]struct{} // at planning time, reachable or not, except those that an execution has dealt with
	fresh   map[Checksum]struct{} // commits added since
	dirs    [256]dirStamp         // of the directories of objects, as last read
	garbage []garbage
	stats   PruneStats

	noHistory bool
}

type garbage struct {
	typ   ObjectType
	sum   Checksum
	bytes int64
}

// Stats returns what Execute removes if no ref changes before.
func (p *PrunePlan) Stats() PruneStats { return p.stats }

// PlanPrune finds the objects that no ref reaches. Parents of commits count as reached, as far as they exist, but for
// NoHistory. It takes no lock, so it disturbs nobody: the plan may contain objects of transactions in progress, and
// Execute skips those that a ref has come to reach.
//
// If a ref cannot be read, or reaches a missing or corrupt metadata object, PlanPrune returns an error and plans
// nothing: whatever that object referred to must not be lost. Partial commits are kept with the objects they have.
func (r *Repo) PlanPrune(ctx context.Context, opts PruneOptions) (*PrunePlan, error) {
	p, err := r.planPrune(ctx, opts)
	if err != nil {
		return nil, fmt.Errorf("plan prune: %w", err)
	}
	return p, nil
}

func (r *Repo) planPrune(ctx context.Context, opts PruneOptions) (*PrunePlan, error) {
	p := &PrunePlan{repo: r, commits: make(map[Checksum]struct{}), fresh: make(map[Checksum]struct{}), noHistory: opts.NoHistory}
	// Without a lock, a ref may be deleted and its commit pruned while it is followed.
	const attempts = 3
	var m *marker
	for attempt := 1; ; attempt++ {
		var err error
		if p.refs, err = r.allRefs(); err != nil {
			return nil, err
		}
		for _, name := range opts.Without {
			delete(p.refs, name)
		}
		m = p.marker()
		if err = m.refs(ctx, p.refs); err == nil {
			break
		}
		if attempt == attempts || !errors.Is(err, ErrNotExist) {
			return nil, err
		}
	}
	if m.partial {
		p.refs = nil // a pull can complete what they reach without moving them
	}
	var err error
	for i := range p.dirs {
		if p.dirs[i], err = r.stampDir(byte(i)); err != nil {
			return nil, err
		}
	}
	err = r.eachObject(ctx, func(d *atfs.Dir, name string, typ ObjectType, sum Checksum) error {
		if typ == TypeCommit {
			p.commits[sum] = struct{}{}
		}
		if !m.isGarbage(typ, sum) {
			return nil
		}
		g := garbage{typ: typ, sum: sum}
		if !opts.Unmeasured {
			st, err := d.Lstat(name)
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			g.bytes = opts.frees(&st)
		}
		p.garbage = append(p.garbage, g)
		p.stats.Objects++
		p.stats.Bytes += g.bytes
		return nil
	})
	if err != nil {
		return nil, err
	}
	p.sort()
	err = r.eachLeftover(time.Now(), func(_ string, bytes int64) error {
		p.stats.Leftovers++
		p.stats.Bytes += bytes
		return nil
	})
	return p, err
}

// sort puts commits before dirtrees before content, so that no commit ever exists without its closure.
func (p *PrunePlan) sort() {
	rank := [...]int{TypeCommit: -2, TypeDirTree: -1, TypeFileXattrsLink: 0}
	slices.SortStableFunc(p.garbage, func(a, b garbage) int { return cmp.Compare(rank[a.typ], rank[b.typ]) })
}

// Execute takes the exclusive lock, so it waits for running transactions and makes new ones wait. It removes the
// planned objects, except those reached by refs added or moved since. An object that cannot be removed does not stop
// the rest: the error names up to maxPruneErrors of them. Even with an error, it returns what it removed; a later prune
// finds the rest. It also removes this package's leftovers from tmp/, and everything there older than tmp-expiry-secs.
func (p *PrunePlan) Execute(ctx context.Context) (PruneStats, error) {
	if err := p.Refresh(ctx); err != nil {
		return PruneStats{}, err
	}
	lock, err := p.repo.Lock(ctx, LockExclusive)
	if err != nil {
		return PruneStats{}, fmt.Errorf("prune: %w", err)
	}
	stats, err := p.ExecuteLocked(ctx, lock)
	return stats, errors.Join(err, lock.Unlock())
}

// ExecuteLocked is Execute under an exclusive lock that the caller holds, and keeps.
func (p *PrunePlan) ExecuteLocked(ctx context.Context, lock *Lock) (PruneStats, error) {
	if lock.repo != p.repo || lock.kind != LockExclusive {
		panic("objectstore: prune under a lock that is not the repository's exclusive one")
	}
	stats, err := p.execute(ctx)
	if err != nil {
		return stats, fmt.Errorf("prune: %w", err)
	}
	return stats, nil
}

func (p *PrunePlan) execute(ctx context.Context) (PruneStats, error) {
	e := p.begin()
	_, err := e.step(ctx, math.MaxInt)
	return e.end(err)
}

// Steps divide the execution of a plan.
type Steps struct {
	// Objects is the number of objects that a step removes at most, under the lock. A step ends early when another
	// goroutine of this process waits for a lock.
	Objects int
	// Between is called between two steps, without the lock, with the time for which the first one held it. An error
	// ends the execution.
	Between func(ctx context.Context, held time.Duration) error
}

// ExecuteInSteps is Execute for a background task: between two steps it releases the lock, so that others get it, and
// each step looks again at what refs reach by then.
func (p *PrunePlan) ExecuteInSteps(ctx context.Context, steps Steps) (PruneStats, error) {
	if err := p.Refresh(ctx); err != nil {
		return PruneStats{}, err
	}
	e := p.begin()
	for {
		done, held, err := e.stepLocked(ctx, steps.Objects)
		if err == nil && !done {
			err = steps.Between(ctx, held)
		}
		if err != nil || done {
			stats, err := e.end(err)
			if err != nil {
				err = fmt.Errorf("prune: %w", err)
			}
			return stats, err
		}
	}
}

// An execution removes what a plan lists, in steps under the exclusive lock. Between them anything may happen to the
// repository.
type execution struct {
	p       *PrunePlan
	garbage []garbage           // still to be removed
	refs    map[string]Checksum // as of the last step
	marker  *marker             // of refs that are not the plan's, and of kept; nil before the first step
	kept    []Checksum          // commits that could not be removed

	stats    PruneStats
	errs     []error // the first ones
	failures int
}

func (p *PrunePlan) begin() *execution { return &execution{p: p, garbage: p.garbage} }

// end returns the result of an execution. stop is the error that ended it, nil after the last step.
func (e *execution) end(stop error) (PruneStats, error) {
	if more := e.failures - len(e.errs); more > 0 {
		e.errs = append(e.errs, fmt.Errorf("%d more objects have errors", more))
	}
	if stop != nil {
		return e.stats, errors.Join(append(e.errs, stop)...)
	}
	return e.stats, NotRemoved(e.errs...)
}

// stepLocked is step under a lock of its own. It returns how long it held the lock.
func (e *execution) stepLocked(ctx context.Context, limit int) (done bool, held time.Duration, err error) {
	lock, err := e.p.repo.Lock(ctx, LockExclusive)
	if err != nil {
		return false, 0, err
	}
	start := time.Now()
	done, err = e.step(ctx, limit)
	err = errors.Join(err, lock.Unlock())
	return done, time.Since(start), err
}

// step removes up to limit objects. It is done once it has removed the last one, and the leftovers in tmp/.
func (e *execution) step(ctx context.Context, limit int) (done bool, err error) {
	if err := e.look(ctx); err != nil {
		return false, err
	}
	for n := 0; len(e.garbage) > 0; e.garbage = e.garbage[1:] {
		if ctx.Err() != nil {
			return false, context.Cause(ctx)
		}
		g := e.garbage[0]
		if g.typ == TypeCommit {
			// Whatever becomes of it here, it may be there, and needed or not, in another step.
			delete(e.p.commits, g.sum)
			e.p.fresh[g.sum] = struct{}{}
		}
		if !e.marker.isGarbage(g.typ, g.sum) {
			continue
		}
		if n == limit || n > 0 && limit < math.MaxInt && e.p.repo.waiting.Load() > 0 {
			return false, nil
		}
		n++
		if err := e.remove(ctx, g); err != nil {
			return false, err
		}
	}
	err = e.p.repo.eachLeftover(time.Now(), func(name string, bytes int64) error {
		if err := e.p.repo.tmp.RemoveAll(name); err != nil {
			return err
		}
		e.stats.Leftovers++
		e.stats.Bytes += bytes
		return nil
	})
	if err != nil {
		e.errs = append(e.errs, err)
		e.failures++
	}
	return true, nil
}

// look finds out what has come to be needed since the plan, and which commits of it are garbage themselves.
func (e *execution) look(ctx context.Context) error {
	refs, err := e.p.repo.allRefs()
	if err != nil {
		return err
	}
	if e.marker == nil || e.marker.partial || !maps.Equal(refs, e.refs) {
		changed := make(map[string]Checksum)
		for name, sum := range refs {
			if old, ok := e.p.refs[name]; !ok || old != sum {
				changed[name] = sum
			}
		}
		m := e.p.marker()
		if err := m.refs(ctx, changed); err != nil {
			return err
		}
		for _, sum := range e.kept {
			if ok, err := e.p.repo.Has(TypeCommit, sum); err != nil {
				return err
			} else if !ok {
				continue // somebody else could remove it
			}
			if err := m.commits(ctx, sum); err != nil {
				return err
			}
		}
		e.marker, e.refs = m, refs
	}
	commits, err := e.p.freshGarbage(ctx, e.marker, refs)
	if len(commits) > 0 {
		e.garbage = append(commits, e.garbage...)
	}
	return err
}

// remove removes an object. It returns an error only if the execution cannot go on.
func (e *execution) remove(ctx context.Context, g garbage) error {
	removed, err := e.p.repo.removeObject(g.typ, g.sum)
	if removed {
		e.stats.Objects++
		e.stats.Bytes += g.bytes
	}
	if err == nil {
		return nil
	}
	if !removed {
		e.stats.Failed++
	}
	if e.failures++; e.failures <= maxPruneErrors {
		e.errs = append(e.errs, err)
	}
	if g.typ != TypeCommit || removed {
		return nil
	}
	// The commit stays, so it keeps all it reaches.
	e.kept = append(e.kept, g.sum)
	return e.marker.commits(ctx, g.sum)
}

// maxPruneErrors bounds the errors of one prune: on a broken disk each object would have its own.
const maxPruneErrors = 10

// Refresh examines additions since the plan or the last Refresh. Execute does so too; a Refresh just before shortens
// the time others wait for it.
func (p *PrunePlan) Refresh(ctx context.Context) error {
	if err := p.findFresh(ctx); err != nil {
		return fmt.Errorf("refresh plan of prune: %w", err)
	}
	return nil
}

// findFresh finds commits made since the plan, in the directories that were written to.
func (p *PrunePlan) findFresh(ctx context.Context) error {
	for i := range p.dirs {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		now, err := p.repo.stampDir(byte(i))
		if err != nil {
			return err
		}
		if now == p.dirs[i] && now.settled {
			continue
		}
		p.dirs[i] = now
		_, names, err := p.repo.objectNames(byte(i))
		if err != nil {
			return err
		}
		for _, name := range names {
			if !strings.HasSuffix(name, "."+TypeCommit.Ext()) {
				continue
			}
			if sum, typ, ok := parseLooseName(byte(i), name); ok && typ == TypeCommit {
				if _, known := p.commits[sum]; !known {
					p.fresh[sum] = struct{}{}
				}
			}
		}
	}
	return nil
}

// freshGarbage returns the commits made since the plan that no ref reaches, because the ref was deleted again or the
// transaction was killed. The plan may contain the files of such a commit: when it was made, a transaction was storing
// or reusing them but had not stored the commit. A commit must not stay without its files.
func (p *PrunePlan) freshGarbage(ctx context.Context, m *marker, refs map[string]Checksum) ([]garbage, error) {
	if err := p.findFresh(ctx); err != nil {
		return nil, err
	}
	unreached := make(map[Checksum]garbage)
	for sum := range p.fresh {
		if !m.isGarbage(TypeCommit, sum) {
			continue
		}
		st, err := p.repo.stat(&sum, TypeCommit)
		if errors.Is(err, fs.ErrNotExist) {
			delete(p.fresh, sum) // findFresh finds it if it is stored again
			continue
		}
		if err != nil {
			return nil, err
		}
		unreached[sum] = garbage{TypeCommit, sum, atfs.Allocated(&st)}
	}
	if len(unreached) > 0 && !p.noHistory {
		if err := m.parents(ctx, refs, unreached); err != nil {
			return nil, err
		}
	}
	return slices.Collect(maps.Values(unreached)), nil
}

// A dirStamp tells whether names may have been added to a directory.
type dirStamp struct {
	ino     uint64
	mtime   unix.Timespec
	settled bool
}

// stampDir returns the stamp of a directory of objects, zero if the directory does not exist.
func (r *Repo) stampDir(first byte) (dirStamp, error) {
	now := time.Now()
	st, err := r.objects.Lstat(subdirName(first))
	if errors.Is(err, fs.ErrNotExist) {
		return dirStamp{settled: true}, nil
	}
	return dirStamp{ino: st.Ino, mtime: st.Mtim, settled: settled(now, st.Mtim)}, err
}

// settled reports whether a time of an inode is old enough that another change would give another time. The kernel
// clock behind these times ticks every few milliseconds; a file system that keeps whole seconds is recognized by the
// missing fraction.
func settled(now time.Time, t unix.Timespec) bool {
	age := now.Sub(time.Unix(t.Unix()))
	if t.Nsec == 0 {
		return age > 3*time.Second
	}
	return age > 100*time.Millisecond
}

// removeObject deletes an object and, for a commit, its companion files.
func (r *Repo) removeObject(typ ObjectType, sum Checksum) (removed bool, err error) {
	d, err := r.subdir(sum[0], false)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err == nil && typ == TypeCommit && r.config.tombstones {
		err = r.writeTombstone(d, sum)
	}
	if err == nil {
		err = d.Unlink(looseName(&sum, typ))
	}
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	removed = err == nil
	if removed && typ == TypeCommit {
		// Only now: a commit without its closure must keep its mark.
		err = r.SetComplete(sum)
	}
	return removed, objectError(typ, sum, err)
}

// writeTombstone writes the object that tells readers that a commit was deleted on purpose.
func (r *Repo) writeTombstone(d *atfs.Dir, sum Checksum) (err error) {
	data := gvariant.AppendDict(nil, []MetaEntry{{Key: "commit", Value: gvariant.Bytes(sum[:])}})
	f, err := r.tmp.TmpFile(fileMode)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := f.Chmod(fileMode); err != nil {
		return err
	}
	if err := f.LinkTo(d, looseName(&sum, TypeTombstone)); !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

func partialName(sum Checksum) string { return stateName + "/" + sum.String() + ".commitpartial" }

// eachLeftover calls f for each leftover in tmp/: names of this package, which have no owner under the exclusive lock,
// and everything older than the configured time, whoever made it. After an error it goes on with the others.
func (r *Repo) eachLeftover(now time.Time, f func(name string, bytes int64) error) error {
	names, err := r.tmp.ReadNames()
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		if name == "cache" {
			continue
		}
		st, err := r.tmp.Lstat(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		old := r.config.tmpExpiry != forever && now.Sub(time.Unix(st.Mtim.Unix())) > r.config.tmpExpiry
		ours := r.config.locking && isTemporaryName(name)
		if !old && !ours {
			continue
		}
		var bytes int64
		err = r.tmp.Walk(name, func(st *unix.Stat_t) error { bytes += atfs.Allocated(st); return nil })
		if err == nil {
			err = f(name, bytes)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// eachObject calls f for each object and its directory. f must not keep the handle. Names that are no object names are
// skipped.
func (r *Repo) eachObject(ctx context.Context, f func(d *atfs.Dir, name string, typ ObjectType, sum Checksum) error) error {
	for first := range 256 {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if err := r.eachObjectIn(byte(first), f); err != nil {
			return err
		}
	}
	return nil
}

// eachObjectIn is eachObject for objects whose checksums begin with the given byte.
func (r *Repo) eachObjectIn(first byte, f func(d *atfs.Dir, name string, typ ObjectType, sum Checksum) error) error {
	d, names, err := r.objectNames(first)
	if err != nil {
		return err
	}
	for _, name := range names {
		sum, typ, ok := parseLooseName(first, name)
		if !ok {
			continue
		}
		if err := f(d, name, typ, sum); err != nil {
			return fmt.Errorf("%s: %w", path.Join(objectsName, subdirName(first), name), err)
		}
	}
	return nil
}

// objectNames lists the directory of the objects whose checksums begin with the given byte.
func (r *Repo) objectNames(first byte) (*atfs.Dir, []string, error) {
	for attempt := 0; ; attempt++ {
		d, err := r.subdir(first, false)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil, nil
		}
		if err != nil {
			return nil, nil, err
		}
		names, err := d.ReadNames()
		if err == nil || attempt > 0 || !errors.Is(err, fs.ErrNotExist) {
			return d, names, err
		}
		r.forget(first, d) // removed since the handle was taken
	}
}

// marker collects everything that refs reach. For each checksum it keeps a set of object types, because objects of
// different types can have the same checksum: the empty file and the empty dirtree of a hostile image, for example.
type marker struct {
	repo      *Repo
	seen      map[Checksum]typeSet
	noHistory bool // leave parents of commits alone
	partial   bool // it met a partial commit
}

type typeSet uint16

func setOf(t ObjectType) typeSet { return 1 << t }

func newMarker(r *Repo) *marker { return &marker{repo: r, seen: make(map[Checksum]typeSet)} }

func (p *PrunePlan) marker() *marker {
	m := newMarker(p.repo)
	m.noHistory = p.noHistory
	return m
}

// mark reports whether the object was new.
func (m *marker) mark(t ObjectType, sum *Checksum) bool {
	old := m.seen[*sum]
	if old&setOf(t) != 0 {
		return false
	}
	m.seen[*sum] = old | setOf(t)
	return true
}

func (m *marker) unmark(t ObjectType, sum *Checksum) { m.seen[*sum] &^= setOf(t) }

func (m *marker) isGarbage(t ObjectType, sum Checksum) bool {
	seen := m.seen[sum]
	switch t {
	case TypeFile, TypeDirTree, TypeDirMeta, TypeCommit:
		return seen&setOf(t) == 0
	case TypeCommitMeta: // removed with its commit
		return seen&setOf(TypeCommit) == 0
	default: // not for this package to judge
		return false
	}
}

func (m *marker) refs(ctx context.Context, refs map[string]Checksum) error {
	for name, sum := range refs {
		if err := m.commits(ctx, sum); err != nil {
			return &RefError{Ref: name, Err: err}
		}
	}
	return nil
}

// parents marks those fresh commits that are among the parents of refs, with everything they reach, and removes them
// from fresh: older history was pulled.
func (m *marker) parents(ctx context.Context, refs map[string]Checksum, fresh map[Checksum]garbage) error {
	seen := make(map[Checksum]struct{})
	for _, sum := range refs {
		for _, done := seen[sum]; !done; _, done = seen[sum] {
			seen[sum] = struct{}{}
			c, err := m.repo.Commit(sum)
			if errors.Is(err, ErrNotExist) {
				break
			}
			if err != nil {
				return err
			}
			if _, ok := fresh[sum]; ok {
				delete(fresh, sum)
				if err := m.commits(ctx, sum); err != nil {
					return err
				}
			}
			if c.Parent == nil {
				break
			}
			sum = *c.Parent
		}
	}
	return nil
}

// commits marks a commit and, unless noHistory is set, its parents.
func (m *marker) commits(ctx context.Context, sum Checksum) error {
	for first := true; m.mark(TypeCommit, &sum); first = false {
		c, err := m.repo.Commit(sum)
		if err != nil {
			if !first && errors.Is(err, ErrNotExist) {
				m.unmark(TypeCommit, &sum)
				return nil // history that was never pulled, or was pruned
			}
			return err
		}
		partial, err := m.repo.IsPartial(sum)
		if err != nil {
			return err
		}
		m.partial = m.partial || partial
		m.mark(TypeDirMeta, &c.Meta)
		if err := m.tree(ctx, c.Tree, partial); err != nil {
			return fmt.Errorf("commit %s: %w", sum, err)
		}
		if c.Parent == nil || m.noHistory {
			return nil
		}
		sum = *c.Parent
	}
	return nil
}

// tree marks a dirtree and everything below it.
func (m *marker) tree(ctx context.Context, root Checksum, partial bool) error {
	todo := []Checksum{root}
	for len(todo) > 0 {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		sum := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if !m.mark(TypeDirTree, &sum) {
			continue
		}
		t, err := m.repo.DirTree(sum)
		if partial && errors.Is(err, ErrNotExist) {
			m.unmark(TypeDirTree, &sum)
			continue
		}
		if err != nil {
			return err
		}
		for i := range t.Files {
			m.mark(TypeFile, &t.Files[i].Checksum)
		}
		for i := range t.Dirs {
			m.mark(TypeDirMeta, &t.Dirs[i].Meta)
			todo = append(todo, t.Dirs[i].Tree)
		}
	}
	return nil
}

// IsPartial reports whether a commit is marked as incomplete: its pull has not finished, or fsck marked it.
func (r *Repo) IsPartial(sum Checksum) (bool, error) {
	st, err := r.dir.Lstat(partialName(sum))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG, err
}

// SetComplete removes a commit's mark as incomplete, if it has one. All its objects must be in the repository, durably.
func (r *Repo) SetComplete(sum Checksum) error {
	return atfs.IgnoreNotExist(r.dir.Unlink(partialName(sum)))
}
