package atfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func open(tb testing.TB, path string) *Dir {
	tb.Helper()
	d, err := Open(path)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := d.Close(); err != nil {
			tb.Error(err)
		}
	})
	return d
}

// jail makes a directory with symbolic links out of it, next to a secret that nothing may read or change.
func jail(tb testing.TB) (*Dir, string) {
	tb.Helper()
	top := tb.TempDir()
	outside := top + "/outside"
	for _, dir := range []string{outside, outside + "/dir", top + "/jail", top + "/jail/sub"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			tb.Fatal(err)
		}
	}
	for path, target := range map[string]string{
		"absolute": outside, "relative": "../outside", "sub/up": "../../outside", "file": "../outside/secret", "proc": "/proc/self/root",
		"inside": "sub",
	} {
		if err := os.Symlink(target, top+"/jail/"+path); err != nil {
			tb.Fatal(err)
		}
	}
	if err := os.WriteFile(outside+"/secret", []byte("secret"), 0o644); err != nil {
		tb.Fatal(err)
	}
	return open(tb, top+"/jail"), outside
}

// TestNoEscape tries every operation on every way out. Each must fail, and nothing outside may change.
func TestNoEscape(t *testing.T) {
	d, outside := jail(t)
	secret := func(dir string) string { return dir + "/secret" }
	fresh := func(dir string) string { return dir + "/new" }
	value := []byte("v")
	ops := []struct {
		name string
		arg  func(dir string) string
		do   func(name string) error
	}{
		{"Open", secret, func(n string) error { _, err := d.Open(n); return err }},
		{"OpenFile", fresh, func(n string) error { _, err := d.OpenFile(n, unix.O_CREAT|unix.O_WRONLY, 0o644); return err }},
		{"OpenFile truncates", secret, func(n string) error { _, err := d.OpenFile(n, unix.O_TRUNC|unix.O_WRONLY, 0); return err }},
		{"OpenDir", func(dir string) string { return dir + "/dir" }, func(n string) error { _, err := d.OpenDir(n); return err }},
		{"Mkdir", fresh, func(n string) error { return d.Mkdir(n, 0o755) }},
		{"MkdirAll", func(dir string) string { return dir + "/a/b" }, func(n string) error { return d.MkdirAll(n, 0o755) }},
		{"Lstat", secret, func(n string) error { _, err := d.Lstat(n); return err }},
		{"Readlink", secret, func(n string) error { _, err := d.Readlink(n); return err }},
		{"Link from", secret, func(n string) error { return d.Link(n, d, "stolen") }},
		{"Link to", fresh, func(n string) error { return d.Link("own", d, n) }},
		{"Symlink", fresh, func(n string) error { return d.Symlink("x", n) }},
		{"Mknod", fresh, func(n string) error { return d.Mknod(n, unix.S_IFIFO|0o600, 0) }},
		{"Rename from", secret, func(n string) error { return d.Rename(n, d, "stolen", 0) }},
		{"Rename to", secret, func(n string) error { return d.Rename("own", d, n, 0) }},
		{"Unlink", secret, func(n string) error { return d.Unlink(n) }},
		{"Rmdir", func(dir string) string { return dir + "/dir" }, func(n string) error { return d.Rmdir(n) }},
		{"Chown", secret, func(n string) error { return d.Chown(n, 1, 1) }},
		{"Chmod", secret, func(n string) error { return d.Chmod(n, 0o777) }},
		{"Utimes", secret, func(n string) error { return d.Utimes(n, unix.Timespec{}) }},
		{"Setxattr", secret, func(n string) error { return d.Setxattr(n, "user.a", value) }},
		{"Removexattr", secret, func(n string) error { return d.Removexattr(n, "user.keep") }},
		{"Xattrs", secret, func(n string) error { _, err := d.Xattrs(n); return err }},
		{"ReadFile", secret, func(n string) error { _, err := d.ReadFile(n, 100); return err }},
		{"WriteFile", secret, func(n string) error { return d.WriteFile(n, value, 0o644, false) }},
	}
	if err := os.WriteFile(d.Path()+"/own", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	before := describe(t, outside)
	for _, op := range ops {
		for _, dir := range []string{"absolute", "relative", "sub/up", "../outside", "sub/../../outside", "proc/etc", outside, "inside"} {
			t.Run(op.name+" "+dir, func(t *testing.T) {
				if err := op.do(op.arg(dir)); err == nil {
					t.Error("it got out")
				}
			})
		}
	}
	if err := d.RemoveAll("absolute/dir"); err == nil {
		t.Error("RemoveAll got out")
	}
	if _, err := d.Open("file"); !errors.Is(err, unix.ELOOP) {
		t.Errorf("open a symbolic link: got %v, want ELOOP", err)
	}
	if _, err := d.OpenDir("relative"); err == nil {
		t.Error("a symbolic link was opened as a directory")
	}
	if err := d.Chmod("file", 0o777); err == nil {
		t.Error("a symbolic link was followed by Chmod")
	}
	if after := describe(t, outside); after != before {
		t.Errorf("outside was changed:\n%s\nwas\n%s", after, before)
	}
	if names, err := d.ReadNames(); err != nil || slices.Contains(names, "stolen") {
		t.Errorf("something came in: %q, %v", names, err)
	}
	for _, name := range []string{"", ".", "..", "sub/..", "sub/."} {
		if err := d.Unlink(name); err == nil {
			t.Errorf("unlink %q was done", name)
		}
	}
}

func describe(tb testing.TB, dir string) string {
	tb.Helper()
	var b strings.Builder
	err := fs.WalkDir(os.DirFS(dir), ".", func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(dir+"/"+p, &st); err != nil {
			return err
		}
		fmt.Fprintln(&b, p, st.Ino, st.Mode, st.Uid, st.Gid, st.Size, st.Nlink, st.Mtim, st.Ctim)
		return nil
	})
	if err != nil {
		tb.Fatal(err)
	}
	return b.String()
}

