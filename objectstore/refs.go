package objectstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"sync"
	"time"
	"unicode"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
)

const (
	maxRefLen   = 2048
	maxRefDepth = 64 // directories; also the length of a chain of aliases
	refFileLen  = 65 // 64 digits and a newline
)

// ValidateRef returns ErrInvalid if name is not a valid ostree ref: components of Unicode letters, digits and "_" and,
// except as first character, "-" and ".", separated by slashes. 64 hexadecimal digits are a checksum, not a ref.
func ValidateRef(name string) error {
	if !validRefPath(name) {
		return invalidf("ref %.300q", name)
	}
	if _, err := ParseChecksum(name); err == nil {
		return invalidf("ref %q: a checksum", name)
	}
	return nil
}

func validRefPath(name string) bool {
	if len(name) > maxRefLen || strings.Count(name, "/") >= maxRefDepth {
		return false
	}
	for part := range strings.SplitSeq(name, "/") {
		if !validRefComponent(part) {
			return false
		}
	}
	return true
}

// validRefComponent is libostree's [\w\d][-._\w\d]*.
func validRefComponent(s string) bool {
	if s == "" || len(s) > maxNameLen || !validString(s) {
		return false
	}
	for i, r := range s {
		switch {
		case r == '_' || unicode.IsLetter(r) || unicode.Is(unicode.N, r):
		case i > 0 && (r == '-' || r == '.'):
		default:
			return false
		}
	}
	return true
}

// Ref returns the commit of a ref in refs/heads. An absent ref is ErrNotExist, in a *RefError.
func (r *Repo) Ref(name string) (Checksum, error) {
	sum, err := r.ref(name)
	if err != nil {
		return Checksum{}, &RefError{Ref: name, Err: err}
	}
	return sum, nil
}

func (r *Repo) ref(name string) (Checksum, error) {
	if err := ValidateRef(name); err != nil {
		return Checksum{}, err
	}
	heads, err := r.dir.OpenDir(headsName)
	if errors.Is(err, fs.ErrNotExist) {
		return Checksum{}, ErrNotExist
	}
	if err != nil {
		return Checksum{}, err
	}
	defer heads.Close()
	sum, err := readRef(heads, name)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.EISDIR):
		return Checksum{}, ErrNotExist
	}
	return sum, err
}

// readRef reads a ref below heads. A symbolic link there is an alias, which it follows within heads, by name.
func readRef(heads *atfs.Dir, name string) (Checksum, error) {
	for range maxRefDepth {
		b, err := heads.ReadFile(name, refFileLen)
		if err == nil {
			return parseRef(b)
		}
		if errors.Is(err, unix.EFBIG) {
			return Checksum{}, corruptf("its file is longer than %d bytes", refFileLen)
		}
		if !errors.Is(err, unix.ELOOP) {
			return Checksum{}, err
		}
		target, err := heads.Readlink(name)
		if err != nil {
			return Checksum{}, err
		}
		next := path.Join(path.Dir(name), target)
		if path.IsAbs(target) || !validRefPath(next) {
			return Checksum{}, corruptf("alias of %q", target)
		}
		name = next
	}
	return Checksum{}, corruptf("alias of itself")
}

func parseRef(b []byte) (Checksum, error) {
	sum, err := ParseChecksum(strings.TrimSuffix(string(b), "\n"))
	if err != nil {
		return sum, corruptf("its file holds %.70q", b)
	}
	return sum, nil
}

// Refs returns the refs of refs/heads that equal prefix or are below it as a directory; "" returns all. Files with
// invalid ref names are skipped. An unreadable ref is a RefError.
func (r *Repo) Refs(prefix string) (map[string]Checksum, error) {
	refs, unreadable, err := r.ReadableRefs(prefix)
	if err == nil && len(unreadable) > 0 {
		err = fmt.Errorf("list refs: %w", unreadable[0])
	}
	if err != nil {
		return nil, err
	}
	return refs, nil
}

// ReadableRefs is [Repo.Refs] for a caller that can do without unreadable refs: it returns them beside the others.
func (r *Repo) ReadableRefs(prefix string) (refs map[string]Checksum, unreadable []*RefError, err error) {
	if prefix != "" {
		if err := ValidateRef(prefix); err != nil {
			return nil, nil, err
		}
	}
	refs = make(map[string]Checksum)
	heads, err := r.dir.OpenDir(headsName)
	if errors.Is(err, fs.ErrNotExist) {
		return refs, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("list refs: %w", err)
	}
	defer heads.Close()
	if prefix != "" {
		switch sum, err := r.Ref(prefix); {
		case err == nil:
			refs[prefix] = sum
			return refs, nil, nil
		case !errors.Is(err, ErrNotExist):
			return nil, nil, fmt.Errorf("list refs: %w", err)
		}
	}
	start := prefix
	if start == "" {
		start = "."
	}
	collect := collectRefs(refs, "")
	err = r.refCache.walk(heads, start, func(name string, sum Checksum, err error) error {
		err = collect(name, sum, err)
		var re *RefError
		if errors.As(err, &re) {
			unreadable = append(unreadable, re)
			return nil
		}
		return err
	})
	if err != nil {
		return nil, nil, fmt.Errorf("list refs: %w", err)
	}
	return refs, unreadable, nil
}

