package objectstore

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/panics"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/gvariant"
)

// FsckOptions are options of [Repo.Fsck].
type FsckOptions struct {
	Workers  int                     // number of concurrent hashers; 0: one for each processor
	Progress func(done, total int64) // called with numbers of objects, by one goroutine at a time; may be nil
}

// Problem is a fault in a repository. It concerns an object or, with Ref set, a ref to the commit Checksum (zero if the
// ref cannot be read).
type Problem struct {
	Type     ObjectType
	Checksum Checksum
	Ref      string
	Err      error // ErrCorrupt: does not match its name; ErrNotExist: referenced but missing
}

// String describes the problem.
func (p Problem) String() string {
	if p.Ref != "" {
		return (&RefError{Ref: p.Ref, Err: p.Err}).Error()
	}
	return (&ObjectError{Type: p.Type, Checksum: p.Checksum, Err: p.Err}).Error()
}

// FsckReport is the result of [Repo.Fsck].
type FsckReport struct {
	Objects  int // verified objects
	Commits  int // complete commits
	Refs     int
	Partial  int // commits marked as incomplete by a pull, which are no problem
	Problems []Problem
}

// Err returns nil if there are no problems, else an ErrCorrupt that names the first one.
func (r *FsckReport) Err() error {
	switch len(r.Problems) {
	case 0:
		return nil
	case 1:
		return corruptf("%s", r.Problems[0])
	}
	return corruptf("%s (and %d more problems)", r.Problems[0], len(r.Problems)-1)
}

