package layer

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/panics"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/composefs"
)

const (
	checkoutTmpPrefix = "checkout-"
	deadPrefix        = checkoutTmpPrefix + "dead-"    // to be removed
	scratchPrefix     = checkoutTmpPrefix + "scratch-" // see Scratch
	commitFile        = "commit"
	checkoutFS        = "fs"

	shortID = 16 // hex digits of a layer ID in the name of its directory
)

// A checkoutCall is a checkout in progress; other callers wait for done.
type checkoutCall struct {
	done      chan struct{}
	added     Usage
	err       error
	cancelled bool // by the one caller that made it, which is no error for the others
}

// Checkout ensures that the last layer of a chain, lowest layer first, has a checkout, and returns its name below the
// root. The layers below matter only to a layer with Unresolved entries. Concurrent calls make it once; only the call
// that made it reports what was added. The caller, or something else that is live, must hold the layers.
//
// A checkout appears under its name complete or not at all. It is not synced: Recover removes checkouts that a power
// failure may have damaged, and they are rebuilt.
func (s *Store) Checkout(ctx context.Context, chain []objectstore.Checksum) (name string, added Usage, err error) {
	if len(chain) == 0 {
		return "", Usage{}, errors.New("check out layer: empty chain")
	}
	id := chain[len(chain)-1]
	l, root, name, err := s.nameCheckout(ctx, chain)
	if err != nil {
		return "", Usage{}, fmt.Errorf("check out layer %s: %w", id, err)
	}
	ok, err := s.HasCheckout(name)
	if err == nil && ok {
		if err := s.checkOwner(id); !errors.Is(err, errNoOwner) {
			return name, Usage{}, err
		}
	}
	if err == nil {
		added, err = s.checkoutOnce(ctx, name, func() (Usage, error) {
			// Another call may have ended since the check above.
			ok, err := s.HasCheckout(name)
			if err == nil && ok {
				ok, err = s.ownCheckout(ctx, name, chain)
			}
			if err != nil || ok {
				return Usage{}, err
			}
			if root == nil {
				if root, err = s.readImage(l); err != nil {
					return Usage{}, err
				}
			}
			return s.makeCheckout(ctx, id, root, path.Base(name))
		})
	}
	if err != nil {
		return "", Usage{}, fmt.Errorf("check out layer %s: %w", id, err)
	}
	return name, added, nil
}

// CheckoutName returns the name of the checkout of the last layer of a chain, lowest layer first, as Checkout does,
// whether or not the checkout exists.
func (s *Store) CheckoutName(ctx context.Context, chain []objectstore.Checksum) (string, error) {
	_, _, name, err := s.nameCheckout(ctx, chain)
	return name, err
}

// nameCheckout is CheckoutName. It also returns the last layer, and its tree if it had to read it.
func (s *Store) nameCheckout(ctx context.Context, chain []objectstore.Checksum) (l *Layer, root *composefs.Inode, name string, err error) {
	id := chain[len(chain)-1]
	if l, err = s.Layer(ctx, id); err != nil {
		return nil, nil, "", err
	}
	variant := checkoutFS
	depends, root, err := s.dependsOnBelow(l)
	if err == nil && depends {
		root, variant, err = s.resolved(ctx, id, chain[:len(chain)-1], true)
	}
	if err != nil {
		return nil, nil, "", err
	}
	return l, root, path.Join(LayersDir, CheckoutDir(id), variant), nil
}

// DiscardCheckouts moves away the checkouts of all layers except those to keep, and returns a function that removes
// them, nil if there are none. Nothing may run on them any more. After a crash before their removal, SweepTmp or a
// prune removes them.
func (s *Store) DiscardCheckouts(keep map[objectstore.Checksum]struct{}) (remove func() error, err error) {
	kept := make(map[string]struct{}, len(keep))
	for id := range keep {
		kept[CheckoutDir(id)] = struct{}{}
	}
	names, err := s.layers.ReadNames()
	if err != nil {
		return nil, err
	}
	var dead []string
	for _, name := range names {
		if _, ok := kept[name]; ok {
			continue
		}
		tmp, err := s.discard(s.layers, name)
		if err != nil {
			return nil, err
		}
		dead = append(dead, tmp)
	}
	if len(dead) == 0 {
		return nil, nil
	}
	return func() error {
		var errs []error
		for _, name := range dead {
			errs = append(errs, s.tmp.RemoveAll(name))
		}
		return errors.Join(errs...)
	}, nil
}

// discard moves a file that must not be found any more to tmp/, for removal, and returns its name there.
func (s *Store) discard(dir *atfs.Dir, name string) (tmp string, err error) {
	tmp = deadPrefix + rand.Text()
	return tmp, dir.Rename(name, s.tmp, tmp, 0)
}

