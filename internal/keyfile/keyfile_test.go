package keyfile

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

// Results of g_key_file_get_string in GLib 2.74 for these texts, where it succeeds. Its errors about escapes are not
// ours.
func TestGet(t *testing.T) {
	for _, tc := range []struct{ name, text, want string }{
		{"plain", "[g]\nk=v\n", "v"},
		{"no line feed", "[g]\nk=v", "v"},
		{"carriage return", "[g]\r\nk=v\r\n", "v"},
		{"space around the key", "[g] \n k = v\n", "v"},
		{"space behind the value", "[g]\nk=v  \n", "v  "},
		{"escapes", "[g]\nk=\\sa\\sb\\tc\\\\\\n\\r\n", " a b\tc\\\n\r"},
		{"escaped separator of a list", "[g]\nk=a\\;b;\n", `a\;b;`},
		{"the last one counts", "[g]\nk=1\nk=2\n", "2"},
		{"a group in two places", "[g]\nk=1\n[h]\nk=2\n[g]\nk=3\n[i]\nk=4\n", "3"},
		{"comments", "# [h]\n\n[g]\n#k=w\n  # x\nk=v#w\n#k=w\n", "v#w"},
		{"comment that is not UTF-8", "#\xff\n[g]\nk=v\n", "v"},
		{"group of a remote", "[remote \"a b\"]\nk=w\n[g]\nk=v\n", "v"},
		{"translated key", "[g]\nk=v\nk[de]=w\n", "v"},
		{"empty", "[g]\nk=\n", ""},
		{"equals sign", "[g]\nk=a=b\n", "a=b"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := parse(t, tc.text)
			if got, ok := f.Get("g", "k"); !ok || got != tc.want {
				t.Errorf("got %q, %v, want %q", got, ok, tc.want)
			}
			for _, missing := range [][2]string{{"g", "x"}, {"x", "k"}, {"", "k"}, {"g", ""}, {"g", "K"}} {
				if got, ok := f.Get(missing[0], missing[1]); ok {
					t.Errorf("%q: got %q, want nothing", missing, got)
				}
			}
			if got := f.Marshal(); string(got) != tc.text {
				t.Errorf("written as %q, want %q", got, tc.text)
			}
		})
	}
}

func TestHasGroup(t *testing.T) {
	f := parse(t, "[a]\n[b]\nk=v\n")
	for group, want := range map[string]bool{"a": true, "b": true, "k": false, "": false} {
		if got := f.HasGroup(group); got != want {
			t.Errorf("group %q: got %t, want %t", group, got, want)
		}
	}
}

func TestBool(t *testing.T) {
	f := parse(t, "[g]\nyes=true\none=1\nno=false \nzero=0\nbad=True\nempty=\n")
	for _, tc := range []struct {
		key            string
		fallback, want bool
		err            string
	}{
		{key: "yes", want: true},
		{key: "one", want: true},
		{key: "no", fallback: true},
		{key: "zero", fallback: true},
		{key: "missing", fallback: true, want: true},
		{key: "missing"},
		{key: "bad", err: `bad in group g is "True", neither true nor false`},
		{key: "empty", err: `empty in group g is "", neither true nor false`},
	} {
		got, err := f.Bool("g", tc.key, tc.fallback)
		if got != tc.want || (err == nil) != (tc.err == "") || err != nil && err.Error() != tc.err {
			t.Errorf("%s: got %v, %v, want %v, %s", tc.key, got, err, tc.want, tc.err)
		}
	}
}

func TestParseErrors(t *testing.T) {
	for _, tc := range []struct{ name, text, want string }{
		{"no group", "\nk=v\n", `line 2: neither a group nor a key of one: "k=v"`},
		{"group not closed", "[g\n", `line 1: not a group: "[g"`},
		{"text behind a group", "[g]x\n", `line 1: not a group: "[g]x"`},
		{"empty group", "[]\n", `line 1: not a group: "[]"`},
		{"bracket in a group", "[a]b]\n", `line 1: not a group: "[a]b]"`},
		{"control character in a group", "[a\tb]\n", `line 1: not a group: "[a\tb]"`},
		{"no key", "[g]\n =v\n", `line 2: neither a group nor a key of one: "=v"`},
		{"no value", "[g]\n\nkey\n", `line 3: neither a group nor a key of one: "key"`},
		{"comment of other formats", "[g]\n;c\n", `line 2: neither a group nor a key of one: ";c"`},
		{"backslash at the end", "[g]\nk=v\\\n", "line 2: value ends in a backslash"},
		{"not UTF-8", "[g]\nk=\xff\n", "line 2: not UTF-8"},
		{"NUL", "[g]\nk=\x00\n", "line 2: not UTF-8"},
		{"too long", strings.Repeat("#", MaxLen+1), "line 1: text of more than 1048576 bytes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := Parse([]byte(tc.text))
			var syntax *SyntaxError
			if !errors.As(err, &syntax) || err.Error() != tc.want {
				t.Errorf("got %v, want %s", err, tc.want)
			}
		})
	}
}

