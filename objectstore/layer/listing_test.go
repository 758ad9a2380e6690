package layer

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// node holds everything visible of a file.
type node struct {
	mode     uint32
	uid, gid uint32
	rdev     uint64
	mtime    unix.Timespec
	content  string // of a regular file; of a large one, its digest
	target   string
	xattrs   map[string]string
	group    string // first of the file's several names in the tree
	ino      uint64
	nlink    uint64
}

// listTree describes everything below a directory, by relative name. The directory itself is ".".
func listTree(t testing.TB, root string) map[string]*node {
	t.Helper()
	nodes := make(map[string]*node)
	first := make(map[uint64]string)
	err := filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		n, err := stat(p)
		if errors.Is(err, unix.ENOENT) { // a whiteout: overlayfs does not interpret the only layer's directories
			return nil
		}
		if err != nil {
			return err
		}
		nodes[name] = n
		if n.mode&unix.S_IFMT == unix.S_IFDIR {
			return nil
		}
		if f, ok := first[n.ino]; ok {
			nodes[f].group, n.group = f, f
		} else {
			first[n.ino] = name
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return nodes
}

func stat(p string) (*node, error) {
	var st unix.Stat_t
	if err := unix.Lstat(p, &st); err != nil {
		return nil, fmt.Errorf("stat %s: %w", p, err)
	}
	n := &node{mode: st.Mode, uid: st.Uid, gid: st.Gid, mtime: st.Mtim, ino: st.Ino, nlink: uint64(st.Nlink), xattrs: map[string]string{}} //nolint:unconvert // arm64 has another type of Nlink
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		var b []byte
		b, err = os.ReadFile(p)
		n.content = string(b)
		if len(b) > 4096 {
			n.content = fmt.Sprintf("%d bytes %x", len(b), sha256.Sum256(b))
		}
	case unix.S_IFLNK:
		n.target, err = os.Readlink(p)
	case unix.S_IFCHR, unix.S_IFBLK:
		n.rdev = st.Rdev
	}
	if err != nil {
		return nil, err
	}
	buf := make([]byte, 64<<10)
	size, err := unix.Llistxattr(p, buf)
	if err != nil {
		return nil, fmt.Errorf("listxattr %s: %w", p, err)
	}
	for name := range strings.SplitSeq(string(buf[:size]), "\x00") {
		if name == "" {
			continue
		}
		v := make([]byte, 64<<10)
		size, err := unix.Lgetxattr(p, name, v)
		if err != nil {
			return nil, fmt.Errorf("getxattr %s %s: %w", p, name, err)
		}
		n.xattrs[name] = string(v[:size])
	}
	return n, nil
}

// String is the form in tests: mode, owner unless it is root, content or target, extended attributes and the first of
// several names. It has no times.
// and the first of several names. Times are not in it.
func (n *node) String() string {
	var b strings.Builder
	kinds := map[uint32]string{
		unix.S_IFDIR: "dir", unix.S_IFREG: "file", unix.S_IFLNK: "link", unix.S_IFIFO: "fifo",
		unix.S_IFSOCK: "sock", unix.S_IFCHR: "chr", unix.S_IFBLK: "blk",
	}
	kind := n.mode & unix.S_IFMT
	if kind == unix.S_IFCHR && n.rdev == 0 {
		return "whiteout"
	}
	b.WriteString(kinds[kind])
	if kind != unix.S_IFLNK {
		fmt.Fprintf(&b, " %o", n.mode&0o7777)
	}
	if n.uid != 0 || n.gid != 0 {
		fmt.Fprintf(&b, " %d:%d", n.uid, n.gid)
	}
	switch kind {
	case unix.S_IFREG:
		fmt.Fprintf(&b, " %q", n.content)
	case unix.S_IFLNK:
		fmt.Fprintf(&b, " %q", n.target)
	case unix.S_IFCHR, unix.S_IFBLK:
		fmt.Fprintf(&b, " %d,%d", unix.Major(n.rdev), unix.Minor(n.rdev))
	}
	for _, name := range slices.Sorted(maps.Keys(n.xattrs)) {
		fmt.Fprintf(&b, " %s=%q", name, n.xattrs[name])
	}
	if n.group != "" {
		b.WriteString(" = " + n.group)
	}
	return b.String()
}

// treeLines returns a tree in the form of tests, without the root unless that is special.
func treeLines(nodes map[string]*node) []string {
	lines := []string{}
	for _, name := range slices.Sorted(maps.Keys(nodes)) {
		if name != "." || nodes[name].String() != "dir 755" {
			lines = append(lines, name+": "+nodes[name].String())
		}
	}
	slices.Sort(lines)
	return lines
}

// wantTree compares a tree with a test's lines.
func wantTree(t testing.TB, root string, want ...string) {
	t.Helper()
	got := treeLines(listTree(t, root))
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("tree:\ngot\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

// diffTrees returns the differences of two trees. skipTime selects the files whose time does not count.
func diffTrees(got, want map[string]*node, skipTime func(name string, n *node) bool) []string {
	var diff []string
	names := maps.Clone(want)
	maps.Copy(names, got)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		g, w := got[name], want[name]
		switch {
		case g == nil:
			diff = append(diff, name+": missing, want "+w.String())
		case w == nil:
			diff = append(diff, name+": got "+g.String()+", want nothing")
		case g.String() != w.String():
			diff = append(diff, name+": got "+g.String()+", want "+w.String())
		case g.mtime != w.mtime && !skipTime(name, w):
			diff = append(diff, fmt.Sprintf("%s: got mtime %v, want %v", name, g.mtime, w.mtime))
		}
	}
	return diff
}

func never(string, *node) bool { return false }

// writeTree makes files below a directory, in order: {"d/", ""}, {"d/f", "content"}.
func writeTree(t testing.TB, root string, files ...[2]string) {
	t.Helper()
	for _, f := range files {
		p := filepath.Join(root, f[0])
		if strings.HasSuffix(f[0], "/") {
			testenv.Must(t, os.MkdirAll(p, 0o755))
			continue
		}
		testenv.Must(t, os.WriteFile(p, []byte(f[1]), 0o644))
	}
}

// value allows calls that return a value and an error inside an expression.
func value[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		testenv.Must(t, err)
		return v
	}
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
