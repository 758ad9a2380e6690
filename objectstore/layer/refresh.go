package layer

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// RefreshCheckout repairs the checkout of the last layer of a chain in place, and returns the number of entries it
// changed: containers that have it mounted see the changes too. It is for a checkout that may hold links to inodes of
// replaced objects, or that was otherwise damaged. A missing checkout is made.
//
// It makes a new checkout in tmp/ and moves the differences over, each file atomically. A file with its own inode is
// overwritten instead: an overlay mount that looked it up before would keep showing the old one. The caller, or
// something else that is live, must hold the layers.
func (s *Store) RefreshCheckout(ctx context.Context, chain []objectstore.Checksum) (changed int, err error) {
	if len(chain) == 0 {
		return 0, errors.New("refresh checkout: empty chain")
	}
	id := chain[len(chain)-1]
	if changed, err = s.refresh(ctx, id, chain); err != nil {
		return changed, fmt.Errorf("refresh checkout of layer %s: %w", id, err)
	}
	return changed, nil
}

func (s *Store) refresh(ctx context.Context, id objectstore.Checksum, chain []objectstore.Checksum) (changed int, err error) {
	owner := s.checkOwner(id)
	if errors.Is(owner, errNoOwner) {
		ok, err := s.layers.Exists(CheckoutDir(id))
		if err == nil && ok { // what is in there is put right below
			changed, err = 1, s.restoreOwner(id)
		}
		if err != nil {
			return 0, err
		}
	}
	name, added, err := s.Checkout(ctx, chain)
	if err != nil {
		return 0, err
	}
	if added != (Usage{}) {
		return 1, nil
	}
	root, err := s.checkoutTree(ctx, name, chain)
	if err != nil {
		return 0, err
	}
	entry, err := s.journal.hold(id)
	if err != nil {
		return 0, err
	}
	defer s.journal.end(entry)
	tmp := checkoutTmpPrefix + rand.Text()
	if err := s.tmp.MkdirAll(path.Join(tmp, checkoutFS), 0o700); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, s.tmp.RemoveAll(tmp)) }()
	fresh, err := s.tmp.OpenDir(path.Join(tmp, checkoutFS))
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, fresh.Close()) }()
	c := &checkout{s: s, root: fresh, groups: linkGroups(root)}
	if err := c.run(ctx, root); err != nil {
		return 0, err
	}
	old, err := s.root.OpenDir(name)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, old.Close()) }()
	r := refresher{ctx: ctx, changed: changed}
	err = r.dir(old, fresh)
	return r.changed, err
}

type refresher struct {
	ctx     context.Context //nolint:containedctx // of one call
	changed int
}

// dir makes the directory old equal to fresh, and moves missing entries from fresh.
func (r *refresher) dir(old, fresh *atfs.Dir) error {
	if r.ctx.Err() != nil {
		return context.Cause(r.ctx)
	}
	st, err := fresh.Lstat(".") // before its entries are moved
	if err != nil {
		return err
	}
	want, err := fresh.ReadDir()
	if err != nil {
		return err
	}
	have, err := old.ReadNames()
	if err != nil {
		return err
	}
	wanted := make(map[string]struct{}, len(want))
	for _, e := range want {
		wanted[e.Name()] = struct{}{}
	}
	for _, name := range have {
		if _, ok := wanted[name]; !ok {
			r.changed++
			if err := old.RemoveAll(name); err != nil {
				return err
			}
		}
	}
	for _, e := range want {
		if e.IsDir() {
			err = r.subdir(old, fresh, e.Name())
		} else {
			err = r.file(old, fresh, e.Name())
		}
		if err != nil {
			return err
		}
	}
	return r.attributes(old, fresh, st)
}

func (r *refresher) subdir(old, fresh *atfs.Dir, name string) (err error) {
	st, err := old.Lstat(name)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		if err := old.Unlink(name); err != nil {
			return err
		}
	}
	if err := old.MkdirAll(name, 0o700); err != nil {
		return err
	}
	o, err := old.OpenDir(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, o.Close()) }()
	f, err := fresh.OpenDir(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return r.dir(o, f)
}

