package layer

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/composefs"
)

// Merge makes one layer of two, with upper directly over lower, and returns it held. Over any layers below, it shows
// the same as the two. Its ref is oci/snapshot/<name>.
func (s *Store) Merge(ctx context.Context, lower, upper objectstore.Checksum, name string) (_ *Held, err error) {
	in, err := s.begin(ctx)
	if err != nil {
		return nil, fmt.Errorf("merge layers: %w", err)
	}
	defer in.finish(&err)
	l, err := s.Image(ctx, lower)
	if err != nil {
		return nil, fmt.Errorf("merge layers: %w", err)
	}
	u, err := s.Image(ctx, upper)
	if err != nil {
		return nil, fmt.Errorf("merge layers: %w", err)
	}
	mergeOver(l, u)
	var merged Layer
	var added Usage
	if err := in.storeLayer(&merged, l, &added); err != nil {
		return nil, fmt.Errorf("merge layers: %w", err)
	}
	if err := s.publishRefs(ctx, in.txn, journalRecord{layer: merged.ID, refs: []string{refSnapshot + name}}); err != nil {
		return nil, fmt.Errorf("merge layers: %w", err)
	}
	h := &Held{Layer: merged, Added: added, lock: in.lock}
	in.lock = nil
	return h, nil
}

// mergeOver lays the tree of a layer over that of the layer below, which becomes the result.
func mergeOver(lower, upper *composefs.Inode) {
	m := merger{lower: lower}
	m.settle(upper, lower, isOpaque(lower))
	m.merge(lower, upper)
	dropHidden(lower, false)
}

// Flatten returns the tree that the layers of a chain, lowest first, show together: the view of a container running on
// them. It has no whiteouts and no marks of overlayfs or of this package. Regular files with content have the path of
// their object as payload; a file with several names in one layer is one inode.
//
// A hard link whose target is in no layer is an error; so is a missing or damaged layer.
func (s *Store) Flatten(ctx context.Context, chain []objectstore.Checksum) (*composefs.Inode, error) {
	return s.FlattenOver(ctx, &newDir().Inode, chain)
}

// FlattenOver is Flatten over a tree below the lowest layer, which has no whiteouts. It takes over root and its inodes:
// a file of this tree is the same inode in the result, unless a layer has a hard link to it.
func (s *Store) FlattenOver(ctx context.Context, root *composefs.Inode, chain []objectstore.Checksum) (*composefs.Inode, error) {
	for _, id := range chain {
		upper, err := s.Image(ctx, id)
		if err != nil {
			return nil, fmt.Errorf("flatten layers: %w", err)
		}
		m := merger{lower: root}
		m.settle(upper, root, true) // nothing is below the lowest layer
		err = eachFile(upper, "", func(name string, n *composefs.Inode) error {
			if target, ok := external(n); ok {
				return &EntryError{Name: name, Err: fmt.Errorf("%w: %q", errNoLinkTarget, target)}
			}
			return context.Cause(ctx)
		})
		if err != nil {
			return nil, fmt.Errorf("flatten layers: %w", err)
		}
		m.merge(root, upper)
		dropHidden(root, false)
	}
	dropMarks(root)
	return root, nil
}

// dropMarks removes marks that only have a meaning over further layers from a tree that lies over none.
func dropMarks(dir *composefs.Inode) {
	dir.Xattrs = withoutXattr(dir.Xattrs, xattrOpaque)
	dir.Entries = slices.DeleteFunc(dir.Entries, isWhiteoutEntry)
	for _, e := range dir.Entries {
		if e.Inode.IsDir() {
			dropMarks(e.Inode)
		}
	}
}

type merger struct {
	lower  *composefs.Inode
	linked map[*composefs.Inode]struct{} // files of the lower layer that the upper one has hard links to
}

