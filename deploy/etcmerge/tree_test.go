package etcmerge

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// A tree is the contents of a directory, by path; "." may be the directory itself.
type tree map[string]node

// A node is an inode. For a directory, its entries are not part of it.
type node struct {
	Mode     uint32 // with the type
	UID, GID int
	Content  string // or target
	Dev      uint64
	Xattrs   string // sorted, " name=value" each
	Mtime    int64  // in seconds; 0: not compared
}

func file(content string) node   { return node{Mode: unix.S_IFREG | 0o644, Content: content} }
func symlink(target string) node { return node{Mode: unix.S_IFLNK | 0o777, Content: target} }
func dir() node                  { return node{Mode: unix.S_IFDIR | 0o755} }

func (n node) mode(perm uint32) node     { n.Mode = n.Mode&unix.S_IFMT | perm; return n }
func (n node) owner(uid, gid int) node   { n.UID, n.GID = uid, gid; return n }
func (n node) xattr(name, v string) node { n.Xattrs += " " + name + "=" + v; return n }
func (n node) at(mtime int64) node       { n.Mtime = mtime; return n }

// make writes the tree into a directory.
func (tr tree) make(t *testing.T, path string) {
	t.Helper()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(tr)) {
		n := tr[name]
		p := filepath.Join(path, name)
		switch n.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			if name != "." {
				check(os.Mkdir(p, 0o700))
			}
		case unix.S_IFREG:
			check(os.WriteFile(p, []byte(n.Content), 0o600))
		case unix.S_IFLNK:
			check(os.Symlink(n.Content, p))
		default:
			check(unix.Mknod(p, n.Mode, int(n.Dev)))
		}
		check(unix.Lchown(p, n.UID, n.GID))
		if n.Mode&unix.S_IFMT != unix.S_IFLNK {
			check(unix.Chmod(p, n.Mode&0o7777))
		}
		for x := range strings.FieldsSeq(n.Xattrs) {
			attr, value, _ := strings.Cut(x, "=")
			check(unix.Lsetxattr(p, attr, []byte(value), 0))
		}
		if n.Mtime != 0 {
			ts := []unix.Timespec{{Sec: n.Mtime}, {Sec: n.Mtime}}
			check(unix.UtimesNanoAt(unix.AT_FDCWD, p, ts, unix.AT_SYMLINK_NOFOLLOW))
		}
	}
}

// read reads a tree back, without times and without itself.
func read(t *testing.T, path string) tree {
	t.Helper()
	tr := make(tree)
	d := open(t, path)
	defer d.Close()
	err := filepath.WalkDir(path, func(p string, _ fs.DirEntry, err error) error {
		name, _ := filepath.Rel(path, p)
		if err != nil || name == "." {
			return err
		}
		st, err := d.Lstat(name)
		if err != nil {
			return err
		}
		n := node{Mode: st.Mode, UID: int(st.Uid), GID: int(st.Gid)}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			b, err := d.ReadFile(name, 1<<20)
			if err != nil {
				return err
			}
			n.Content = string(b)
		case unix.S_IFLNK:
			if n.Content, err = d.Readlink(name); err != nil {
				return err
			}
		case unix.S_IFCHR, unix.S_IFBLK:
			n.Dev = st.Rdev
		}
		xattrs, err := d.Xattrs(name)
		if err != nil {
			return err
		}
		for _, attr := range slices.Sorted(maps.Keys(xattrs)) {
			if attr != atfs.XattrSELinux {
				n = n.xattr(attr, string(xattrs[attr]))
			}
		}
		tr[name] = n
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

func open(t *testing.T, path string) *atfs.Dir {
	t.Helper()
	d, err := atfs.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// A scene has the three trees of a merge, and the new etc.
type scene struct{ pristine, current, fresh, to *atfs.Dir }

func newScene(t *testing.T, pristine, current, fresh tree) scene {
	t.Helper()
	testenv.NeedsRoot(t) // for owners and devices
	top := t.TempDir()
	prepare(t, top, pristine, current, fresh)
	s := openScene(t, top, nil)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func prepare(t *testing.T, top string, pristine, current, fresh tree) {
	t.Helper()
	for name, tr := range map[string]tree{"pristine": pristine, "current": current, "fresh": fresh, "to": fresh} {
		path := filepath.Join(top, name)
		if err := os.Mkdir(path, 0o755); err != nil {
			t.Fatal(err)
		}
		tr.make(t, path)
	}
}

// openScene opens a scene. The hook sees the operations on the new etc.
func openScene(t *testing.T, top string, hook atfs.Hook) scene {
	t.Helper()
	s := scene{
		pristine: open(t, filepath.Join(top, "pristine")), current: open(t, filepath.Join(top, "current")),
		fresh: open(t, filepath.Join(top, "fresh")), to: open(t, filepath.Join(top, "to")),
	}
	if hook != nil {
		to, err := s.to.WithHook(hook)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.to.Close(); err != nil {
			t.Fatal(err)
		}
		s.to = to
	}
	return s
}

func (s scene) Close() error {
	for _, d := range []*atfs.Dir{s.pristine, s.current, s.fresh, s.to} {
		if err := d.Close(); err != nil {
			return err
		}
	}
	return nil
}

// merge plans and applies.
func (s scene) merge(t *testing.T) (*Plan, error) {
	t.Helper()
	p, err := NewPlan(t.Context(), s.pristine, s.current, lookupIn(s.fresh))
	if err != nil {
		return nil, err
	}
	return p, p.Apply(t.Context(), s.current, s.to)
}

func list(changes []Change) string {
	var b strings.Builder
	for _, c := range changes {
		fmt.Fprintf(&b, "%s %s", c.Kind, c.Path)
		if c.Dir {
			b.WriteString("/")
		}
		if c.Xattrs {
			b.WriteString(" (xattrs)")
		}
		b.WriteString("\n")
	}
	return b.String()
}
