package etcmerge

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// A sysroot is one made by ostree(1), with one stateroot called os.
type sysroot struct {
	t    *testing.T
	path string
}

func newSysroot(t *testing.T) sysroot {
	t.Helper()
	testenv.NeedsRoot(t)
	testenv.NeedsTool(t, "ostree")
	s := sysroot{t: t, path: filepath.Join(t.TempDir(), "sysroot")}
	if err := os.Mkdir(s.path, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.mutable)
	s.ostree("admin", "init-fs", "--modern", s.path)
	s.ostree("admin", "os-init", "--sysroot="+s.path, "os")
	return s
}

// mutable clears the flags that keep deployments from being removed.
func (s sysroot) mutable() {
	s.t.Helper()
	deployments, err := filepath.Glob(filepath.Join(s.path, "ostree/deploy/os/deploy/*.[0-9]"))
	if err != nil {
		s.t.Error(err)
	}
	for _, path := range deployments {
		d := open(s.t, path)
		if err := errors.Join(unix.IoctlSetPointerInt(d.FD(), unix.FS_IOC_SETFLAGS, 0), d.Close()); err != nil {
			s.t.Logf("make %s mutable: %v", path, err) // if it matters, the removal fails
		}
	}
}

func (s sysroot) ostree(args ...string) string {
	s.t.Helper()
	out, err := s.try(args...)
	if err != nil {
		s.t.Fatalf("ostree %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (s sysroot) try(args ...string) (string, error) {
	s.t.Helper()
	out, err := exec.CommandContext(s.t.Context(), "ostree", args...).CombinedOutput()
	return string(out), err
}

// deploy commits a system with the given defaults, has ostree deploy it, and returns the path of the deployment and
// ostree's output.
func (s sysroot) deploy(etc tree) (path, said string, err error) {
	s.t.Helper()
	system := tree{
		"boot": dir(), "dev": dir(), "proc": dir(), "sysroot": dir(), "var": dir(), "ostree": symlink("sysroot/ostree"),
		"usr": dir(), "usr/etc": dir(), "usr/lib": dir(), "usr/lib/os-release": file("ID=test\nPRETTY_NAME=Test\n"),
		"usr/lib/modules": dir(), "usr/lib/modules/6.1": dir(), "usr/lib/modules/6.1/vmlinuz": file("kernel"),
		"usr/lib/modules/6.1/initramfs.img": file("initramfs"),
	}
	for name, n := range etc {
		system[filepath.Join("usr/etc", name)] = n
	}
	from := s.t.TempDir()
	system.make(s.t, from)
	repo := filepath.Join(s.path, "ostree/repo")
	sum := strings.TrimSpace(s.ostree("--repo="+repo, "commit", "--branch=os", "--tree=dir="+from))
	said, err = s.try("admin", "deploy", "--sysroot="+s.path, "--os=os", "os")
	s.mutable()
	return filepath.Join(s.path, "ostree/deploy/os/deploy", sum+".0"), said, err
}

// change returns a deployment with the given defaults, and an etc made from them.
func (s sysroot) change(pristine, current tree) (deployment string) {
	s.t.Helper()
	deployment, said, err := s.deploy(pristine)
	if err != nil {
		s.t.Fatalf("deploy: %v\n%s", err, said)
	}
	etc := filepath.Join(deployment, "etc")
	if err := os.RemoveAll(etc); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Mkdir(etc, 0o755); err != nil {
		s.t.Fatal(err)
	}
	current.make(s.t, etc)
	return deployment
}

// configDiff returns the output of "ostree admin config-diff" for the deployment, in the form of [list].
func (s sysroot) configDiff() string {
	s.t.Helper()
	var lines []string
	for line := range strings.Lines(s.ostree("admin", "config-diff", "--sysroot="+s.path, "--os=os")) {
		kind, name, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "    ")
		lines = append(lines, name+"\t"+kind)
	}
	slices.Sort(lines)
	var b strings.Builder
	for _, l := range lines {
		name, kind, _ := strings.Cut(l, "\t")
		fmt.Fprintf(&b, "%s %s\n", kind, name)
	}
	return b.String()
}

func TestMergeIsThatOfOSTree(t *testing.T) {
	s := newSysroot(t)
	pristine := tree{
		"same": file("1"), "same.link": symlink("a"), "content": file("1"), "size": file("1"), "mode": file("1"), "owner": file("1"),
		"setuid": file("1"), "link": symlink("a"), "tolink": file("1"), "tofile": symlink("a"), "gone": file("1"), "gone.link": symlink("a"),
		"gone.dir": dir(), "gone.dir/f": file("1"), "gone.default": file("1"), "kept": file("1"), "a": dir(), "a/b": dir().mode(0o711),
		"a/b/f": file("1"), "a/b/g": file("1"), "old": dir().mode(0o711).owner(5, 6), "old/f": file("1"), "old/g": file("1"), "empty": dir(),
		"tofile.dir": dir(), "tofile.dir/f": file("1"), "todir": file("1"),
		// Where ostree differs:
		"xattr": file("1"), "dirmode": dir(), "dirmode/f": file("1"), "newdefault": dir(), "newdefault/f": file("1"),
		"over": file("1"), "label": file("1").xattr("user.a", "1"),
	}
	current := tree{
		"same": file("1"), "same.link": symlink("a"), "content": file("x"), "size": file("12"), "mode": file("1").mode(0o600),
		"owner": file("1").owner(7, 8), "setuid": file("1").owner(7, 8).mode(0o4755), "link": symlink("b").owner(7, 8),
		"tolink": symlink("/run/x"), "tofile": file("x"), "kept": file("x"), "a": dir(), "a/b": dir().mode(0o711),
		"a/b/f": file("x").xattr("user.a", "1"), "a/b/h": file("new"), "old": dir().mode(0o711).owner(5, 6), "old/f": file("x"),
		"old/g": file("1"), "empty": dir(), "added": file("new").owner(1, 2), "added.link": symlink("x"),
		"added.dir": dir().mode(0o1770).owner(3, 4).xattr("user.b", "2"), "added.dir/f": file("new"), "added.dir/d": dir(),
		"both": file("new"), "tofile.dir": file("x"), "todir": dir().mode(0o700), "todir/f": file("x"),
		"xattr": file("1").xattr("user.a", "1"), "dirmode": dir().mode(0o700), "dirmode/f": file("1"), "newdefault": dir(),
		"newdefault/f": file("x"), "label": file("1").xattr("user.a", "2"),
	}
	fresh := tree{
		"same": file("2"), "same.link": symlink("c"), "content": file("2"), "size": file("2"), "mode": file("2"), "owner": file("1"),
		"setuid": file("1"), "link": symlink("c"), "tolink": file("2"), "tofile": symlink("c"), "gone": file("2"), "gone.link": symlink("c"),
		"gone.dir": dir(), "gone.dir/f": file("1"), "gone.dir/new": file("2"), "a": dir(), "a/b": dir().mode(0o711), "a/b/f": file("2"),
		"a/b/g": file("2"), "both": file("2").mode(0o600), "new": file("2"),
		"xattr": file("2"), "dirmode": dir(), "dirmode/f": file("2"), "newdefault": dir().mode(0o700), "newdefault/f": file("2"),
		"over": file("2"), "label": file("1").xattr("user.a", "1"),
	}
	// Results of ostree 2022.7 where it misses a change, or handles it in another way.
	differs := tree{
		"xattr": fresh["xattr"], "label": fresh["label"],
		"dirmode": fresh["dirmode"], "newdefault": current["newdefault"],
	}

	old := s.change(pristine, current)
	theirChanges := s.configDiff()
	made, said, err := s.deploy(fresh)
	if err != nil {
		t.Fatalf("deploy: %v\n%s", err, said)
	}
	theirs := read(t, filepath.Join(made, "etc"))

	ours := t.TempDir()
	fresh.make(t, ours)
	sc := scene{
		pristine: open(t, filepath.Join(old, "usr/etc")), current: open(t, filepath.Join(old, "etc")), fresh: open(t, filepath.Join(made, "usr/etc")),
		to: open(t, ours),
	}
	defer sc.Close()
	p, err := sc.merge(t)
	if err != nil {
		t.Fatal(err)
	}

	// ostree does not list the entries of a directory that replaced a file.
	seen := slices.DeleteFunc(slices.Clone(p.Changes), func(c Change) bool { return c.Xattrs || c.Path == "todir/f" })
	if got := strings.ReplaceAll(list(seen), "/\n", "\n"); got != theirChanges {
		t.Errorf("changes: (-ostree +ours):\n%s", testenv.Diff(theirChanges, got))
	}
	if n := len(p.Changes) - len(seen); n != 3 {
		t.Errorf("got %d changes that ostree does not list, want 3", n)
	}
	want := maps.Clone(read(t, ours))
	maps.Copy(want, differs)
	if diff := testenv.Diff(want, theirs); diff != "" {
		t.Errorf("ostree's new etc has unknown differences from ours (-want +got):\n%s", diff)
	}
	for name, n := range differs {
		if got := read(t, ours)[name]; got == n {
			t.Errorf("%s does not differ from ostree's: %+v", name, got)
		}
	}
	p.Changes = seen
	modified, removed, added := p.Counts()
	if line := fmt.Sprintf("%d modified, %d removed, %d added", modified, removed, added); !strings.Contains(said, line) {
		t.Errorf("ostree does not print %q: %s", line, said)
	}
}

// Changes that ostree refuses to merge, this package's results, and the differences.
func TestRefusals(t *testing.T) {
	for _, tc := range []struct {
		name                     string
		pristine, current, fresh tree
		theirs, ours             bool
	}{
		{
			name: "a file, now a directory", pristine: tree{"f": file("1")}, current: tree{"f": file("2")}, fresh: tree{"f": dir()},
			theirs: true, ours: true,
		},
		{
			name: "a link in place of a directory", pristine: tree{"d": dir()}, current: tree{"d": symlink("x")}, fresh: tree{"d": dir()},
			theirs: true, ours: true,
		},
		{
			name: "a file in what is now a file", pristine: tree{"d": dir()}, current: tree{"d": dir(), "d/f": file("1")},
			fresh: tree{"d": file("1")}, theirs: true, ours: true,
		},
		{name: "a directory, now a file", current: tree{"d": dir()}, fresh: tree{"d": file("1")}, ours: true},
		{
			name: "removed from what is now a file", pristine: tree{"d": dir(), "d/f": file("1")}, current: tree{"d": dir()},
			fresh: tree{"d": file("1")}, theirs: true,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newSysroot(t)
			s.change(tc.pristine, tc.current)
			_, said, err := s.deploy(tc.fresh)
			if refused := err != nil && strings.Contains(said, "During /etc merge"); refused != tc.theirs {
				t.Errorf("ostree: got %v, want it to refuse: %v\n%s", err, tc.theirs, said)
			}
			if _, err := newScene(t, tc.pristine, tc.current, tc.fresh).merge(t); (err != nil) != tc.ours {
				t.Errorf("got %v, want an error: %v", err, tc.ours)
			}
		})
	}
}