// Fsck verifies a repository as ostree fsck does: every object against its name, the presence of everything a commit
// needs, and every ref. It can run beside writers and a prune: objects are hashed without a lock, and the shared lock
// is held only while the connections are followed. The error is for failures of Fsck itself; problems of the repository
// are in the report, sorted.
func (r *Repo) Fsck(ctx context.Context, opts FsckOptions) (*FsckReport, error) {
	f := &fsck{repo: r, opts: opts, report: &FsckReport{}, bad: make(map[fsckKey]struct{})}
	err := f.hashObjects(ctx)
	if err == nil {
		err = f.connect(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("fsck: %w", err)
	}
	slices.SortStableFunc(f.report.Problems, func(a, b Problem) int {
		return cmp.Or(strings.Compare(a.Ref, b.Ref), cmp.Compare(a.Type, b.Type), bytes.Compare(a.Checksum[:], b.Checksum[:]))
	})
	return f.report, nil
}

type fsckKey struct {
	typ ObjectType
	sum Checksum
}

type fsck struct {
	repo *Repo
	opts FsckOptions
	done atomic.Int64

	mu     sync.Mutex
	report *FsckReport
	bad    map[fsckKey]struct{} // objects with a problem already

	have map[Checksum]typeSet // objects that exist while the connections are followed
}

// problem records a problem. An error of this process, which tells nothing about the object, is returned instead.
func (f *fsck) problem(p Problem) error {
	for _, ours := range []error{unix.EMFILE, unix.ENFILE, unix.ENOMEM} {
		if errors.Is(p.Err, ours) {
			return p.Err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	key := fsckKey{p.Type, p.Checksum}
	if _, known := f.bad[key]; known && p.Ref == "" {
		return nil
	}
	if p.Ref == "" {
		f.bad[key] = struct{}{}
	}
	f.report.Problems = append(f.report.Problems, p)
	return nil
}

// hashObjects verifies each object on its own.
func (f *fsck) hashObjects(ctx context.Context) error {
	var objects []fsckKey
	err := f.repo.eachObject(ctx, func(_ *atfs.Dir, _ string, typ ObjectType, sum Checksum) error {
		if typ.hashed() || typ == TypeFile || typ == TypeCommitMeta || typ == TypeTombstone {
			objects = append(objects, fsckKey{typ, sum})
		}
		return nil
	})
	if err != nil {
		return err
	}
	workers := f.opts.Workers
	if workers <= 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	group, ctx := panics.WithContext(ctx)
	var next atomic.Int64
	for range workers {
		group.Go(func() error {
			for {
				i := next.Add(1) - 1
				if i >= int64(len(objects)) {
					return nil
				}
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				if err := f.check(objects[i]); err != nil {
					return err
				}
				f.progress(int64(len(objects)))
			}
		})
	}
	return group.Wait()
}

func (f *fsck) progress(total int64) {
	done := f.done.Add(1)
	if f.opts.Progress == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.opts.Progress(done, total)
}

// check verifies one object. An object pruned meanwhile is no problem.
func (f *fsck) check(k fsckKey) error {
	err := f.repo.verify(k.typ, k.sum)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		if err := f.problem(Problem{Type: k.typ, Checksum: k.sum, Err: err}); err != nil {
			return err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.report.Objects++
	return nil
}

// Verify reads an object and compares it with its name. The error is ErrCorrupt if they differ or the disk cannot read
// it, ErrNotExist if the object is absent, both in an *ObjectError. A file whose object has no SELinux label may have any:
// a kernel with SELinux gives one to every new inode.
func (r *Repo) Verify(t ObjectType, sum Checksum) error { return objectError(t, sum, r.verify(t, sum)) }

// RemoveObject deletes an object. The caller must hold the lock, of either kind, and know that nobody can use the
// object: it is damaged, or an incomplete commit. An absent object is no error.
func (l *Lock) RemoveObject(t ObjectType, sum Checksum) error {
	_, err := l.repo.removeObject(t, sum)
	return err
}

func (r *Repo) verify(t ObjectType, sum Checksum) error {
	err := r.verifyContent(t, sum)
	if errors.Is(err, unix.EIO) {
		err = fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return err
}

func (r *Repo) verifyContent(t ObjectType, sum Checksum) error {
	if t == TypeFile {
		return r.verifyFile(sum)
	}
	b, err := r.readMetadata(t, sum)
	if err != nil {
		return err
	}
	switch t {
	case TypeDirTree:
		_, err = ParseDirTree(b)
	case TypeDirMeta:
		_, err = ParseDirMeta(b)
	case TypeCommit:
		_, err = ParseCommit(b)
	default:
		if _, derr := gvariant.ParseDict(b); derr != nil {
			err = corruptf("%v", derr)
		}
	}
	return err
}

func (r *Repo) verifyFile(sum Checksum) error {
	d, err := r.subdir(sum[0], false)
	if err != nil {
		return err
	}
	name := looseName(&sum, TypeFile)
	m, _, err := statFile(d, name)
	if err != nil {
		if errors.Is(err, ErrInvalid) {
			return corruptf("neither a regular file nor a symbolic link")
		}
		return err
	}
	got, err := hashFile(d, name, m)
	if err != nil {
		return err
	}
	if got != sum && m.dropLabel() {
		if bare, err := hashFile(d, name, m); err != nil || bare == sum {
			return err
		}
	}
	return verifySum(got, sum)
}

// dropLabel removes the SELinux label from the metadata, and reports whether there was one.
func (m *FileMeta) dropLabel() bool {
	n := len(m.Xattrs)
	m.Xattrs = slices.DeleteFunc(m.Xattrs, func(x Xattr) bool { return x.Name == atfs.XattrSELinux })
	return len(m.Xattrs) < n
}

func verifySum(got, want Checksum) error {
	if got != want {
		return corruptf("its content, owner, mode or extended attributes have checksum %s", got)
	}
	return nil
}

// connect verifies that everything named by commits and refs exists. It holds the shared lock, so that nothing
// disappears meanwhile.
func (f *fsck) connect(ctx context.Context) (err error) {
	lock, err := f.repo.Lock(ctx, LockShared)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Unlock()) }()
	f.have = make(map[Checksum]typeSet)
	var commits []Checksum
	err = f.repo.eachObject(ctx, func(_ *atfs.Dir, _ string, typ ObjectType, sum Checksum) error {
		f.have[sum] |= setOf(typ)
		if typ == TypeCommit {
			commits = append(commits, sum)
		}
		return nil
	})
	if err != nil {
		return err
	}
	m := newMarker(f.repo)
	for _, sum := range commits {
		if err := f.commit(ctx, m, sum); err != nil {
			return err
		}
	}
	return f.refs()
}

// commit follows a commit. Partial commits are only counted.
func (f *fsck) commit(ctx context.Context, m *marker, sum Checksum) error {
	partial, err := f.repo.IsPartial(sum)
	if err != nil {
		return err
	}
	if partial {
		f.report.Partial++
		return nil
	}
	c, err := f.repo.Commit(sum)
	if err != nil {
		return f.problem(Problem{Type: TypeCommit, Checksum: sum, Err: cause(err)})
	}
	f.report.Commits++
	if _, err := f.need(m, TypeDirMeta, &c.Meta); err != nil {
		return err
	}
	todo := []Checksum{c.Tree}
	for len(todo) > 0 {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		tree := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if fresh, err := f.need(m, TypeDirTree, &tree); err != nil {
			return err
		} else if !fresh {
			continue
		}
		t, err := f.repo.DirTree(tree)
		if err != nil {
			if err := f.problem(Problem{Type: TypeDirTree, Checksum: tree, Err: cause(err)}); err != nil {
				return err
			}
			continue
		}
		for i := range t.Files {
			if _, err := f.need(m, TypeFile, &t.Files[i].Checksum); err != nil {
				return err
			}
		}
		for i := range t.Dirs {
			if _, err := f.need(m, TypeDirMeta, &t.Dirs[i].Meta); err != nil {
				return err
			}
			todo = append(todo, t.Dirs[i].Tree)
		}
	}
	return nil
}

// need records a missing object. It reports whether the object exists and is new to the marker.
func (f *fsck) need(m *marker, typ ObjectType, sum *Checksum) (bool, error) {
	if !m.mark(typ, sum) {
		return false, nil
	}
	if err := f.exists(typ, sum); err != nil {
		return false, f.problem(Problem{Type: typ, Checksum: *sum, Err: err})
	}
	return true, nil
}

// exists returns ErrNotExist for an absent object. The shared lock does not prevent others from adding objects: one
// that was absent when its directory was read may exist by now.
func (f *fsck) exists(typ ObjectType, sum *Checksum) error {
	if f.have[*sum]&setOf(typ) != 0 {
		return nil
	}
	have, err := f.repo.Has(typ, *sum)
	if err == nil && !have {
		err = ErrNotExist
	}
	return cause(err)
}

// cause strips the parts of an error that a Problem repeats.
func cause(err error) error {
	var oe *ObjectError
	if errors.As(err, &oe) {
		return oe.Err
	}
	return err
}

// refs verifies every ref, even if one cannot be read.
func (f *fsck) refs() error {
	var uncached *refCache
	return f.repo.eachTop(func(d *atfs.Dir, prefix string) error {
		return uncached.walk(d, ".", func(name string, sum Checksum, err error) error {
			return f.ref(prefix+name, sum, err)
		})
	})
}

func (f *fsck) ref(name string, sum Checksum, err error) error {
	f.report.Refs++
	if err == nil {
		if err = f.exists(TypeCommit, &sum); err != nil {
			err = fmt.Errorf("its commit %s %w", sum, err)
		}
	}
	if errors.Is(err, unix.EISDIR) {
		err = corruptf("a directory")
	}
	if err != nil {
		return f.problem(Problem{Type: TypeCommit, Checksum: sum, Ref: name, Err: err})
	}
	return nil
}