// TestRemoveAll removes a tree with links to an outside directory, which must survive.
func TestRemoveAll(t *testing.T) {
	d, outside := jail(t)
	before := describe(t, outside)
	if err := d.MkdirAll("a/b/c", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := d.Symlink(outside, "a/b/out"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := d.RemoveAll("a"); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.RemoveAll("absolute"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "absolute"} {
		if have, err := d.Exists(name); err != nil || have {
			t.Errorf("%s is still there (%v)", name, err)
		}
	}
	if after := describe(t, outside); after != before {
		t.Errorf("outside was changed:\n%s\nwas\n%s", after, before)
	}
}

// TestRemoveAllAtOnce removes the same tree from several goroutines. None of them may fail.
func TestRemoveAllAtOnce(t *testing.T) {
	d, _ := jail(t)
	for i := range 200 {
		if err := d.MkdirAll(fmt.Sprintf("tree/%d/a/b", i), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			if err := d.RemoveAll("tree"); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if have, err := d.Exists("tree"); err != nil || have {
		t.Errorf("the tree is still there (%v)", err)
	}
}

// TestWalk expects every name below a directory, and no link to be followed.
func TestWalk(t *testing.T) {
	d, outside := jail(t)
	err := errors.Join(d.MkdirAll("a/b", 0o755), d.Symlink(outside, "a/out"), d.WriteFile("a/b/file", []byte("text"), 0o600, false),
		d.Link("a/b/file", d, "a/again"))
	if err != nil {
		t.Fatal(err)
	}
	types := make(map[uint32]int)
	if err := d.Walk("a", func(st *unix.Stat_t) error { types[st.Mode&unix.S_IFMT]++; return nil }); err != nil {
		t.Fatal(err)
	}
	if want := map[uint32]int{unix.S_IFDIR: 2, unix.S_IFLNK: 1, unix.S_IFREG: 2}; !maps.Equal(types, want) {
		t.Errorf("saw %v, want %v", types, want)
	}
	stop := errors.New("stop")
	n := 0
	if err := d.Walk("a", func(*unix.Stat_t) error { n++; return stop }); !errors.Is(err, stop) || n != 1 {
		t.Errorf("after an error: %v, %d calls, want it and one call", err, n)
	}
	if err := d.Walk("none", func(*unix.Stat_t) error { return stop }); err != nil {
		t.Errorf("what does not exist: %v", err)
	}
}

// TestHooks checks that each operation that changes the disk is reported to the hook, with its path below the hooked
// directory, and does not run if the hook fails.
func TestHooks(t *testing.T) {
	top := open(t, t.TempDir())
	errNo := errors.New("no")
	var got []string
	refuse := false
	d, err := top.WithHook(func(op Op, name string) error {
		got = append(got, string(op)+" "+name)
		if refuse {
			return errNo
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.Mkdir("sub", 0o755); err != nil {
		t.Fatal(err)
	}
	sub, err := d.OpenDir("sub")
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	f, err := sub.OpenFile("f", unix.O_CREAT|unix.O_RDWR, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	tmp, err := sub.TmpFile(0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer tmp.Close()
	now := unix.Timespec{Sec: 1}
	for want, do := range map[string]func() error{
		"mkdir sub/d":         func() error { return sub.Mkdir("d", 0o755) },
		"create sub/new":      func() error { _, err := sub.OpenFile("new", unix.O_CREAT, 0); return err },
		"create sub/f":        func() error { _, err := sub.OpenFile("f", unix.O_TRUNC|unix.O_WRONLY, 0); return err },
		"tmpfile sub":         func() error { _, err := sub.TmpFile(0); return err },
		"write sub/f":         func() error { _, err := f.Write([]byte("x")); return err },
		"link sub/l":          func() error { return sub.Link("f", sub, "l") },
		"link sub/t":          func() error { return tmp.LinkTo(sub, "t") },
		"symlink sub/s":       func() error { return sub.Symlink("x", "s") },
		"mknod sub/n":         func() error { return sub.Mknod("n", unix.S_IFIFO, 0) },
		"rename sub/r":        func() error { return sub.Rename("f", sub, "r", 0) },
		"unlink sub/f":        func() error { return sub.Unlink("f") },
		"unlink sub/x/y":      func() error { return sub.Rmdir("x/y") },
		"unlink sub/all":      func() error { return sub.RemoveAll("all") },
		"chown sub/f":         func() error { return sub.Chown("f", 0, 0) },
		"chown sub/f ":        func() error { return f.Chown(0, 0) },
		"chmod sub/f":         func() error { return sub.Chmod("f", 0) },
		"chmod sub/f ":        func() error { return f.Chmod(0) },
		"utimes sub/f":        func() error { return sub.Utimes("f", now) },
		"utimes sub/f ":       func() error { return f.Utimes(now) },
		"utimes sub":          func() error { return sub.TouchSelf() },
		"chown sub":           func() error { return sub.SetAttr(0, 0, 0, now) },
		"setxattr sub/f":      func() error { return sub.Setxattr("f", "user.a", nil) },
		"setxattr sub/f ":     func() error { return f.Setxattr("user.a", nil) },
		"setxattr sub/f  ":    func() error { return sub.Removexattr("f", "user.a") },
		"setxattr sub/f   ":   func() error { return f.Removexattr("user.a") },
		"setxattr sub":        func() error { return sub.SetxattrSelf("user.a", nil) },
		"clone sub/f":         func() error { return f.CloneFrom(tmp) },
		"sync sub/f":          func() error { return f.Sync() },
		"sync sub":            func() error { return sub.Sync() },
		"syncfs sub":          func() error { return sub.SyncFS() },
		"tmpfile " + ".":      func() error { _, err := d.TmpFile(0); return err },
		"rename sub/to-there": func() error { return d.Rename("sub/f", sub, "to-there", 0) },
	} {
		before := describe(t, top.Path())
		got, refuse = nil, true
		err := do()
		refuse = false
		if !errors.Is(err, errNo) {
			t.Errorf("%s: got %v, want the hook's error", want, err)
		}
		if want = strings.TrimSpace(want); !slices.Equal(got, []string{want}) {
			t.Errorf("%s: the hook saw %q", want, got)
		}
		if after := describe(t, top.Path()); after != before {
			t.Errorf("%s was done all the same:\n%s\nwas\n%s", want, after, before)
		}
	}
}

// TestModes checks under several umasks that modes are exact where that is promised.
func TestModes(t *testing.T) {
	old := unix.Umask(0)
	defer unix.Umask(old)
	for _, umask := range []int{0, 0o022, 0o077, 0o777} {
		unix.Umask(0)
		d := open(t, t.TempDir())
		unix.Umask(umask)
		for _, mode := range []uint32{0, 0o600, 0o755, 0o777, 0o1777, 0o2755, 0o4755} {
			name := fmt.Sprintf("%o", mode)
			if err := d.Mkdir("d"+name, mode); err != nil {
				t.Fatal(err)
			}
			if err := d.Mknod("n"+name, unix.S_IFIFO|mode, 0); err != nil {
				t.Fatal(err)
			}
			if err := d.WriteFile("w"+name, []byte("x"), mode, true); err != nil {
				t.Fatal(err)
			}
			f, err := d.TmpFile(0o600)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(f.Chmod(mode), f.LinkTo(d, "t"+name), f.Close()); err != nil {
				t.Fatal(err)
			}
			for _, kind := range []string{"d", "n", "w", "t"} {
				st, err := d.Lstat(kind + name)
				if err != nil || st.Mode&0o7777 != mode {
					t.Errorf("umask %03o: %s has mode %o, %v, want %o", umask, kind+name, st.Mode&0o7777, err, mode)
				}
			}
		}
	}
}

func TestFiles(t *testing.T) {
	d := open(t, t.TempDir())
	if err := d.WriteFile("f", []byte("first"), 0o644, false); err != nil {
		t.Fatal(err)
	}
	if err := d.WriteFile("f", []byte("second"), 0o600, true); err != nil {
		t.Fatal(err)
	}
	if b, err := d.ReadFile("f", 6); err != nil || string(b) != "second" {
		t.Errorf("got %q, %v", b, err)
	}
	if _, err := d.ReadFile("f", 5); err == nil {
		t.Error("a file over the limit was read")
	}
	if names, err := d.ReadNames(); err != nil || !slices.Equal(names, []string{"f"}) {
		t.Errorf("got names %q, %v: nothing temporary may stay", names, err)
	}
	f, err := d.TmpFile(0o600)
	if err != nil {
		t.Fatal(err)
	}
	src, err := d.Open("f")
	if err != nil {
		t.Fatal(err)
	}
	if err := f.CopyFrom(src); err != nil {
		t.Fatal(err)
	}
	if err := f.LinkTo(d, "f"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("link to a name that is taken: got %v, want fs.ErrExist", err)
	}
	if err := f.LinkTo(d, "copy"); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(src.Close(), src.Close(), f.Close()); err != nil {
		t.Error(err)
	}
	if b, err := d.ReadFile("copy", 100); err != nil || string(b) != "second" {
		t.Errorf("copy: got %q, %v", b, err)
	}
	r, err := d.Open("copy")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	buf := make([]byte, 100)
	if n, err := r.ReadAt(buf, 3); n != 3 || !errors.Is(err, io.EOF) {
		t.Errorf("read at 3: got %d, %v, want 3 bytes and io.EOF", n, err)
	}
	if err := unix.Mkfifo(d.Path()+"/fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	fifo, err := d.Open("fifo") // must not wait for a writer
	if err != nil {
		t.Fatal(err)
	}
	if err := fifo.Close(); err != nil {
		t.Error(err)
	}
	if _, err := d.Open("absent"); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), d.Path()+"/absent") {
		t.Errorf("absent file: got %v, want fs.ErrNotExist with its path", err)
	}
	before, err := d.Lstat(".")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(d.SetAttr(uint32(os.Geteuid()), uint32(os.Getegid()), 0o2711, unix.Timespec{Sec: 5, Nsec: 6})); err != nil {
		t.Fatal(err)
	}
	if st, err := d.Lstat("."); err != nil || st.Mode&0o7777 != 0o2711 || st.Mtim != (unix.Timespec{Sec: 5, Nsec: 6}) {
		t.Errorf("got mode %o, mtime %v, %v", st.Mode, st.Mtim, err)
	}
	if err := d.TouchSelf(); err != nil {
		t.Fatal(err)
	}
	if st, err := d.Lstat("."); err != nil || st.Mtim.Sec < before.Mtim.Sec {
		t.Errorf("after TouchSelf: mtime %v, %v", st.Mtim, err)
	}
}
