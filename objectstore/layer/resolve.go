package layer

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/composefs"
)

var errNoLinkTarget = errors.New("hard link target is in neither this layer nor a lower one")

// Resolve checks that the last layer of a chain, lowest first, can be shown over the others: a hard link whose target
// is in none of them is an [EntryError]. It reads the layers below only as far as such links need it.
func (s *Store) Resolve(ctx context.Context, chain []objectstore.Checksum) error {
	id, below := chain[len(chain)-1], chain[:len(chain)-1]
	root, err := s.Image(ctx, id)
	if err == nil {
		err = s.newResolver(below).checkLinks(ctx, root, "")
	}
	if err != nil {
		return fmt.Errorf("check layer %s: %w", id, err)
	}
	return nil
}

// DependsOnBelow reports whether the checkout of a layer depends on the layers below: it has entries that only these
// resolve, or whiteouts, which are left out where they hide nothing.
func (s *Store) DependsOnBelow(l *Layer) (bool, error) {
	depends, _, err := s.dependsOnBelow(l)
	return depends, err
}

// dependsOnBelow is DependsOnBelow. It also returns the layer's tree if it had to read it.
func (s *Store) dependsOnBelow(l *Layer) (depends bool, root *composefs.Inode, err error) {
	if l.Unresolved > 0 {
		return true, nil, nil
	}
	s.mu.Lock()
	depends, known := s.whiteouts[l.ID]
	s.mu.Unlock()
	if known {
		return depends, nil, nil
	}
	if root, err = s.readImage(l); err != nil {
		return false, nil, err
	}
	return s.noteWhiteouts(l.ID, root), root, nil
}

// noteWhiteouts remembers whether a layer's tree has whiteouts, so that its image is not read for that.
func (s *Store) noteWhiteouts(id objectstore.Checksum, root *composefs.Inode) bool {
	has := hasWhiteouts(root)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.whiteouts[id] = has
	return has
}

func hasWhiteouts(dir *composefs.Inode) bool {
	return slices.ContainsFunc(dir.Entries, func(e composefs.Entry) bool {
		return isWhiteoutEntry(e) || e.Inode.IsDir() && hasWhiteouts(e.Inode)
	})
}

// checkoutTree returns the tree that a checkout must show. Earlier versions left no whiteouts out.
func (s *Store) checkoutTree(ctx context.Context, name string, chain []objectstore.Checksum) (*composefs.Inode, error) {
	id, below := chain[len(chain)-1], chain[:len(chain)-1]
	root, variant, err := s.resolved(ctx, id, below, true)
	if err == nil && variant != path.Base(name) {
		root, _, err = s.resolved(ctx, id, below, false)
	}
	return root, err
}

// resolved returns the tree of a layer over the layers below, and the name of its checkout there. With drop, it leaves
// out whiteouts that hide nothing.
func (s *Store) resolved(
	ctx context.Context, id objectstore.Checksum, below []objectstore.Checksum, drop bool,
) (root *composefs.Inode, variant string, err error) {
	l, err := s.Layer(ctx, id)
	if err != nil {
		return nil, "", err
	}
	if root, err = s.readImage(l); err != nil || l.Unresolved == 0 && !drop {
		return root, checkoutFS, err
	}
	variant, err = s.resolve(ctx, root, below, drop)
	return root, variant, err
}

// resolve resolves the entries of a layer's tree that depend on the layers below it, lowest first: directories without
// an entry take the attributes of the directory below, as a copy-up would give them, and hard links to files below
// become these files. With drop, whiteouts go from directories that no layer below has: overlayfs lists them there. It
// changes root and returns the name of the checkout, which depends only on layer and resolution.
func (s *Store) resolve(ctx context.Context, root *composefs.Inode, below []objectstore.Checksum, drop bool) (string, error) {
	r := s.newResolver(below)
	sum := sha256.New()
	same := true                               // as the layer's own tree
	links := make(map[string]*composefs.Inode) // by target: two links to one file below stay links of each other
	var walk func(dir *composefs.Inode, name string) error
	walk = func(dir *composefs.Inode, name string) error {
		if drop {
			dropped, err := r.dropWhiteouts(ctx, dir, name)
			if err != nil {
				return err
			}
			if dropped {
				same = false
				fmt.Fprintf(sum, "%q without whiteouts\n", name)
			}
		}
		for i, e := range dir.Entries {
			p := path.Join(name, e.Name)
			target, isLink := external(e.Inode)
			switch {
			case isLink:
				n := links[target]
				if n == nil {
					found, err := r.target(ctx, p, target)
					if err != nil {
						return err
					}
					n = found
					links[target] = n
				}
				dir.Entries[i].Inode = n
				same = false
				describe(sum, p, n)
			case isImplicit(e.Inode):
				e.Inode.Xattrs = withoutXattr(e.Inode.Xattrs, xattrImplicit)
				if err := r.adopt(ctx, e.Inode, p); err != nil {
					return err
				}
				same = false
				describe(sum, p, e.Inode)
			}
			if e.Inode.IsDir() {
				if err := walk(e.Inode, p); err != nil {
					return err
				}
			}
		}
		return nil
	}
	if err := walk(root, ""); err != nil {
		return "", err
	}
	if same {
		return checkoutFS, nil
	}
	return checkoutFS + "-" + hex.EncodeToString(sum.Sum(nil))[:shortID], nil
}

