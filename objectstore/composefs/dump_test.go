package composefs

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"
	"testing/iotest"
)

func TestDumpRoundTrip(t *testing.T) {
	for _, tree := range allTrees(t) {
		var dump bytes.Buffer
		if err := WriteDump(&dump, tree.root); err != nil {
			t.Errorf("%s: WriteDump: %v", tree.name, err)
			continue
		}
		got, err := parseDump(&dump)
		if err != nil {
			t.Errorf("%s: parseDump: %v", tree.name, err)
			continue
		}
		if d := diffTrees(got, tree.root); d != "" {
			t.Errorf("%s: %s", tree.name, d)
		}
	}
}

func TestParseDumpTypes(t *testing.T) {
	root := parseFile(t, "testdata/golden/types.dump")
	var names []string
	for _, e := range root.Entries {
		names = append(names, e.Name)
	}
	if got := strings.Join(names, " "); got != "bin dev etc gone" {
		t.Errorf("got root entries %q", got)
	}
	bin := root.Entries[0].Inode
	if bin.Entries[0].Inode != bin.Entries[2].Inode || bin.Entries[2].Name != "rbash" {
		t.Errorf("rbash is not a hard link: %+v", bin.Entries)
	}
	dev := root.Entries[1].Inode
	if i := dev.Entries[0].Inode; i.Mtime.Sec != -5 || i.Mtime.Nsec != 250000000 {
		t.Errorf("got mtime %+v of /dev/initctl", i.Mtime)
	}
	if i := dev.Entries[2].Inode; i.Rdev != 0x103 || dev.Entries[2].Name != "null" {
		t.Errorf("got /dev/null %+v", i)
	}
	etc := root.Entries[2].Inode
	if e := etc.Entries[0]; e.Name != `a b\c=d` || e.Inode.Xattrs[1].Name != "user.key=" || string(e.Inode.Xattrs[1].Value) != `v \` {
		t.Errorf("got entry %q with %q", e.Name, e.Inode.Xattrs)
	}
	if i := etc.Entries[1].Inode; string(i.Content) != "hello\n" || i.Size != 6 {
		t.Errorf("got motd %+v", i)
	}
}

func TestWriteDumpText(t *testing.T) {
	want, err := os.ReadFile("testdata/golden/own-stubs.dump")
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	if err := WriteDump(&got, parseFile(t, "testdata/golden/own-stubs.dump")); err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("got:\n%swant:\n%s", got.String(), want)
	}
}

func TestWriteDumpErrors(t *testing.T) {
	if err := WriteDump(&bytes.Buffer{}, dir(Entry{"x", symlink("")})); !errors.Is(err, ErrInvalid) {
		t.Errorf("got error %v, want ErrInvalid", err)
	}
	broken := errors.New("broken")
	if err := WriteDump(brokenWriter{broken}, randomTree(11, 40)); !errors.Is(err, broken) {
		t.Errorf("got error %v, want %v", err, broken)
	}
}

type brokenWriter struct{ err error }

func (w brokenWriter) Write([]byte) (int, error) { return 0, w.err }

func TestParseDumpInvalid(t *testing.T) {
	const root = "/ 0 40755 2 0 0 0 0.0 - - -\n"
	for _, tt := range []struct{ name, dump, want string }{
		{"empty", "", "no root"},
		{"too few fields", "/ 0 40755 2 0 0 0 0.0 - -\n", "line 1: composefs: invalid tree: 10 fields"},
		{"path twice", root + root, "comes twice"},
		{"no parent", root + "/a/b 0 40755 2 0 0 0 0.0 - - -", "no parent"},
		{"parent is a file", root + "/a 0 100644 1 0 0 0 0.0 - - -\n/a/b 0 40755 2 0 0 0 0.0 - - -", "no parent"},
		{"relative", root + "a 0 40755 2 0 0 0 0.0 - - -", "not absolute"},
		{"mode", "/ 0 40798 2 0 0 0 0.0 - - -", `number "40798"`},
		{"mode with sign", "/ 0 +40755 2 0 0 0 0.0 - - -", `number "+40755"`},
		{"uid", "/ 0 40755 2 4294967296 0 0 0.0 - - -", `number "4294967296"`},
		{"size", "/ -1 40755 2 0 0 0 0.0 - - -", `number "-1"`},
		{"time", "/ 0 40755 2 0 0 0 x.0 - - -", `number "x"`},
		{"nanoseconds", "/ 0 40755 2 0 0 0 0.1000000000 - - -", `number "1000000000"`},
		{"escape", root + `/\q 0 40755 2 0 0 0 0.0 - - -`, "escape"},
		{"cut escape", root + `/\ 0 40755 2 0 0 0 0.0 - - -`, "escape"},
		{"cut hex", root + `/\x4 0 40755 2 0 0 0 0.0 - - -`, "escape"},
		{"payload escape", root + `/a 1 100644 1 0 0 0 0.0 \z - -`, "escape"},
		{"xattr escape", root + `/a 0 100644 1 0 0 0 0.0 - - - user.a=\z`, "escape"},
		{"digest", root + `/a 1 100644 1 0 0 0 0.0 p - xyz`, `digest "xyz"`},
		{"link to nothing", root + `/a 0 @100644 1 0 0 0 0.0 /b - -`, "not a file"},
		{"link to a link", root + "/a 0 @100644 1 0 0 0 0.0 /a - -", "not a file"},
		{"line too long", "/" + strings.Repeat("a", maxDumpLine), "line 1: composefs: invalid tree: more than"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parseDump(strings.NewReader(tt.dump))
			if got != nil || !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, error %v, want ErrInvalid with %q", got, err, tt.want)
			}
		})
	}
	broken := errors.New("broken")
	if _, err := parseDump(iotest.ErrReader(broken)); !errors.Is(err, broken) {
		t.Errorf("got error %v, want %v", err, broken)
	}
}

// The reference implementation writes a link before its target if it sorts first.
func TestParseDumpLinkBeforeTarget(t *testing.T) {
	root, err := parseDump(strings.NewReader("/ 0 40755 2 0 0 0 0.0 - - -\n/a 0 @100644 1 0 0 0 0.0 /b - -\n/b 0 100644 2 0 0 0 0.0 - - -"))
	if err != nil {
		t.Fatal(err)
	}
	if len(root.Entries) != 2 || root.Entries[0].Inode != root.Entries[1].Inode {
		t.Errorf("got %+v", root.Entries)
	}
}

func FuzzParseDump(f *testing.F) {
	for _, name := range []string{"testdata/small.dump", "testdata/golden/types.dump", "testdata/golden/own-stubs.dump"} {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		root, err := parseDump(bytes.NewReader(b))
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatal(err)
			}
			return
		}
		image, err := Marshal(root, ostree)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatal(err)
			}
			return
		}
		back, err := Read(image, Limits{})
		if err != nil {
			t.Fatal(err)
		}
		if d := diffTrees(back, root); d != "" {
			t.Fatal(d)
		}
	})
}
