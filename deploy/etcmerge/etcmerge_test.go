package etcmerge

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

func TestMerge(t *testing.T) {
	fifo := node{Mode: unix.S_IFIFO | 0o640}
	socket := node{Mode: unix.S_IFSOCK | 0o600}
	null := node{Mode: unix.S_IFCHR | 0o666, Dev: unix.Mkdev(1, 3)}
	for _, tc := range []struct {
		name                           string
		pristine, current, fresh, want tree
		changes                        string
	}{
		{
			name: "nothing changed", pristine: tree{"f": file("1")}, current: tree{"f": file("1").at(99)},
			fresh: tree{"f": file("2"), "g": file("")}, want: tree{"f": file("2"), "g": file("")},
		},
		{name: "default removed", pristine: tree{"f": file("1")}, current: tree{"f": file("1")}},
		{
			name: "content", pristine: tree{"f": file("1")}, current: tree{"f": file("x")}, fresh: tree{"f": file("2")},
			want: tree{"f": file("x")}, changes: "M f\n",
		},
		{
			name: "size", pristine: tree{"f": file("1")}, current: tree{"f": file("")}, fresh: tree{"f": file("2")},
			want: tree{"f": file("")}, changes: "M f\n",
		},
		{
			name: "content after a long common part", pristine: tree{"f": file(strings.Repeat("x", 200_000) + "1")},
			current: tree{"f": file(strings.Repeat("x", 200_000) + "2")},
			want:    tree{"f": file(strings.Repeat("x", 200_000) + "2")}, changes: "M f\n",
		},
		{
			name: "changed, and no longer a default", pristine: tree{"f": file("1")}, current: tree{"f": file("x")},
			want: tree{"f": file("x")}, changes: "M f\n",
		},
		{
			name: "mode", pristine: tree{"f": file("1")}, current: tree{"f": file("1").mode(0o600)},
			fresh: tree{"f": file("2")}, want: tree{"f": file("1").mode(0o600)}, changes: "M f\n",
		},
		{
			name: "set-user-ID bit", pristine: tree{"f": file("1")},
			current: tree{"f": file("1").owner(7, 8).mode(0o6755)}, fresh: tree{"f": file("2")},
			want: tree{"f": file("1").owner(7, 8).mode(0o6755)}, changes: "M f\n",
		},
		{
			name: "owner", pristine: tree{"f": file("1")}, current: tree{"f": file("1").owner(7, 0)},
			fresh: tree{"f": file("1")}, want: tree{"f": file("1").owner(7, 0)}, changes: "M f\n",
		},
		{
			name: "group", pristine: tree{"f": file("1")}, current: tree{"f": file("1").owner(0, 7)},
			fresh: tree{"f": file("1")}, want: tree{"f": file("1").owner(0, 7)}, changes: "M f\n",
		},
		{
			name: "xattr added", pristine: tree{"f": file("1")}, current: tree{"f": file("1").xattr("user.a", "1")},
			fresh: tree{"f": file("2")}, want: tree{"f": file("1").xattr("user.a", "1")}, changes: "M f (xattrs)\n",
		},
		{
			name: "xattr changed", pristine: tree{"f": file("1").xattr("user.a", "1")},
			current: tree{"f": file("1").xattr("user.a", "2")}, fresh: tree{"f": file("1").xattr("user.b", "1")},
			want: tree{"f": file("1").xattr("user.a", "2")}, changes: "M f (xattrs)\n",
		},
		{
			name: "xattr removed", pristine: tree{"f": file("1").xattr("user.a", "1")}, current: tree{"f": file("1")},
			fresh: tree{"f": file("1").xattr("user.a", "1")}, want: tree{"f": file("1")}, changes: "M f (xattrs)\n",
		},
		{
			name: "xattr of a directory", pristine: tree{"d": dir().xattr("user.a", "1")},
			current: tree{"d": dir().xattr("user.b", "2")},
			fresh:   tree{"d": dir().xattr("user.a", "1"), "d/f": file("1")},
			want:    tree{"d": dir().xattr("user.b", "2"), "d/f": file("1")}, changes: "M d/ (xattrs)\n",
		},
		{
			name: "link", pristine: tree{"l": symlink("a")}, current: tree{"l": symlink("b")},
			fresh: tree{"l": symlink("c")}, want: tree{"l": symlink("b")}, changes: "M l\n",
		},
		{
			name: "owner of a link", pristine: tree{"l": symlink("a")}, current: tree{"l": symlink("a").owner(7, 7)},
			fresh: tree{"l": symlink("c")}, want: tree{"l": symlink("a").owner(7, 7)}, changes: "M l\n",
		},
		{
			name: "file for a link", pristine: tree{"l": symlink("a")}, current: tree{"l": file("x")},
			fresh: tree{"l": symlink("a")}, want: tree{"l": file("x")}, changes: "M l\n",
		},
		{
			name: "link for a file", pristine: tree{"f": file("1")}, current: tree{"f": symlink("/run/f")},
			fresh: tree{"f": file("2")}, want: tree{"f": symlink("/run/f")}, changes: "M f\n",
		},
		{
			name: "directory for a file that is no longer a default", pristine: tree{"f": file("1")},
			current: tree{"f": dir(), "f/g": file("1")}, want: tree{"f": dir(), "f/g": file("1")},
			changes: "M f/\nA f/g\n",
		},
		{
			name: "file for a directory that is no longer a default", pristine: tree{"d": dir(), "d/f": file("1")},
			current: tree{"d": file("1")}, want: tree{"d": file("1")}, changes: "M d\n",
		},
		{
			name: "both made a directory of a file", pristine: tree{"f": file("1")},
			current: tree{"f": dir().mode(0o700), "f/g": file("1")}, fresh: tree{"f": dir(), "f/h": file("2")},
			want: tree{"f": dir().mode(0o700), "f/g": file("1"), "f/h": file("2")}, changes: "M f/\nA f/g\n",
		},
		{
			name: "added", current: tree{"f": file("1").mode(0o4711), "l": symlink("f").owner(1, 2)},
			fresh:   tree{"g": file("2")},
			want:    tree{"f": file("1").mode(0o4711), "l": symlink("f").owner(1, 2), "g": file("2")},
			changes: "A f\nA l\n",
		},
		{
			name: "added here and there", current: tree{"f": file("1")},
			fresh: tree{"f": file("2").mode(0o600).xattr("user.a", "1")}, want: tree{"f": file("1")}, changes: "A f\n",
		},
		{
			name:    "added directory",
			current: tree{"d": dir().mode(0o1750).owner(3, 4).xattr("user.a", "1"), "d/e": dir(), "d/e/f": file("1"), "d/g": dir()},
			want:    tree{"d": dir().mode(0o1750).owner(3, 4).xattr("user.a", "1"), "d/e": dir(), "d/e/f": file("1"), "d/g": dir()},
			changes: "A d/\nA d/e/\nA d/e/f\nA d/g/\n",
		},
		{
			name: "added directory here and there", current: tree{"d": dir().mode(0o700), "d/f": file("1")},
			fresh: tree{"d": dir(), "d/g": file("2")},
			want:  tree{"d": dir().mode(0o700), "d/f": file("1"), "d/g": file("2")}, changes: "A d/\nA d/f\n",
		},
		{
			name:     "file in a directory that is no longer a default",
			pristine: tree{"d": dir().mode(0o711).owner(5, 6), "d/e": dir().xattr("user.a", "1"), "d/e/f": file("1")},
			current:  tree{"d": dir().mode(0o711).owner(5, 6), "d/e": dir().xattr("user.a", "1"), "d/e/f": file("2")},
			want:     tree{"d": dir().mode(0o711).owner(5, 6), "d/e": dir().xattr("user.a", "1"), "d/e/f": file("2")},
			changes:  "M d/e/f\n",
		},
		{
			name: "file in a directory whose default changed", pristine: tree{"d": dir(), "d/f": file("1")},
			current: tree{"d": dir(), "d/f": file("2")}, fresh: tree{"d": dir().mode(0o700), "d/f": file("3")},
			want: tree{"d": dir().mode(0o700), "d/f": file("2")}, changes: "M d/f\n",
		},
		{
			name: "mode of a directory", pristine: tree{"d": dir(), "d/f": file("1")},
			current: tree{"d": dir().mode(0o700), "d/f": file("1")}, fresh: tree{"d": dir(), "d/f": file("2")},
			want: tree{"d": dir().mode(0o700), "d/f": file("2")}, changes: "M d/\n",
		},
		{
			name: "removed", pristine: tree{"f": file("1"), "l": symlink("a")}, current: tree{},
			fresh: tree{"f": file("2"), "l": symlink("a")}, changes: "D f\nD l\n",
		},
		{
			name: "removed, and no longer a default", pristine: tree{"d": dir(), "d/f": file("1")},
			current: tree{"d": dir()}, changes: "D d/f\n",
		},
		{
			name:     "removed, and now below what is no directory",
			pristine: tree{"d": dir(), "d/f": file("1"), "e": dir(), "e/f": file("1")},
			current:  tree{"d": dir(), "e": dir()}, fresh: tree{"d": symlink("e"), "e": file("")},
			want: tree{"d": symlink("e"), "e": file("")}, changes: "D d/f\nD e/f\n",
		},
		{
			name: "removed, and a directory now", pristine: tree{"f": file("1")},
			fresh: tree{"f": dir(), "f/g": file("1")}, changes: "D f\n",
		},
		{
			name: "removed directory", pristine: tree{"d": dir(), "d/f": file("1")},
			fresh: tree{"d": dir(), "d/f": file("1"), "d/new": file("1"), "e": file("")}, want: tree{"e": file("")},
			changes: "D d/\n",
		},
		{
			name: "special files", current: tree{"fifo": fifo, "socket": socket.owner(1, 1), "null": null},
			want: tree{"fifo": fifo, "socket": socket.owner(1, 1), "null": null}, changes: "A fifo\nA null\nA socket\n",
		},
		{
			name: "another device", pristine: tree{"a": null, "b": null},
			current: tree{"a": null, "b": node{Mode: null.Mode, Dev: unix.Mkdev(1, 5)}},
			want:    tree{"b": node{Mode: null.Mode, Dev: unix.Mkdev(1, 5)}}, changes: "M b\n",
		},
		{
			name:    "odd names",
			current: tree{"a b\n": file("1"), "\xff": symlink("\xfe"), "a": dir(), "a/x": file("1"), "a-b": file("1")},
			want:    tree{"a b\n": file("1"), "\xff": symlink("\xfe"), "a": dir(), "a/x": file("1"), "a-b": file("1")},
			changes: "A a/\nA a b\n\nA a-b\nA a/x\nA \xff\n",
		},
		{
			name: "link that leads outside", current: tree{"out": symlink("../../.."), "f": file("1")},
			fresh: tree{"out": symlink("/")}, want: tree{"out": symlink("../../.."), "f": file("1")},
			changes: "A f\nA out\n",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newScene(t, tc.pristine, tc.current, tc.fresh)
			p, err := s.merge(t)
			if err != nil {
				t.Fatal(err)
			}
			if got := list(p.Changes); got != tc.changes {
				t.Errorf("changes: got\n%swant\n%s", got, tc.changes)
			}
			want := tc.want
			if want == nil {
				want = tree{}
			}
			if diff := testenv.Diff(want, read(t, s.to.Path())); diff != "" {
				t.Errorf("new etc (-want +got):\n%s", diff)
			}
			// Another merge changes nothing: a staged deployment may be finalized twice.
			if err := p.Apply(t.Context(), s.current, s.to); err != nil {
				t.Errorf("again: %v", err)
			}
			if diff := testenv.Diff(want, read(t, s.to.Path())); diff != "" {
				t.Errorf("new etc after the second time (-want +got):\n%s", diff)
			}
		})
	}
}