func describe(w interface{ Write([]byte) (int, error) }, name string, n *composefs.Inode) {
	fmt.Fprintf(w, "%q %o %d %d %d %d.%d %q %q\n", name, n.Mode, n.UID, n.GID, n.Rdev, n.Mtime.Sec, n.Mtime.Nsec, n.Target, n.Payload)
	for _, x := range n.Xattrs {
		fmt.Fprintf(w, " %q=%q\n", x.Name, x.Value)
	}
}

// A resolver looks up names in the layers below a layer.
type resolver struct {
	s      *Store
	below  []objectstore.Checksum
	images map[objectstore.Checksum]*composefs.Inode
}

func (s *Store) newResolver(below []objectstore.Checksum) *resolver {
	return &resolver{s: s, below: below, images: make(map[objectstore.Checksum]*composefs.Inode)}
}

// checkLinks looks up the hard links to files below in a directory, whose path is name.
func (r *resolver) checkLinks(ctx context.Context, dir *composefs.Inode, name string) error {
	for _, e := range dir.Entries {
		p := path.Join(name, e.Name)
		if target, ok := external(e.Inode); ok {
			if _, err := r.target(ctx, p, target); err != nil {
				return err
			}
		}
		if err := r.checkLinks(ctx, e.Inode, p); err != nil {
			return err
		}
	}
	return nil
}

// target returns the file below that a hard link at a path is.
func (r *resolver) target(ctx context.Context, name, target string) (*composefs.Inode, error) {
	n, err := r.file(ctx, target, len(r.below))
	if err == nil {
		return n, nil
	}
	err = fmt.Errorf("%w: %q", err, target)
	if errors.Is(err, errNoLinkTarget) || errors.Is(err, errLinkDir) {
		return nil, &EntryError{Name: name, Err: err}
	}
	return nil, err // of the store: it says nothing about the layer
}

func (r *resolver) image(ctx context.Context, i int) (*composefs.Inode, error) {
	id := r.below[i]
	if root, ok := r.images[id]; ok {
		return root, nil
	}
	root, err := r.s.Image(ctx, id)
	if err != nil {
		return nil, err
	}
	r.images[id] = root
	return root, nil
}

// lookup calls f, from the top down, with the entry of each of the lowest n layers at a path, until f returns true or
// an entry hides everything further below. A directory for which f returns false does not end the lookup, even if it
// hides everything below: it takes its own attributes from there.
func (r *resolver) lookup(ctx context.Context, name string, n int, f func(layer int, n *composefs.Inode) (done bool)) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	parts := strings.Split(name, "/")
	for i := n - 1; i >= 0; i-- {
		cur, err := r.image(ctx, i)
		if err != nil {
			return err
		}
		hidden := isOpaque(cur)
		seen := false
		for j, part := range parts {
			if cur = child(cur, part); cur == nil {
				break
			}
			last := j == len(parts)-1
			if cur.IsWhiteout() || !last && !cur.IsDir() {
				return nil
			}
			hidden = hidden || isOpaque(cur)
			if last && (f(i, cur) || !cur.IsDir()) {
				return nil
			}
			seen = last
		}
		if hidden && !seen {
			return nil
		}
	}
	return nil
}

// dropWhiteouts removes the whiteouts from a directory that the layers below do not have, and reports whether it had
// any. name is "" for the root.
func (r *resolver) dropWhiteouts(ctx context.Context, dir *composefs.Inode, name string) (bool, error) {
	if !slices.ContainsFunc(dir.Entries, isWhiteoutEntry) {
		return false, nil
	}
	merged := name == "" && len(r.below) > 0
	if name != "" {
		err := r.lookup(ctx, name, len(r.below), func(_ int, n *composefs.Inode) bool {
			merged = n.IsDir()
			return true
		})
		if err != nil {
			return false, err
		}
	}
	if !merged {
		dir.Entries = slices.DeleteFunc(dir.Entries, isWhiteoutEntry)
	}
	return !merged, nil
}

func isWhiteoutEntry(e composefs.Entry) bool { return e.Inode.IsWhiteout() }

// adopt gives a directory the attributes of the directory below it. If none exists, it keeps the default, 0755
// root:root.
func (r *resolver) adopt(ctx context.Context, dir *composefs.Inode, name string) error {
	return r.lookup(ctx, name, len(r.below), func(_ int, n *composefs.Inode) bool {
		if !n.IsDir() {
			return true
		}
		if isImplicit(n) {
			return false
		}
		adoptAttributes(dir, n)
		return true
	})
}

// adoptAttributes gives an implicit directory the attributes of the one below it.
func adoptAttributes(dir, below *composefs.Inode) {
	dir.Mode, dir.UID, dir.GID, dir.Mtime = below.Mode, below.UID, below.GID, below.Mtime
	dir.Xattrs = withoutXattr(dir.Xattrs, xattrImplicit)
	for _, x := range below.Xattrs {
		if !strings.HasPrefix(x.Name, "trusted.") { // as in copy-up and containerd's applier
			dir.Xattrs = mergeXattrs(dir.Xattrs, []composefs.Xattr{x})
		}
	}
}

// file finds the target of a hard link in layer n.
func (r *resolver) file(ctx context.Context, name string, n int) (*composefs.Inode, error) {
	var found *composefs.Inode
	var at int
	err := r.lookup(ctx, name, n, func(i int, n *composefs.Inode) bool {
		found, at = n, i
		return true
	})
	if err != nil {
		return nil, err
	}
	if found == nil {
		return nil, errNoLinkTarget
	}
	if found.IsDir() {
		return nil, errLinkDir
	}
	if further, ok := external(found); ok {
		return r.file(ctx, further, at)
	}
	n2 := *found
	return &n2, nil
}