func TestEdit(t *testing.T) {
	const text = "# top\n\n[g]\na=1\n\n# about k\nk = old \n\n# about h\n# and more\n[h]\nx=1\n[g]\nb=2\n# last"
	set := func(group, key, value string) func(*File) {
		return func(f *File) { f.Set(group, key, value) }
	}
	for _, tc := range []struct {
		name, text, want string
		edit             func(*File)
	}{
		{"first key", "", "[g]\nk=v\n", set("g", "k", "v")},
		{
			"value as GLib writes it", "", "[g]\nk=\\s\\t\\s\\na\\rb\\\\ \n", set("g", "k", " \t \na\rb\\ "),
		},
		{
			"in its place", text, "# top\n\n[g]\na=1\n\n# about k\nk=new\n\n# about h\n# and more\n[h]\nx=1\n[g]\nb=2\n# last",
			set("g", "k", "new"),
		},
		{
			"new key", text, "# top\n\n[g]\na=1\n\n# about k\nk = old \n\n# about h\n# and more\n[h]\nx=1\n[g]\nb=2\nc=3\n# last\n",
			set("g", "c", "3"),
		},
		{
			"new key before a comment on the next group", text,
			"# top\n\n[g]\na=1\n\n# about k\nk = old \n\n# about h\n# and more\n[h]\nx=1\ny=2\n[g]\nb=2\n# last\n", set("h", "y", "2"),
		},
		{"new group", "[g]\nk=v", "[g]\nk=v\n\n[h]\nx=1\n", set("h", "x", "1")},
		{"new group after a blank line", "[g]\nk=v\n\n", "[g]\nk=v\n\n[h]\nx=1\n", set("h", "x", "1")},
		{"the one of two that counts", "[g]\nk=1\nk=2\n", "[g]\nk=1\nk=3\n", set("g", "k", "3")},
		{"not UTF-8", "", "[g]\nk=a\uFFFDb\uFFFD\n", set("g", "k", "a\x00b\xff")},
		{"remove", "[g]\nk=1\n# c\nx=2\nk=3\n[h]\nk=4\n", "[g]\n# c\nx=2\n[h]\nk=4\n", func(f *File) { f.Remove("g", "k") }},
		{"remove what is not there", text, text, func(f *File) { f.Remove("g", "x"); f.RemoveGroup("x"); f.RemoveGroup("") }},
		{
			"remove a group", text, "# top\n\n# about h\n# and more\n[h]\nx=1\n",
			func(f *File) { f.RemoveGroup("g") },
		},
		{
			"remove a group and its comment", text, "# top\n\n[g]\na=1\n\n# about k\nk = old \n\n[g]\nb=2\n# last",
			func(f *File) { f.RemoveGroup("h") },
		},
		{
			"remove the last group", "[origin]\nrefspec=os\n\n[libostree-transient]\npinned=true\n", "[origin]\nrefspec=os\n",
			func(f *File) { f.RemoveGroup("libostree-transient") },
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := parse(t, tc.text)
			c := f.Clone()
			tc.edit(c)
			if got := string(c.Marshal()); got != tc.want {
				t.Errorf("got\n%s\nwant\n%s", got, tc.want)
			}
			if got := string(f.Marshal()); got != tc.text {
				t.Errorf("the original of the copy is now\n%s", got)
			}
		})
	}
}

func TestSetPanics(t *testing.T) {
	for _, tc := range [][2]string{
		{"", "k"}, {"a\nb", "k"}, {"a]", "k"}, {"g", ""}, {"g", "a=b"}, {"g", "a\nb"}, {"g", " a"}, {"g", "#a"}, {"g", "[a"},
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%q: got no panic", tc)
				}
			}()
			new(File).Set(tc[0], tc[1], "v")
		}()
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("[core]\nrepo_version=1\nmode=bare\n"), "v")
	f.Add([]byte("# c\r\n\n[origin]\ncontainer-image-reference = ostree-unverified-registry:example.com/os:1\n[a]\n[origin]\nx=\\s"), " \\\n")
	f.Add([]byte("[g]\nk=1\n# c\n[g"), "\x00\xff")
	f.Fuzz(func(t *testing.T, text []byte, value string) {
		file, err := Parse(text)
		if err != nil {
			return
		}
		if got := file.Marshal(); !bytes.Equal(got, text) {
			t.Fatalf("written as %q, want %q", got, text)
		}
		const group, key = "g", "k"
		before := file.Clone()
		file.Set(group, key, value)
		written, err := Parse(file.Marshal())
		if err != nil {
			t.Fatalf("cannot be read after an edit: %v\n%q", err, file.Marshal())
		}
		got, ok := written.Get(group, key)
		if want := strings.ToValidUTF8(strings.ReplaceAll(value, "\x00", "\uFFFD"), "\uFFFD"); !ok || got != want {
			t.Fatalf("value: got %q, want %q", got, want)
		}
		for _, l := range before.lines {
			if l.kind != pair || l.group == group && l.key == key {
				continue
			}
			want, _ := before.Get(l.group, l.key)
			if got, ok := written.Get(l.group, l.key); !ok || got != want {
				t.Fatalf("%s of %s: got %q, %v, want %q", l.key, l.group, got, ok, want)
			}
		}
		file.RemoveGroup(group)
		if _, ok := file.Get(group, key); ok {
			t.Fatal("the group is still there")
		}
	})
}

func parse(t *testing.T, text string) *File {
	t.Helper()
	f, err := Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return f
}
