package layer

import (
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/composefs"
)

// Names of the overlay file system's form of a layer, and our marks for entries that a checkout must resolve. Marks are
// trusted.* so that no tar can set them (ingest drops all of trusted.*).
const (
	xattrOpaque   = "trusted.overlay.opaque"
	xattrImplicit = "trusted.ostree.implicit"
	xattrHardlink = "trusted.ostree.hardlink"
)

// The marks of directories, which may be many. They must not be changed.
var (
	opaqueMark   = []composefs.Xattr{{Name: xattrOpaque, Value: []byte("y")}}
	implicitMark = []composefs.Xattr{{Name: xattrImplicit, Value: []byte("1")}}
)

const (
	maxName  = 255  // NAME_MAX
	maxPath  = 4095 // PATH_MAX without the NUL
	maxLinks = 255  // symbolic links followed for one name, as in containerd
)

// inode is a file of a layer being read. Names with the same *inode are hard links.
type inode struct {
	composefs.Inode
	children map[string]*inode    // directories
	implicit bool                 // directory without an entry of its own
	opaque   bool                 // directory that hides everything below it
	whiteout bool                 // character device 0:0 made by a .wh. entry
	external string               // hard link to this path of a lower layer
	sum      objectstore.Checksum // object of a regular file with content; set when its worker is done
	stale    bool                 // attributes changed after the content was queued
	sealed   bool                 // by tree.seal
}

func newDir() *inode {
	return &inode{
		Inode:    composefs.Inode{Mode: unix.S_IFDIR | 0o755},
		children: make(map[string]*inode),
		implicit: true,
	}
}

func (n *inode) isSymlink() bool { return n.Mode&unix.S_IFMT == unix.S_IFLNK }
func (n *inode) isRegular() bool { return n.Mode&unix.S_IFMT == unix.S_IFREG }

// hasObject reports whether the file's content is an object of the store.
func (n *inode) hasObject() bool { return n.isRegular() && n.Size > 0 && n.external == "" }

// setAttributes gives n the attributes of a. Extended attributes that only n has stay.
func (n *inode) setAttributes(a *inode) error {
	n.Mode, n.UID, n.GID, n.Mtime = a.Mode, a.UID, a.GID, a.Mtime
	kept := n.Xattrs[:0:0]
	for _, x := range n.Xattrs {
		if isACL(x.Name) { // chmod(2) changes the ACL too
			v, err := normalACL(x.Name, x.Value, n.Mode)
			if err != nil || v == nil {
				continue
			}
			x.Value = v
		}
		kept = append(kept, x)
	}
	if xattrLen(kept)+xattrLen(a.Xattrs) > maxXattrs {
		return errXattr
	}
	n.Xattrs = mergeXattrs(kept, a.Xattrs)
	return nil
}

func xattrLen(xattrs []composefs.Xattr) (n int) {
	for _, x := range xattrs {
		n += len(x.Name) + len(x.Value)
	}
	return n
}

// tree is the overlay form of a layer while it is read. It resolves names as containerd's applier does inside the upper
// directory: symbolic links of the layer itself are followed, and cannot leave its root.
//
// Its memory is bounded by the limit of entries, each of which may have [textPerEntry] bytes of text on average.
type tree struct {
	root    *inode
	recent  step // the directory of the last entry, with its whole path, if no symbolic link led there
	entries int
	text    int
	limit   int
	reserve func(need int64) error // called when the tree needs more memory; may be nil
}

const (
	// textPerEntry is the maximal average length of names, link targets and extended attributes, over the maximal
	// number of entries.
	textPerEntry = 128
	// xattrCost is the cost of an extended attribute beside its name and value.
	xattrCost = 100
)

func newTree(limit int) *tree {
	t := &tree{root: newDir(), limit: limit}
	t.root.implicit = false
	return t
}

// splitName splits the name of a tar entry into the path of its parent, without a slash at its end, and the last component.
// The root gives base "". As in containerd, ".." cancels the component before it, and above the root leads to the root.
// Limits apply to the name of the file that the entry makes or hides: that of a whiteout has a prefix more.
func splitName(name string) (parent, base string, err error) {
	if strings.IndexByte(name, 0) >= 0 {
		return "", "", errName
	}
	parent, base = path.Split(cleanName(name))
	shown := fileName(base)
	if len(parent)+len(shown) > maxPath || len(shown) > maxName {
		return "", "", errNameLong
	}
	parent = strings.TrimSuffix(parent, "/")
	if len(parent) > maxName {
		for c := range strings.SplitSeq(parent, "/") {
			if len(c) > maxName {
				return "", "", errNameLong
			}
		}
	}
	return parent, base, nil
}

