package objecttest

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/gvariant"
)

// Node is a file, symbolic link or directory in a tree literal. Make one with [File], [Symlink] or [Dir], and change
// its fields as needed.
type Node struct {
	UID, GID uint32
	Mode     uint32 // with its type
	Content  []byte
	Target   string
	Mtime    unix.Timespec
	Xattrs   []objectstore.Xattr // in any order
	Entries  map[string]*Node    // of a directory
}

// File is a regular file owned by root.
func File(mode uint32, content string) *Node {
	return &Node{Mode: unix.S_IFREG | mode, Content: []byte(content)}
}

// Symlink is a symbolic link owned by root.
func Symlink(target string) *Node { return &Node{Mode: unix.S_IFLNK | 0o777, Target: target} }

// Dir is a directory owned by root.
func Dir(mode uint32, entries map[string]*Node) *Node {
	return &Node{Mode: unix.S_IFDIR | mode, Entries: entries}
}

// Own sets the owner.
func (n *Node) Own(uid, gid uint32) *Node {
	n.UID, n.GID = uid, gid
	return n
}

// Xattr adds an extended attribute.
func (n *Node) Xattr(name, value string) *Node {
	n.Xattrs = append(n.Xattrs, objectstore.Xattr{Name: name, Value: []byte(value)})
	slices.SortFunc(n.Xattrs, func(a, b objectstore.Xattr) int { return strings.Compare(a.Name, b.Name) })
	return n
}

// IsDir reports whether n is a directory.
func (n *Node) IsDir() bool { return n.Mode&unix.S_IFMT == unix.S_IFDIR }

// FileMeta returns the metadata of n's content object.
func (n *Node) FileMeta() *objectstore.FileMeta {
	return &objectstore.FileMeta{UID: n.UID, GID: n.GID, Mode: n.Mode, Target: n.Target, Xattrs: n.Xattrs}
}

// DirMeta returns the dirmeta of n.
func (n *Node) DirMeta() *objectstore.DirMeta {
	return &objectstore.DirMeta{UID: n.UID, GID: n.GID, Mode: n.Mode, Xattrs: n.Xattrs}
}

// Store stores a tree in a transaction. It returns errors, so that it can run under injected faults. Large files are
// written in pieces, small ones from memory.
func Store(t *objectstore.Txn, root *Node) (tree, meta objectstore.Checksum, err error) {
	var dt objectstore.DirTree
	names := make([]string, 0, len(root.Entries))
	for name := range root.Entries {
		names = append(names, name)
	}
	slices.Sort(names) // the same operations in each run
	for _, name := range names {
		n := root.Entries[name]
		if n.IsDir() {
			tree, meta, err := Store(t, n)
			if err != nil {
				return tree, meta, err
			}
			dt.Dirs = append(dt.Dirs, objectstore.TreeDir{Name: name, Tree: tree, Meta: meta})
			continue
		}
		stored, err := storeFile(t, n)
		if err != nil {
			return tree, meta, err
		}
		dt.Files = append(dt.Files, objectstore.TreeFile{Name: name, Checksum: stored.Checksum})
	}
	data, err := dt.Marshal()
	if err != nil {
		return tree, meta, err
	}
	s, err := t.StoreMetadata(objectstore.TypeDirTree, data)
	if err != nil {
		return tree, meta, err
	}
	tree = s.Checksum
	if data, err = root.DirMeta().Marshal(); err != nil {
		return tree, meta, err
	}
	s, err = t.StoreMetadata(objectstore.TypeDirMeta, data)
	return tree, s.Checksum, err
}

func storeFile(t *objectstore.Txn, n *Node) (objectstore.Stored, error) {
	const inMemory = 4096
	switch {
	case n.Mode&unix.S_IFMT == unix.S_IFLNK:
		return t.StoreSymlink(n.FileMeta())
	case len(n.Content) <= inMemory:
		return t.StoreFile(n.FileMeta(), n.Mtime, n.Content)
	}
	w, err := t.NewFile(n.FileMeta(), n.Mtime)
	if err != nil {
		return objectstore.Stored{}, err
	}
	for piece := range slices.Chunk(n.Content, inMemory) {
		if _, err := w.Write(piece); err != nil {
			return objectstore.Stored{}, err
		}
	}
	return w.Commit()
}

// StoreCommit stores a tree and its commit, and stages ref for it unless ref is "".
func StoreCommit(t *objectstore.Txn, ref string, root *Node) (objectstore.Checksum, error) {
	tree, meta, err := Store(t, root)
	if err != nil {
		return objectstore.Checksum{}, err
	}
	c := objectstore.Commit{Subject: "test", Tree: tree, Meta: meta}
	if ref != "" {
		c.Metadata = []objectstore.MetaEntry{{Key: "ostree.ref-binding", Value: gvariant.Strings([]string{ref})}}
	}
	data, err := c.Marshal()
	if err != nil {
		return objectstore.Checksum{}, err
	}
	s, err := t.StoreMetadata(objectstore.TypeCommit, data)
	if err == nil && ref != "" {
		t.SetRef(ref, s.Checksum)
	}
	return s.Checksum, err
}

// Commit stores a tree and its commit in a separate transaction, and sets ref to the commit.
func Commit(tb testing.TB, repo *objectstore.Repo, ref string, root *Node) objectstore.Checksum {
	tb.Helper()
	t, err := repo.Begin(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	sum, err := StoreCommit(t, ref, root)
	if err != nil {
		tb.Fatal(err, t.Abort())
	}
	if err := t.Commit(tb.Context(), objectstore.CommitOptions{}); err != nil {
		tb.Fatal(err)
	}
	return sum
}

// OddTree is a tree with everything a commit can hold.
func OddTree() *Node {
	// Capability cap_net_raw=ep in the format of VFS_CAP_REVISION_2.
	const capability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	long := make(map[string]*Node)
	for i := range 300 {
		long[strings.Repeat("n", 1+i%250)+string(rune('0'+i/250))] = File(0o644, strings.Repeat("x", i))
	}
	timed := File(0o644, "timed")
	timed.Mtime = unix.Timespec{Sec: 1700000000, Nsec: 123456789}
	return Dir(0o755, map[string]*Node{
		"empty":       File(0o644, ""),
		"hello":       File(0o755, "hello\n"),
		"setuid":      File(0o4755, "setuid"),
		"setgid":      File(0o2755, "setgid").Own(0, 50),
		"sticky":      File(0o1644, "sticky"),
		"writable":    File(0o666, "writable for all, whatever the umask"),
		"secret":      File(0, "no permissions at all"),
		"timed":       timed,
		"nobody":      File(0o640, "large ids").Own(70000, 4294967294),
		"ping":        File(0o755, "capability").Own(7, 8).Xattr("security.capability", capability),
		"xattrs":      File(0o644, "x").Own(1000, 1001).Xattr("user.b", "2").Xattr("user.a", "11").Xattr("trusted.t", "\x00\xff"),
		"big":         File(0o600, string(bytes.Repeat([]byte("0123456789abcdef"), 40000))),
		"grüße-€-日本語": File(0o644, "non-ASCII"),
		" blank\t\n":  File(0o644, "blanks"),
		"link":        Symlink("hello"),
		"ümlaut-link": Symlink("../nowhere/grüße"),
		"owned-link":  Symlink("hello").Own(1000, 1000),
		"xattr-link":  Symlink("hello").Xattr("trusted.link", "on a link"),
		"dir":         Dir(0o1777, map[string]*Node{"sub": Dir(0o2750, nil).Own(12, 34).Xattr("user.dir", "d")}),
		"long":        Dir(0o700, long),
	})
}