// HasCheckout reports whether the checkout with this name, as returned by Checkout, exists.
func (s *Store) HasCheckout(name string) (bool, error) { return s.root.Exists(name) }

// HidesBelow reports whether a layer hides everything below it, given the name of its checkout. overlayfs does not heed
// the mark of an opaque directory on a root: lower layers must be left out of the mount.
func (s *Store) HidesBelow(checkout string) (bool, error) {
	x, err := s.root.Xattrs(checkout)
	return string(x[xattrOpaque]) == "y", err
}

// ownCheckout reports whether an existing checkout can be used. If its directory does not name the layer it may be
// damaged too, so it is compared with the layer: a whole one gets the name of its layer again, another one is removed.
func (s *Store) ownCheckout(ctx context.Context, name string, chain []objectstore.Checksum) (bool, error) {
	id := chain[len(chain)-1]
	err := s.checkOwner(id)
	if !errors.Is(err, errNoOwner) {
		return err == nil, err
	}
	var object *objectstore.ObjectError
	switch err := s.verifyFiles(ctx, name, chain); {
	case err == nil:
		return true, s.restoreOwner(id)
	case errors.As(err, &object), !errors.Is(err, objectstore.ErrCorrupt) && !errors.Is(err, fs.ErrNotExist):
		return false, err
	}
	tmp, err := s.discard(s.layers, CheckoutDir(id))
	if err != nil {
		return false, err
	}
	return false, s.tmp.RemoveAll(tmp)
}

// restoreOwner records the layer again whose checkouts are in its directory.
func (s *Store) restoreOwner(id objectstore.Checksum) error {
	entry, err := s.journal.hold(id)
	if err != nil {
		return err
	}
	defer s.journal.end(entry)
	return writeOwner(s.layers, CheckoutDir(id), id)
}

// checkOwner rejects a layer whose directory belongs to another layer: their IDs have the same beginning.
func (s *Store) checkOwner(id objectstore.Checksum) error {
	short := CheckoutDir(id)
	got, err := s.CheckoutOwner(short)
	if err != nil {
		return err
	}
	if got != id {
		return fmt.Errorf("directory %s/%s belongs to layer %s: %w", LayersDir, short, got, objectstore.ErrCorrupt)
	}
	return nil
}

// checkoutOnce calls f, unless a call for the same name is in progress, for which it waits instead.
func (s *Store) checkoutOnce(ctx context.Context, name string, f func() (Usage, error)) (Usage, error) {
	s.mu.Lock()
	for c, ok := s.checkouts[name]; ok; c, ok = s.checkouts[name] {
		s.mu.Unlock()
		select {
		case <-c.done:
			if !c.cancelled {
				return Usage{}, c.err
			}
		case <-ctx.Done():
			return Usage{}, context.Cause(ctx)
		}
		s.mu.Lock()
	}
	c := &checkoutCall{done: make(chan struct{})}
	s.checkouts[name] = c
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.checkouts, name)
		s.mu.Unlock()
		close(c.done)
	}()
	c.err = panics.Call(func() (err error) { c.added, err = f(); return err })
	c.cancelled = c.err != nil && ctx.Err() != nil
	return c.added, c.err
}