// cleanName is path.Clean for a name relative to the root.
func cleanName(name string) string {
	n := strings.TrimSuffix(strings.TrimPrefix(name, "./"), "/")
	for rest, more := n, true; more; {
		var c string
		if c, rest, more = strings.Cut(rest, "/"); c == "" || c == "." || c == ".." {
			return path.Clean("/" + name)[1:]
		}
	}
	return n
}

// components splits a path of splitName.
func components(parent string) []string {
	if parent == "" {
		return nil
	}
	return strings.Split(parent, "/")
}

// splitLink is splitName for the target of a hard link, with the components of the parent. As in containerd, a ".." is the
// parent of what the components before it lead to, which matters after a symbolic link.
func splitLink(name string) (dir []string, base string, err error) {
	parts := strings.Split(strings.TrimRight(name, "/"), "/")
	if !slices.Contains(parts, "..") {
		parent, base, err := splitName(name)
		return components(parent), base, err
	}
	if strings.ContainsRune(name, 0) {
		return nil, "", errName
	}
	if len(name) > maxPath {
		return nil, "", errNameLong
	}
	base = parts[len(parts)-1]
	if base == "." || base == ".." {
		return nil, "", nil // a directory
	}
	return parts[:len(parts)-1], base, nil
}

// fileName returns the name of the file that a tar entry makes or, if it is a whiteout, hides.
func fileName(base string) string { return strings.TrimPrefix(base, whiteoutPrefix) }

// dir returns the directory that a path of splitName leads to, and makes missing ones. base, the last component of the
// entry's name, is only for the length limit.
func (t *tree) dir(parent, base string) (*inode, error) {
	d := t.recent
	if d.n == nil || d.name != parent {
		var err error
		if d, err = t.walk(parent); err != nil {
			return nil, err
		}
	}
	if d.length+len(fileName(base)) > maxPath {
		return nil, errNameLong
	}
	return d.n, nil
}

func (t *tree) walk(parent string) (step, error) {
	w := walker{stack: []step{{n: t.root}}}
	err := w.walk(components(parent), func(top *inode, part string) (*inode, error) {
		switch child := top.children[part]; {
		case child == nil:
			if err := t.count(part); err != nil {
				return nil, err
			}
			top.children[part] = newDir()
		case child.whiteout:
			// The layer removes this file and puts a directory in its place.
			top.children[part] = newDir()
			top.children[part].opaque = true
		}
		return top.children[part], nil
	})
	d := step{w.top().n, parent, w.top().length}
	t.recent = step{}
	// An entry of this directory can change what the path of the next one leads to only through a symbolic link.
	if err == nil && w.links == 0 {
		t.recent = d
	}
	return d, err
}

// find returns the file that the components lead to, or nil if the layer does not have it. It follows symbolic links in
// all components but the last, and makes nothing. The path is the one that the layer's own symbolic links lead to.
func (t *tree) find(dir []string, base string) (n *inode, path string, err error) {
	w := walker{stack: []step{{n: t.root}}}
	err = w.walk(dir, func(top *inode, part string) (*inode, error) {
		if top == nil { // below a name that the layer does not have
			return nil, nil
		}
		return top.children[part], nil
	})
	if err != nil {
		return nil, "", err
	}
	if w.top().length+len(base) > maxPath {
		return nil, "", errNameLong
	}
	if top := w.top().n; top != nil {
		n = top.children[base]
	}
	var b strings.Builder
	for _, s := range w.stack[1:] {
		b.WriteString(s.name + "/")
	}
	return n, b.String() + base, nil
}

// A walker follows names through a layer, including symbolic links, as the kernel does for a process whose root
// directory is the layer's.
type walker struct {
	stack []step // from the root to the current directory
	links int
}

type step struct {
	n      *inode // a directory, or nil
	name   string
	length int // of the path to here, with a trailing slash
}

func (w *walker) top() step { return w.stack[len(w.stack)-1] }