// openHeads opens refs/heads, and makes it if it was removed.
func (r *Repo) openHeads() (*atfs.Dir, error) {
	heads, err := r.dir.OpenDir(headsName)
	if errors.Is(err, fs.ErrNotExist) {
		if err = r.makeRefDirs(); err == nil {
			heads, err = r.dir.OpenDir(headsName)
		}
	}
	return heads, err
}

// refTops are the directories of refs, with the prefix of their refs in allRefs.
var refTops = []struct{ dir, prefix string }{
	{headsName, ""},
	{remotesName, "/remotes/"},
	{mirrorsName, "/mirrors/"},
}

// allRefs returns every ref: those of refs/heads by name, those of remotes and mirrors by their path below refs/ with a
// leading slash.
func (r *Repo) allRefs() (map[string]Checksum, error) {
	refs := make(map[string]Checksum)
	err := r.eachTop(func(d *atfs.Dir, prefix string) error { return r.refCache.walk(d, ".", collectRefs(refs, prefix)) })
	return refs, err
}

// eachTop calls f for each directory of refs.
func (r *Repo) eachTop(f func(d *atfs.Dir, prefix string) error) error {
	for _, top := range refTops {
		d, err := r.dir.OpenDir(top.dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = errors.Join(f(d, top.prefix), d.Close())
		}
		if err != nil {
			return fmt.Errorf("list refs: %w", err)
		}
	}
	return nil
}

// collectRefs returns a function for walkRefs that fills refs and stops at the first unreadable ref.
func collectRefs(refs map[string]Checksum, prefix string) func(string, Checksum, error) error {
	return func(name string, sum Checksum, err error) error {
		switch {
		case err == nil:
			refs[prefix+name] = sum
		case !errors.Is(err, fs.ErrNotExist): // a dangling alias names nothing
			return &RefError{Ref: prefix + name, Err: err}
		}
		return nil
	}
}

// A refCache remembers the content of ref files, so that listing many refs again takes one stat each instead of open,
// read and close. A nil refCache remembers nothing.
type refCache struct {
	mu   sync.Mutex
	dirs map[string]map[string]cachedRef // by path of the directory, as last read
}

type cachedRef struct {
	name  string // from the top directory
	ino   uint64
	ctime unix.Timespec
	sum   Checksum
}

// walk calls f for each ref in the directory dir below top, with an error for an unreadable ref. Files that disappear
// meanwhile are skipped.
func (c *refCache) walk(top *atfs.Dir, dir string, f func(name string, sum Checksum, err error) error) (err error) {
	d, err := top.OpenDir(dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
			return nil
		}
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	ents, err := d.ReadDir()
	if err != nil {
		return err
	}
	known := c.dir(d)
	now := make(map[string]cachedRef, len(known))
	for _, e := range ents {
		name := known[e.Name()].name
		if name == "" {
			if name = path.Join(dir, e.Name()); !validRefPath(name) {
				continue
			}
		}
		if e.IsDir() {
			if err := c.walk(top, name, f); err != nil {
				return err
			}
			continue
		}
		if e.Type()&^fs.ModeSymlink != 0 {
			continue
		}
		var sum Checksum
		if e.Type() == 0 {
			sum, err = readKnownRef(d, e.Name(), name, known, now)
		} else {
			sum, err = readRef(top, name)
		}
		if errors.Is(err, fs.ErrNotExist) && e.Type() == 0 {
			continue
		}
		if err := f(name, sum, err); err != nil {
			return err
		}
	}
	c.setDir(d, now)
	return nil
}

func (c *refCache) dir(d *atfs.Dir) map[string]cachedRef {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.dirs[d.Path()]
}

func (c *refCache) setDir(d *atfs.Dir, refs map[string]cachedRef) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dirs == nil {
		c.dirs = make(map[string]map[string]cachedRef)
	}
	c.dirs[d.Path()] = refs
}

// readKnownRef reads a ref that is a regular file in d, unless its inode is unchanged since the read recorded in known.
// It adds to now what need not be read again. A change in the last few seconds may not have changed the time, so such
// an inode is never trusted.
func readKnownRef(d *atfs.Dir, base, name string, known, now map[string]cachedRef) (Checksum, error) {
	start := time.Now()
	st, err := d.Lstat(base)
	if err != nil {
		return Checksum{}, err
	}
	ref, ok := known[base]
	if !ok || ref.ino != st.Ino || ref.ctime != st.Ctim {
		b, err := d.ReadFile(base, refFileLen)
		if errors.Is(err, unix.EFBIG) {
			return Checksum{}, corruptf("its file is longer than %d bytes", refFileLen)
		}
		if err != nil {
			return Checksum{}, err
		}
		ref = cachedRef{name: name, ino: st.Ino, ctime: st.Ctim}
		if ref.sum, err = parseRef(b); err != nil {
			return Checksum{}, err
		}
	}
	if settled(start, st.Ctim) {
		now[base] = ref
	}
	return ref.sum, nil
}