// makeCheckout makes a checkout in tmp/ and moves it into place.
func (s *Store) makeCheckout(ctx context.Context, id objectstore.Checksum, root *composefs.Inode, variant string) (_ Usage, err error) {
	// A checkout has its own directories and files, which no object holds.
	entry, err := s.journal.hold(id)
	if err != nil {
		return Usage{}, err
	}
	defer s.journal.end(entry)
	tmp := checkoutTmpPrefix + rand.Text()
	if err := s.tmp.Mkdir(tmp, 0o700); err != nil {
		return Usage{}, err
	}
	defer func() { err = errors.Join(err, s.tmp.RemoveAll(tmp)) }()
	dir, err := s.tmp.OpenDir(tmp)
	if err != nil {
		return Usage{}, err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	if err := writeOwner(dir, ".", id); err != nil {
		return Usage{}, err
	}
	if err := dir.Mkdir(variant, 0o700); err != nil {
		return Usage{}, err
	}
	fsDir, err := dir.OpenDir(variant)
	if err != nil {
		return Usage{}, err
	}
	c := &checkout{s: s, root: fsDir, groups: linkGroups(root)}
	err = c.run(ctx, root)
	if err = errors.Join(err, fsDir.Close()); err != nil {
		return Usage{}, err
	}
	short := CheckoutDir(id)
	var top Usage // directory and owner, unless another checkout of the layer has them
	for _, name := range []string{".", commitFile} {
		st, err := dir.Lstat(name)
		if err != nil {
			return Usage{}, err
		}
		top.count(&st)
	}
	err = s.tmp.Rename(tmp, s.layers, short, unix.RENAME_NOREPLACE)
	if errors.Is(err, fs.ErrExist) {
		if err = s.checkOwner(id); errors.Is(err, errNoOwner) {
			err = s.restoreOwner(id) // fsck compares its other checkouts with the layer
		}
		if err != nil {
			return Usage{}, err
		}
		err = dir.Rename(variant, s.layers, path.Join(short, variant), unix.RENAME_NOREPLACE)
		if errors.Is(err, fs.ErrExist) { // another process was first
			return Usage{}, nil
		}
		return c.added, err
	}
	c.added.Bytes += top.Bytes
	c.added.Inodes += top.Inodes
	return c.added, err
}

// A checkout is a checkout in progress.
type checkout struct {
	s      *Store
	root   *atfs.Dir
	groups map[*composefs.Inode]*linkGroup

	mu    sync.Mutex
	added Usage
}

// A linkGroup is a file with several names. Its mutex serializes the goroutines that make them.
type linkGroup struct {
	mu    sync.Mutex
	names []madeName // so far
}

type madeName struct {
	path string // from the checkout's root
	dir  *composefs.Inode
}

// linkGroups finds the files of a tree with several names.
func linkGroups(root *composefs.Inode) map[*composefs.Inode]*linkGroup {
	seen := make(map[*composefs.Inode]struct{})
	groups := make(map[*composefs.Inode]*linkGroup)
	var walk func(n *composefs.Inode)
	walk = func(n *composefs.Inode) {
		for _, e := range n.Entries {
			if e.Inode.IsDir() {
				walk(e.Inode)
			} else if _, ok := seen[e.Inode]; ok {
				groups[e.Inode] = new(linkGroup)
			} else {
				seen[e.Inode] = struct{}{}
			}
		}
	}
	walk(root)
	return groups
}

func (c *checkout) run(ctx context.Context, root *composefs.Inode) error {
	g, ctx := panics.WithContext(ctx)
	g.SetLimit(c.s.opts.Workers)
	dir, err := c.root.OpenDir(".")
	if err != nil {
		return err
	}
	g.Go(func() error { return c.dir(ctx, g, dir, "", root) })
	return g.Wait()
}

// dir fills a directory and those below it, and closes it. It sets the directory's own attributes last: adding an entry
// changes the directory's time, adding one in a directory below does not.
func (c *checkout) dir(ctx context.Context, g *panics.Group, d *atfs.Dir, name string, n *composefs.Inode) (err error) {
	defer func() { err = errors.Join(err, d.Close()) }()
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	var subdirs []composefs.Entry
	for _, e := range n.Entries {
		if e.Inode.IsDir() {
			subdirs = append(subdirs, e)
			err = d.Mkdir(e.Name, 0o700)
		} else {
			err = c.entry(d, name, n, e)
		}
		if err != nil {
			return err
		}
	}
	for _, x := range n.Xattrs {
		if err := d.SetxattrSelf(x.Name, x.Value); err != nil {
			return err
		}
	}
	if err := d.SetAttr(n.UID, n.GID, n.Mode, n.Mtime); err != nil {
		return err
	}
	st, err := d.Lstat(".")
	if err != nil {
		return err
	}
	c.count(atfs.Allocated(&st))
	for _, e := range subdirs {
		sub, err := d.OpenDir(e.Name)
		if err != nil {
			return err
		}
		work := func() error { return c.dir(ctx, g, sub, path.Join(name, e.Name), e.Inode) }
		if g.TryGo(work) {
			continue
		}
		if err := work(); err != nil {
			return err
		}
	}
	return nil
}

func (c *checkout) count(bytes int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.added.Bytes += bytes
	c.added.Inodes++
}

// entry makes a name that is not a directory.
func (c *checkout) entry(d *atfs.Dir, dirName string, dir *composefs.Inode, e composefs.Entry) error {
	g := c.groups[e.Inode]
	if g == nil {
		err := c.link(d, e.Name, e.Inode)
		if errors.Is(err, errNotLinked) {
			err = c.make(d, e.Name, e.Inode)
		}
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := c.grouped(g, d, e); err != nil {
		return err
	}
	g.names = append(g.names, madeName{path.Join(dirName, e.Name), dir})
	return nil
}

// grouped makes one of several names of a file. All are one inode, even if the first were links to the object and the
// object can take no more.
func (c *checkout) grouped(g *linkGroup, d *atfs.Dir, e composefs.Entry) error {
	if len(g.names) > 0 {
		err := c.root.Link(g.names[0].path, d, e.Name)
		if !errors.Is(err, unix.EMLINK) {
			return err
		}
	} else if err := c.link(d, e.Name, e.Inode); !errors.Is(err, errNotLinked) {
		return err
	}
	if err := c.make(d, e.Name, e.Inode); err != nil {
		return err
	}
	for _, name := range g.names {
		if err := c.relink(name, d, e.Name); err != nil {
			return err
		}
	}
	return nil
}

// relink links an existing name of the file as to in d. If the directory of the existing name was complete, its time is
// restored.
func (c *checkout) relink(name madeName, d *atfs.Dir, to string) (err error) {
	parent, err := c.root.OpenDir(path.Dir(name.path))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, parent.Close()) }()
	base := path.Base(name.path)
	if err := parent.Unlink(base); err != nil {
		return err
	}
	if err := d.Link(to, parent, base); err != nil {
		return err
	}
	return parent.SetAttr(name.dir.UID, name.dir.GID, name.dir.Mode, name.dir.Mtime)
}

