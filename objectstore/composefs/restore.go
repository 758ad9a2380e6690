package composefs

import (
	"bytes"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// marks is a set of attributes added by the writer.
type marks uint16

const (
	markMetacopy marks = 1 << iota
	markRedirect
	markOpaque
	markWhiteout
	markUserWhiteout
	markWhiteouts
	markUserWhiteouts
	markOpaqueX
	markUserOpaqueX

	marksExternal  = markMetacopy | markRedirect
	marksWhiteout  = markWhiteout | markUserWhiteout
	marksWhiteouts = markWhiteouts | markUserWhiteouts
	marksOpaqueX   = markOpaqueX | markUserOpaqueX
)

var markNames = map[string]marks{
	xattrMetacopy:         markMetacopy,
	xattrRedirect:         markRedirect,
	xattrOpaque:           markOpaque,
	xattrEscapedWhiteout:  markWhiteout,
	xattrUserWhiteout:     markUserWhiteout,
	xattrEscapedWhiteouts: markWhiteouts,
	xattrUserWhiteouts:    markUserWhiteouts,
	xattrEscapedOpaque:    markOpaqueX,     // in version 1, with whiteouts;
	xattrUserOpaque:       markUserOpaqueX, // otherwise the tree's own
}

// readName is an attribute name as read.
type readName struct {
	full   string // as stored
	plain  string // as in the tree
	filter uint32
	mark   marks
}

func newReadName(raw rawName) (readName, error) {
	full := raw.suffix
	if int(raw.index) < len(xattrPrefixes) {
		full = xattrPrefixes[raw.index] + full
	}
	if index, _ := xattrIndex(full); index != raw.index || full == "" || strings.IndexByte(full, 0) >= 0 {
		return readName{}, corrupt("attribute %q with prefix %d", full, raw.index)
	}
	n := readName{full: full, plain: full, filter: filterBit(raw.index, raw.suffix), mark: markNames[full]}
	if rest, ok := strings.CutPrefix(full, escapedPrefix); ok {
		n.plain = overlayPrefix + rest
	} else if n.mark == 0 && strings.HasPrefix(full, overlayPrefix) {
		return readName{}, corrupt("attribute %q", full)
	}
	if len(n.plain) > maxName {
		return readName{}, corrupt("attribute %q", full)
	}
	return n, nil
}

// restore restores the inodes to their form before the writer rewrote them.
func (r *reader) restore() error {
	// A directory's attributes depend on its whiteouts, so directories come last.
	for _, dirs := range []bool{false, true} {
		for i := range r.nodes {
			if r.nodes[i].IsDir() != dirs {
				continue
			}
			if err := r.restoreInode(i); err != nil {
				return fmt.Errorf("read inode %d: %w", i, err)
			}
		}
	}
	if r.acl != r.seenACL {
		return corrupt("ACL flag is %t", r.acl)
	}
	return r.dropStubs()
}

func (r *reader) restoreInode(i int) error {
	n := &r.nodes[i]
	if n.nlink != n.names {
		return corrupt("link count %d, %d names", n.nlink, n.names)
	}
	if err := r.readXattrs(n); err != nil {
		return err
	}
	got, err := r.takeMarks(n)
	if err != nil {
		return err
	}
	var want marks
	switch {
	case n.layout == layoutChunk:
		want = marksExternal
	case n.IsDir() && n.whiteouts && r.version >= 1:
		want = marksWhiteouts | marksOpaqueX
	case n.IsDir() && n.whiteouts:
		want = marksWhiteouts
	case n.kind() == unix.S_IFREG && n.Size == 0 && got&marksWhiteout != 0:
		want = marksWhiteout
		n.Mode = n.Mode&^unix.S_IFMT | unix.S_IFCHR
		r.nodes[n.parent].whiteouts = true
	}
	if i == 0 {
		want |= markOpaque
	}
	if got != want {
		return corrupt("overlay attributes %#x, expected %#x", got, want)
	}
	n.Xattrs = r.keepXattrs()
	return nil
}

// takeMarks removes the writer's attributes from r.scratch.
func (r *reader) takeMarks(n *inodeRecord) (got marks, err error) {
	kept := r.scratch[:0]
	for _, x := range r.scratch {
		name := &r.attrNames[x.name]
		if name.full == xattrACLAccess || name.full == xattrACLDefault {
			r.seenACL = true
		}
		mark := name.mark
		if mark&marksOpaqueX != 0 && (!n.whiteouts || r.version == 0) {
			mark = 0
		}
		got |= mark
		var ok bool
		switch mark {
		case 0:
			kept = append(kept, x)
			ok = true
		case markMetacopy:
			n.Verity, ok = parseMetacopy(x.value)
		case markRedirect:
			n.Payload, ok = strings.CutPrefix(x.text, "/")
			ok = ok && validPayload(n.Payload)
		case markOpaque:
			ok = x.text == "y"
		case markOpaqueX, markUserOpaqueX:
			ok = x.text == "x"
		default:
			ok = x.text == ""
		}
		if !ok {
			return 0, corrupt("attribute %s is %q", name.full, x.text)
		}
	}
	r.scratch = kept
	return got, nil
}

func parseMetacopy(value []byte) (digest []byte, ok bool) {
	if len(value) == 0 {
		return nil, true
	}
	digest, ok = bytes.CutPrefix(value, metacopyHeader[:])
	return digest, ok && len(digest) == digestSize
}

// keepXattrs returns r.scratch in its final form.
func (r *reader) keepXattrs() []Xattr {
	count := len(r.scratch)
	if count == 0 {
		return nil
	}
	if count > len(r.xattrs) {
		r.xattrs = make([]Xattr, max(count, 512))
	}
	list := r.xattrs[:count:count]
	r.xattrs = r.xattrs[count:]
	for k, x := range r.scratch {
		list[k] = Xattr{r.attrNames[x.name].plain, x.value}
	}
	return list
}

// dropStubs removes the writer's entries from the root and checks that these are the only devices 0:0: whiteouts are
// stored in another form.
func (r *reader) dropStubs() error {
	root := r.nodes[0].Inode
	want := Inode{Mode: stubMode, UID: root.UID, GID: root.GID, Mtime: root.Mtime, Xattrs: selinuxXattr(root)}
	for _, i := range r.stubs {
		if n := &r.nodes[i]; n.parent != 0 || n.names != 1 || !sameStub(n.Inode, &want) {
			return corrupt("inode %d is a device 0:0", i)
		}
	}
	// The names are sorted, and so are the entries with their stubs.
	kept := make([]Entry, 0, max(len(root.Entries)-len(r.stubs), 0))
	names, stub := 0, 0
	for _, e := range root.Entries {
		isStubName := names < stubs && e.Name == stubName(names)
		if isStubName {
			names++
		}
		if stub < len(r.stubs) && e.Inode == r.nodes[r.stubs[stub]].Inode {
			if !isStubName {
				return corrupt("entry %q is a device 0:0", e.Name)
			}
			stub++
			continue
		}
		kept = append(kept, e)
	}
	if names != stubs {
		return corrupt("root has no entry %s", stubName(names))
	}
	root.Entries = kept
	if len(kept) == 0 {
		root.Entries = nil
	}
	return nil
}

func sameStub(a, b *Inode) bool {
	if a.Mode != b.Mode || a.UID != b.UID || a.GID != b.GID || a.Mtime != b.Mtime || len(a.Xattrs) != len(b.Xattrs) {
		return false
	}
	for i, x := range a.Xattrs {
		if x.Name != b.Xattrs[i].Name || !bytes.Equal(x.Value, b.Xattrs[i].Value) {
			return false
		}
	}
	return true
}