func TestRoot(t *testing.T) {
	root := dir().mode(0o751).owner(1, 2).xattr("user.a", "1")
	s := newScene(t, tree{".": dir().xattr("user.b", "1")}, tree{".": root}, tree{".": dir().xattr("user.b", "1"), "f": file("1")})
	p, err := s.merge(t)
	if err != nil {
		t.Fatal(err)
	}
	if got := list(p.Changes); got != "M ./\n" {
		t.Errorf("changes: got\n%s", got)
	}
	got := read(t, filepath.Dir(s.to.Path()))
	if want := (tree{"to": root, "to/f": file("1")}); got["to"] != want["to"] || got["to/f"] != want["to/f"] {
		t.Errorf("got %+v and %+v, want %+v and %+v", got["to"], got["to/f"], want["to"], want["to/f"])
	}
}

// A default access control list of etc must not affect copies; capabilities must be copied.
func TestAttributesThatTheKernelSets(t *testing.T) {
	const (
		defaultACL = "\x02\x00\x00\x00\x01\x00\x07\x00\xff\xff\xff\xff\x02\x00\x06\x00\x07\x00\x00\x00\x04\x00\x05\x00\xff\xff\xff\xff" +
			"\x10\x00\x07\x00\xff\xff\xff\xff\x20\x00\x00\x00\xff\xff\xff\xff"
		capability = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	)
	s := newScene(t, nil, tree{"d": dir(), "f": file("1")}, nil)
	if err := unix.Setxattr(s.to.Path(), "system.posix_acl_default", []byte(defaultACL), 0); err != nil {
		testenv.Unsupported(t, "needs access control lists: %v", err)
	}
	if err := s.current.Setxattr("f", "security.capability", []byte(capability)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.merge(t); err != nil {
		t.Fatal(err)
	}
	want := tree{"d": dir(), "f": file("1").xattr("security.capability", capability)}
	if diff := testenv.Diff(want, read(t, s.to.Path())); diff != "" {
		t.Errorf("new etc (-want +got):\n%s", diff)
	}
}

func TestCopies(t *testing.T) {
	s := newScene(t, nil, tree{"a": file("x").at(1234567890), "l": symlink("a").at(1234567891)}, nil)
	if err := s.current.Link("a", s.current, "b"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.merge(t); err != nil {
		t.Fatal(err)
	}
	seen := make(map[uint64]bool)
	for name, mtime := range map[string]int64{"a": 1234567890, "b": 1234567890, "l": 1234567891} {
		st, err := s.to.Lstat(name)
		if err != nil {
			t.Fatal(err)
		}
		if st.Mtim.Sec != mtime || st.Nlink != 1 || seen[st.Ino] {
			t.Errorf("%s: got time %d, %d names, want %d, an inode of its own", name, st.Mtim.Sec, st.Nlink, mtime)
		}
		seen[st.Ino] = true
	}
}

func TestConflicts(t *testing.T) {
	pristine := tree{
		"a": dir(), "a/b": dir(), "a/b/f": file("1"), "a/b/g": file("1"), "file": file("1"), "same": dir(), "same/f": file("1"),
		"todir": file("1"), "x": dir(), "x/f": file("1"),
	}
	current := tree{
		"a": dir(), "a/b": dir(), "a/b/f": file("2"), "a/b/g": file("2"), "a-b": dir(), "a-b/f": file("1"), "file": file("2"),
		"same": dir(), "same/f": file("1"), "todir": dir(), "todir/f": file("1"), "todir/g": file("1"), "x": symlink("a"),
	}
	fresh := tree{
		"a": file("1"), "a-b": node{Mode: unix.S_IFIFO | 0o600}, "file": dir(), "same": file("1"), "todir": symlink("y"),
		"x": dir(), "x/f": file("1"),
	}
	s := newScene(t, pristine, current, fresh)
	p, err := s.merge(t)
	want := []Conflict{
		{"a", "a directory with changes in it, but a file in the new tree"},
		{"a-b", "a directory, but a special file in the new tree"},
		{"file", "not a directory, but a directory in the new tree"},
		{"todir", "a directory, but a symbolic link in the new tree"},
		{"x", "not a directory, but a directory in the new tree"},
	}
	if diff := testenv.Diff(want, p.Conflicts); diff != "" {
		t.Errorf("conflicts (-want +got):\n%s", diff)
	}
	const text = `/etc cannot be merged: "/etc/a" is a directory with changes in it, but a file in the new tree; ` +
		`"/etc/a-b" is a directory, but a special file in the new tree; "/etc/file" is not a directory, but a directory in the new tree; ` +
		`"/etc/todir" is a directory, but a symbolic link in the new tree; "/etc/x" is not a directory, but a directory in the new tree`
	if !errors.Is(err, ErrConflict) || err.Error() != text {
		t.Errorf("got error %v, want %s", err, text)
	}
	if diff := testenv.Diff(fresh, read(t, s.to.Path())); diff != "" {
		t.Errorf("something was written (-want +got):\n%s", diff)
	}
}

func TestCounts(t *testing.T) {
	s := newScene(t, tree{"a": file("1"), "b": file("1"), "c": file("1")}, tree{"a": file("2"), "d": file(""), "e": file(""), "f": file("")}, nil)
	p, err := s.merge(t)
	if err != nil {
		t.Fatal(err)
	}
	if m, r, a := p.Counts(); m != 1 || r != 2 || a != 3 {
		t.Errorf("got %d modified, %d removed, %d added, want 1, 2, 3", m, r, a)
	}
}

// Changes between the plan and its execution, as on a running system.
func TestChangedSincePlan(t *testing.T) {
	s := newScene(t, tree{"f": file("1"), "g": file("1"), "d": dir()},
		tree{"f": file("2"), "g": file("2"), "d": dir(), "d/a": file("1"), "new": file("1")},
		tree{"f": file("3"), "g": file("3"), "d": dir()})
	p, err := NewPlan(t.Context(), s.pristine, s.current, lookupIn(s.fresh))
	if err != nil {
		t.Fatal(err)
	}
	path := s.current.Path()
	for _, name := range []string{"f", "new", "d"} {
		if err := os.RemoveAll(filepath.Join(path, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("..", filepath.Join(path, "d")); err != nil {
		t.Fatal(err)
	}
	if err := p.Apply(t.Context(), s.current, s.to); err != nil {
		t.Fatal(err)
	}
	if diff := testenv.Diff(tree{"g": file("2"), "d": dir()}, read(t, s.to.Path())); diff != "" {
		t.Errorf("new etc (-want +got):\n%s", diff)
	}
	if err := os.Remove(filepath.Join(path, "g")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(path, "g"), 0o755); err != nil {
		t.Fatal(err)
	}
	const want = `merge /etc: "/etc/g" has changed since it was compared`
	if err := p.Apply(t.Context(), s.current, s.to); err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestDeep(t *testing.T) {
	deep := make(tree)
	for i, name := 0, "d"; i <= maxDepth; i, name = i+1, name+"/d" {
		deep[name] = dir()
	}
	s := newScene(t, nil, deep, nil)
	if _, err := s.merge(t); err == nil || !strings.Contains(err.Error(), "more than 200 nested directories") {
		t.Errorf("got %.300v", err)
	}
}

func TestContext(t *testing.T) {
	s := newScene(t, nil, tree{"f": file("1")}, nil)
	p, err := NewPlan(t.Context(), s.pristine, s.current, lookupIn(s.fresh))
	if err != nil {
		t.Fatal(err)
	}
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	if _, err := NewPlan(ctx, s.pristine, s.current, lookupIn(s.fresh)); !errors.Is(err, cause) {
		t.Errorf("plan: got %v", err)
	}
	if err := p.Apply(ctx, s.current, s.to); !errors.Is(err, cause) {
		t.Errorf("apply: got %v", err)
	}
}

// lookupIn looks names up in a directory: usr/etc of a deployment, or a copy of it.
func lookupIn(fresh *atfs.Dir) Lookup {
	return func(name string) (uint32, error) {
		st, err := fresh.Lstat(name)
		return st.Mode, err
	}
}
