package tree

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// build makes a small tree with an entry of most kinds.
func build(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Mkdir(filepath.Join(root, "dir"), 0o755))
	must(os.WriteFile(filepath.Join(root, "dir/file"), []byte("content"), 0o644))
	must(os.Link(filepath.Join(root, "dir/file"), filepath.Join(root, "link")))
	must(os.Symlink("dir/file", filepath.Join(root, "symlink")))
	must(unix.Mkfifo(filepath.Join(root, "fifo"), 0o600))
	when := time.Unix(1000, 5)
	for _, name := range []string{"dir/file", "dir", "fifo"} {
		must(os.Chtimes(filepath.Join(root, name), when, when))
	}
	must(unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(root, "symlink"), []unix.Timespec{{Sec: 7}, {Sec: 7}}, unix.AT_SYMLINK_NOFOLLOW))
	return root
}

func TestDiff(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(root string) error
		want   []string // one of them in each line, in order
	}{
		{"equal", func(string) error { return nil }, nil},
		{"mode", func(root string) error { return os.Chmod(filepath.Join(root, "fifo"), 0o640) }, []string{`"fifo": mode`}},
		{"time by a nanosecond", func(root string) error {
			return os.Chtimes(filepath.Join(root, "fifo"), time.Unix(1000, 6), time.Unix(1000, 6))
		}, []string{`"fifo": mtime is 1000.000000006, want 1000.000000005`}},
		{"content of the same size", func(root string) error {
			p := filepath.Join(root, "dir/file")
			if err := os.WriteFile(p, []byte("CONTENT"), 0o644); err != nil {
				return err
			}
			return os.Chtimes(p, time.Unix(1000, 5), time.Unix(1000, 5))
		}, []string{`"dir/file": content`, `"link": content`}},
		{"a link broken up", func(root string) error {
			p := filepath.Join(root, "link")
			if err := os.Remove(p); err != nil {
				return err
			}
			if err := os.WriteFile(p, []byte("content"), 0o644); err != nil {
				return err
			}
			return os.Chtimes(p, time.Unix(1000, 5), time.Unix(1000, 5))
		}, []string{`"link": not a hard link of "dir/file"`}},
		{"target", func(root string) error {
			p := filepath.Join(root, "symlink")
			if err := os.Remove(p); err != nil {
				return err
			}
			if err := os.Symlink("dir/fill", p); err != nil {
				return err
			}
			return unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{{Sec: 7}, {Sec: 7}}, unix.AT_SYMLINK_NOFOLLOW)
		}, []string{`"symlink": target is "dir/fill", want "dir/file"`}},
		{"missing and added", func(root string) error {
			return os.Rename(filepath.Join(root, "fifo"), filepath.Join(root, "pipe"))
		}, []string{`"fifo": missing`, `"pipe": mode`}},
		{"attribute", func(root string) error {
			return unix.Lsetxattr(filepath.Join(root, "dir"), "user.test", []byte("1"), 0)
		}, []string{`"dir": xattrs`}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			want, err := Read(t.Context(), build(t))
			if err != nil {
				t.Fatal(err)
			}
			root := build(t)
			if err := tc.change(root); err != nil {
				t.Fatal(err)
			}
			got, err := Read(t.Context(), root)
			if err != nil {
				t.Fatal(err)
			}
			lines := Diff(want, got, Options{IgnoreMtime: []string{"."}})
			if len(lines) != len(tc.want) {
				t.Fatalf("got the differences %q, want %d", lines, len(tc.want))
			}
			for i, line := range lines {
				if !strings.HasPrefix(line, tc.want[i]) {
					t.Errorf("difference %d is %s, want %s", i, line, tc.want[i])
				}
			}
		})
	}
}

func TestLinks(t *testing.T) {
	tree, err := Read(t.Context(), build(t))
	if err != nil {
		t.Fatal(err)
	}
	links := tree.Links()
	if len(links) != 1 || strings.Join(links[0], " ") != "dir/file link" {
		t.Errorf("got the links %q, want dir/file and link", links)
	}
}