// attributes gives a directory those of the fresh one, whose status was st. It comes last: moving an entry changes the
// time.
func (r *refresher) attributes(old, fresh *atfs.Dir, st unix.Stat_t) error {
	x, err := fresh.Xattrs(".")
	if err != nil {
		return err
	}
	is, err := old.Xattrs(".")
	if err != nil {
		return err
	}
	for name, value := range x {
		if !bytes.Equal(is[name], value) {
			r.changed++
			if err := old.SetxattrSelf(name, value); err != nil {
				return err
			}
		}
	}
	now, err := old.Lstat(".")
	if err != nil {
		return err
	}
	if now.Mode == st.Mode && now.Uid == st.Uid && now.Gid == st.Gid && now.Mtim == st.Mtim {
		return nil
	}
	return old.SetAttr(st.Uid, st.Gid, st.Mode, st.Mtim)
}

// file makes the old file equal to the fresh one, unless they are the same, or equal in everything a container sees.
func (r *refresher) file(old, fresh *atfs.Dir, name string) error {
	want, err := fresh.Lstat(name)
	if err != nil {
		return err
	}
	have, err := old.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case have.Dev == want.Dev && have.Ino == want.Ino:
		return nil
	case have.Mode&unix.S_IFMT == unix.S_IFDIR:
		if err := old.RemoveAll(name); err != nil {
			return err
		}
	default:
		same, err := sameFile(old, fresh, name, have, want)
		if err != nil || same {
			return err
		}
	}
	r.changed++
	if overwritable(&have) && overwritable(&want) {
		return overwrite(old, fresh, name)
	}
	return fresh.Rename(name, old, name, 0)
}

// overwritable reports whether an inode is a regular file with one name.
func overwritable(st *unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFREG && st.Nlink == 1 }

// overwrite makes a file equal to that of the same name in fresh, in place.
func overwrite(old, fresh *atfs.Dir, name string) (err error) {
	src, err := fresh.Open(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	return old.Overwrite(name, src)
}

func sameFile(a, b *atfs.Dir, name string, sta, stb unix.Stat_t) (bool, error) {
	if sta.Mode != stb.Mode || sta.Uid != stb.Uid || sta.Gid != stb.Gid || sta.Size != stb.Size || sta.Rdev != stb.Rdev ||
		sta.Mtim != stb.Mtim {
		return false, nil
	}
	xa, err := a.Xattrs(name)
	if err != nil {
		return false, err
	}
	xb, err := b.Xattrs(name)
	if err != nil || !maps.EqualFunc(xa, xb, bytes.Equal) {
		return false, err
	}
	switch sta.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return sameContent(a, b, name)
	case unix.S_IFLNK:
		ta, err := a.Readlink(name)
		if err != nil {
			return false, err
		}
		tb, err := b.Readlink(name)
		return ta == tb, err
	}
	return true, nil
}

func sameContent(a, b *atfs.Dir, name string) (_ bool, err error) {
	fa, err := a.Open(name)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, fa.Close()) }()
	fb, err := b.Open(name)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, fb.Close()) }()
	bufa, bufb := make([]byte, 128<<10), make([]byte, 128<<10)
	for off := int64(0); ; {
		na, erra := fa.ReadAt(bufa, off)
		nb, errb := fb.ReadAt(bufb, off)
		end := errors.Is(erra, io.EOF) && errors.Is(errb, io.EOF)
		if !end && errors.Join(erra, errb) != nil {
			if errors.Is(erra, io.EOF) || errors.Is(errb, io.EOF) {
				return false, nil // one of them is shorter
			}
			return false, errors.Join(erra, errb)
		}
		if !bytes.Equal(bufa[:na], bufb[:nb]) {
			return false, nil
		}
		if end {
			return true, nil
		}
		off += int64(na)
	}
}