// errNotLinked reports that a file needs its own inode.
var errNotLinked = errors.New("not linked")

// link links a regular file's object to the name, if nothing else is needed.
func (c *checkout) link(d *atfs.Dir, name string, n *composefs.Inode) error {
	if n.Payload == "" || hasEmptyXattr(n) {
		return errNotLinked
	}
	sum, err := PayloadSum(n.Payload)
	if err != nil {
		return err
	}
	if c.s.opts.Mtime == MtimeExact || c.s.opts.MaxLinks > 0 {
		st, err := c.s.repo.Stat(sum)
		if err != nil {
			return err
		}
		if c.s.opts.Mtime == MtimeExact && st.Mtim != n.Mtime ||
			c.s.opts.MaxLinks > 0 && int(st.Nlink) >= c.s.opts.MaxLinks {
			return errNotLinked
		}
	}
	err = c.s.repo.LinkFile(sum, d, name)
	// EXDEV: the repository is on another file system. EPERM: the object is immutable, or the file system has no hard
	// links.
	if errors.Is(err, unix.EMLINK) || errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EPERM) {
		return errNotLinked
	}
	return err
}

func hasEmptyXattr(n *composefs.Inode) bool {
	for _, x := range n.Xattrs {
		if len(x.Value) == 0 {
			return true
		}
	}
	return false
}

// make makes a file with its own inode.
func (c *checkout) make(d *atfs.Dir, name string, n *composefs.Inode) error {
	var err error
	switch n.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return c.makeRegular(d, name, n)
	case unix.S_IFLNK:
		err = d.Symlink(n.Target, name)
	case unix.S_IFCHR, unix.S_IFBLK, unix.S_IFIFO, unix.S_IFSOCK:
		err = d.Mknod(name, n.Mode, n.Rdev)
	default:
		err = fmt.Errorf("file %q has type %o: %w", name, n.Mode, objectstore.ErrCorrupt)
	}
	if err != nil {
		return err
	}
	if n.UID != 0 || n.GID != 0 {
		if err := d.Chown(name, n.UID, n.GID); err != nil {
			return err
		}
		if n.Mode&unix.S_IFMT != unix.S_IFLNK && n.Mode&(unix.S_ISUID|unix.S_ISGID) != 0 {
			if err := d.Chmod(name, n.Mode); err != nil {
				return err
			}
		}
	}
	for _, x := range n.Xattrs {
		if err := d.Setxattr(name, x.Name, x.Value); err != nil {
			return err
		}
	}
	c.count(0)
	return d.Utimes(name, n.Mtime)
}

func (c *checkout) makeRegular(d *atfs.Dir, name string, n *composefs.Inode) (err error) {
	f, err := d.OpenFile(name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if n.Payload != "" {
		sum, err := PayloadSum(n.Payload)
		if err != nil {
			return err
		}
		src, err := c.s.repo.OpenFile(sum)
		if err != nil {
			return err
		}
		if err := errors.Join(f.CopyFrom(src), src.Close()); err != nil {
			return err
		}
	}
	if n.UID != 0 || n.GID != 0 {
		if err := f.Chown(n.UID, n.GID); err != nil {
			return err
		}
	}
	for _, x := range n.Xattrs {
		if err := f.Setxattr(x.Name, x.Value); err != nil {
			return err
		}
	}
	if err := f.Chmod(n.Mode); err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	c.count(atfs.Allocated(&st))
	return f.Utimes(n.Mtime)
}