// DeleteRefs deletes refs of refs/heads, under the shared lock. Absent refs are skipped.
func (r *Repo) DeleteRefs(ctx context.Context, names ...string) error {
	t, err := r.Begin(ctx)
	if err != nil {
		return err
	}
	for _, name := range names {
		t.DeleteRef(name)
	}
	return t.Commit(ctx, CommitOptions{})
}

// DeleteRefs is [Repo.DeleteRefs] for a caller that already holds a lock of either kind.
func (l *Lock) DeleteRefs(names ...string) error {
	w := refWriter{repo: l.repo}
	for _, name := range names {
		w.changes = append(w.changes, refChange{name: name, del: true})
	}
	return w.write()
}

// refChange sets or deletes a ref.
type refChange struct {
	name string
	sum  Checksum
	del  bool
}

// refWriter writes refs: each atomically, one after the other.
type refWriter struct {
	repo    *Repo
	sync    bool
	changes []refChange
	heads   *atfs.Dir
	dirty   []string            // directories below heads whose names changed, in order
	seen    map[string]struct{} // the elements of dirty
}

func (w *refWriter) write() (err error) {
	if len(w.changes) == 0 {
		return nil
	}
	if w.heads, err = w.repo.openHeads(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.heads.Close()) }()
	w.seen = make(map[string]struct{})
	for _, c := range w.changes {
		if err := w.change(c); err != nil {
			return &RefError{Ref: c.name, Err: err}
		}
	}
	if w.sync {
		for _, name := range w.dirty {
			if err := syncDir(w.heads, name); err != nil {
				return err
			}
		}
	}
	// Other users of libostree learn from this directory's time that refs have changed.
	return w.repo.dir.TouchSelf()
}

func syncDir(d *atfs.Dir, name string) error {
	sub, err := d.OpenDir(name)
	if err != nil {
		return err
	}
	return errors.Join(sub.Sync(), sub.Close())
}

func (w *refWriter) touch(dir string) {
	if _, ok := w.seen[dir]; !ok {
		w.seen[dir] = struct{}{}
		w.dirty = append(w.dirty, dir)
	}
}

func (w *refWriter) change(c refChange) error {
	if err := ValidateRef(c.name); err != nil {
		return err
	}
	if !c.del {
		return w.set(c)
	}
	switch err := w.heads.Unlink(c.name); {
	case err == nil:
		w.touch(path.Dir(c.name))
	case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.ENOTDIR):
		return err
	}
	return nil
}

// set writes a ref to a temporary file and moves it into place. The temporary file is not in refs/, where its name
// could be a ref.
func (w *refWriter) set(c refChange) (err error) {
	if old, err := readRef(w.heads, c.name); err == nil && old == c.sum {
		return nil
	}
	if err := w.mkdirs(path.Dir(c.name)); err != nil {
		return err
	}
	f, err := w.repo.tmp.TmpFile(fileMode)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.Write([]byte(c.sum.String() + "\n")); err != nil {
		return err
	}
	if err := f.Chmod(fileMode); err != nil {
		return err
	}
	if w.sync {
		if err := f.Sync(); err != nil {
			return err
		}
	}
	err = linkTemporary(f, w.repo.tmp, refTmpPrefix, func(tmp string) error {
		err := w.repo.tmp.Rename(tmp, w.heads, c.name, 0)
		if errors.Is(err, unix.EISDIR) && removeEmptyDirs(w.heads, c.name) == nil {
			err = w.repo.tmp.Rename(tmp, w.heads, c.name, 0)
		}
		return err
	})
	if errors.Is(err, unix.EISDIR) {
		return fmt.Errorf("refs exist below it: %w", err)
	}
	if err == nil {
		w.touch(path.Dir(c.name))
	}
	return err
}

// mkdirs makes the directories of a ref, and records the directories in which names were added.
func (w *refWriter) mkdirs(dir string) error {
	if dir == "." {
		return nil
	}
	if err := w.mkdirs(path.Dir(dir)); err != nil {
		return err
	}
	err := w.heads.Mkdir(dir, dirMode)
	switch {
	case err == nil:
		w.touch(path.Dir(dir))
		return nil
	case errors.Is(err, fs.ErrExist):
		return nil
	}
	return err
}

// removeEmptyDirs removes a directory that contains only empty directories, the remains of deleted refs.
func removeEmptyDirs(d *atfs.Dir, name string) error {
	sub, err := d.OpenDir(name)
	if err != nil {
		return err
	}
	names, err := sub.ReadNames()
	for _, n := range names {
		if err == nil {
			err = removeEmptyDirs(sub, n)
		}
	}
	if err = errors.Join(err, sub.Close()); err != nil {
		return err
	}
	return d.Rmdir(name)
}