// settle resolves, like a checkout, the parts of u, a directory of the upper layer, that depend on the lower layer. l
// is the lower layer's directory of the same name, if any; hidden means that it hides everything further below. It must
// run before merge, which changes the lower layer. What it neither resolves nor hides is left to the layers below.
func (m *merger) settle(u, l *composefs.Inode, hidden bool) {
	for i, e := range u.Entries {
		u.Entries[i].Inode = m.local(e.Inode)
		if !e.Inode.IsDir() {
			continue
		}
		var below *composefs.Inode
		hides := hidden
		if l != nil {
			below = child(l, e.Name)
		}
		if below != nil {
			hides = hides || !below.IsDir() || isOpaque(below)
			if !below.IsDir() {
				below = nil
			}
		}
		if isImplicit(e.Inode) {
			switch {
			case below != nil && !isImplicit(below):
				adoptAttributes(e.Inode, below)
			case hides && below == nil: // an existing directory takes them itself from the layers below
				e.Inode.Xattrs = withoutXattr(e.Inode.Xattrs, xattrImplicit)
			}
		}
		m.settle(e.Inode, below, hides)
	}
}

// merge lays the directory u over l, which becomes the result.
func (m *merger) merge(l, u *composefs.Inode) {
	opaque := isOpaque(u)
	if opaque {
		l.Entries = nil
	}
	if !isImplicit(u) {
		was := isOpaque(l)
		l.Mode, l.UID, l.GID, l.Mtime, l.Xattrs = u.Mode, u.UID, u.GID, u.Mtime, u.Xattrs
		opaque = opaque || was
	}
	if opaque {
		makeOpaque(l)
	}
	entries := make([]composefs.Entry, 0, len(l.Entries)+len(u.Entries))
	i, j := 0, 0
	for i < len(l.Entries) || j < len(u.Entries) {
		switch order := mergeOrder(l.Entries, u.Entries, i, j); {
		case order < 0:
			entries = append(entries, l.Entries[i])
			i++
		case order > 0:
			entries = append(entries, u.Entries[j])
			j++
		default:
			entries = append(entries, m.both(l.Entries[i], u.Entries[j]))
			i++
			j++
		}
	}
	l.Entries = entries
}

func mergeOrder(l, u []composefs.Entry, i, j int) int {
	switch {
	case i == len(l):
		return 1
	case j == len(u):
		return -1
	}
	return strings.Compare(l[i].Name, u[j].Name)
}

// both returns the entry for a name that both layers have.
func (m *merger) both(l, u composefs.Entry) composefs.Entry {
	switch {
	case l.Inode.IsDir() && u.Inode.IsDir():
		m.merge(l.Inode, u.Inode)
		return l
	case u.Inode.IsDir():
		// The lower entry hid everything below it, as a whiteout or a file; the directory must keep hiding it.
		makeOpaque(u.Inode)
		return u
	}
	return u
}

// local replaces a hard link into the lower layer by the file itself. The result is the file that an overlay has after
// the layer was applied to it: the link's source name is copied up and stays a name of the same file, and the file's
// other names in the lower layer do not.
func (m *merger) local(n *composefs.Inode) *composefs.Inode {
	target, ok := external(n)
	if !ok {
		return n
	}
	dir := m.lower
	parent, base := path.Split(target)
	for part := range strings.SplitSeq(strings.TrimSuffix(parent, "/"), "/") {
		if parent == "" {
			break
		}
		if dir = child(dir, part); dir == nil {
			return n
		}
	}
	e := childEntry(dir, base)
	if e == nil || e.Inode.IsDir() || e.Inode.IsWhiteout() {
		return n
	}
	if _, ok := m.linked[e.Inode]; !ok {
		if m.linked == nil {
			m.linked = make(map[*composefs.Inode]struct{})
		}
		copied := *e.Inode
		e.Inode = &copied
		m.linked[&copied] = struct{}{}
	}
	return e.Inode
}

// dropHidden removes the whiteouts below opaque directories, as (*tree).seal does.
func dropHidden(dir *composefs.Inode, hidden bool) {
	hidden = hidden || isOpaque(dir)
	dir.Entries = slices.DeleteFunc(dir.Entries, func(e composefs.Entry) bool { return hidden && e.Inode.IsWhiteout() })
	for _, e := range dir.Entries {
		if e.Inode.IsDir() {
			dropHidden(e.Inode, hidden)
		}
	}
}

func makeOpaque(n *composefs.Inode) {
	n.Xattrs = mergeXattrs(n.Xattrs, opaqueMark)
}