// walk calls next for each name on the path, with its directory, and continues at the result.
func (w *walker) walk(parts []string, next func(top *inode, part string) (*inode, error)) error {
	for len(parts) > 0 {
		part := parts[0]
		parts = parts[1:]
		switch {
		case part == "", part == ".":
			continue
		case part == "..":
			w.stack = w.stack[:max(len(w.stack)-1, 1)]
			continue
		case len(part) > maxName: // from a symbolic link
			return errNameLong
		}
		child, err := next(w.top().n, part)
		switch {
		case err != nil:
			return err
		case child == nil, child.IsDir():
			w.stack = append(w.stack, step{child, part, w.top().length + len(part) + 1})
			if w.top().length > maxPath {
				return errNameLong
			}
		case child.isSymlink():
			target := strings.Split(child.Target, "/")
			if w.links++; w.links > maxLinks || len(target)+len(parts) > maxPath {
				return errLinkLoop
			}
			if target[0] == "" {
				w.stack = w.stack[:1]
			}
			parts = append(target, parts...)
		default:
			return errNotDir
		}
	}
	return nil
}

// count counts an entry with a name.
func (t *tree) count(name string) error {
	if t.entries++; t.entries > t.limit {
		return errTooMany
	}
	return t.charge(len(name))
}

// hold counts what an inode holds beside its name.
func (t *tree) hold(n *inode) error {
	return t.charge(len(n.Target) + len(n.external) + xattrLen(n.Xattrs) + xattrCost*len(n.Xattrs))
}

func (t *tree) charge(text int) error {
	if t.text += text; (t.text-1)/textPerEntry >= t.limit { // the product could overflow
		return errTooMuch
	}
	if t.reserve == nil {
		return nil
	}
	return t.reserve(memoryPerEntry*int64(t.entries) + memoryPerText*int64(t.text))
}

// put gives n the name base in dir. It replaces an existing file, except that a directory put over a directory keeps
// its content and takes the new attributes.
func (t *tree) put(dir *inode, base string, n *inode) error {
	old := dir.children[base]
	switch {
	case old != nil && old.IsDir() && n.IsDir():
		old.implicit = false
		return old.setAttributes(n)
	case old != nil && old.whiteout && n.IsDir():
		n.opaque = true
	}
	dir.children[base] = n
	return nil
}

// whiteOut hides base in dir in the layers below. Entries of the layer itself are not affected.
func (t *tree) whiteOut(dir *inode, base string) {
	switch old := dir.children[base]; {
	case old == nil:
		dir.children[base] = &inode{Inode: composefs.Inode{Mode: unix.S_IFCHR}, whiteout: true}
	case old.IsDir():
		old.opaque = true
	}
}

// mergeXattrs merges two lists; if both have a name, add wins. Both are sorted, and not changed.
func mergeXattrs(old, add []composefs.Xattr) []composefs.Xattr {
	if len(old) == 0 {
		return add
	}
	m := slices.Clone(add)
	for _, x := range old {
		_, ok := slices.BinarySearchFunc(add, x.Name, func(y composefs.Xattr, name string) int { return strings.Compare(y.Name, name) })
		if !ok {
			m = append(m, x)
		}
	}
	sortXattrs(m)
	return m
}

func sortXattrs(x []composefs.Xattr) {
	slices.SortFunc(x, func(a, b composefs.Xattr) int { return strings.Compare(a.Name, b.Name) })
}

// seal gives the tree the form of a layer image: sorted entries, marks, payload paths. The objects of all inodes must
// be known, and the tree must not be used afterwards.
func (t *tree) seal() *composefs.Inode {
	var walk func(n *inode, hidden bool)
	walk = func(n *inode, hidden bool) {
		if n.sealed {
			return
		}
		n.sealed = true
		switch {
		case n.IsDir():
			if n.opaque {
				n.Xattrs = mergeXattrs(n.Xattrs, opaqueMark)
			}
			if n.implicit {
				n.Xattrs = mergeXattrs(n.Xattrs, implicitMark)
			}
			// Where nothing shows through there is nothing to hide. A whiteout there would be visible: overlayfs does
			// not interpret directories that it does not merge.
			hidden = hidden || n.opaque
			n.Entries = make([]composefs.Entry, 0, len(n.children))
			for name, child := range n.children {
				if hidden && child.IsWhiteout() {
					continue
				}
				n.Entries = append(n.Entries, composefs.Entry{Name: name, Inode: &child.Inode})
			}
			slices.SortFunc(n.Entries, func(a, b composefs.Entry) int { return strings.Compare(a.Name, b.Name) })
			for _, e := range n.Entries {
				walk(n.children[e.Name], hidden)
			}
			n.children = nil // to be freed before the image is made
		case n.external != "":
			n.Xattrs = mergeXattrs(n.Xattrs, []composefs.Xattr{{Name: xattrHardlink, Value: []byte(n.external)}})
		case n.hasObject():
			n.Payload = objectstore.LoosePath(n.sum, objectstore.TypeFile)
		}
	}
	walk(t.root, false)
	return &t.root.Inode
}
