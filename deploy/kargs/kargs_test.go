package kargs

import (
	_ "embed"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

//go:embed testdata/vectors.tsv
var vectors string

func TestEditsAreThoseOfOSTree(t *testing.T) {
	n := 0
	for line := range strings.Lines(vectors) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if len(f) != 4 {
			t.Fatalf("vector %q has %d fields", line, len(f))
		}
		n++
		l := Parse(f[0])
		var got List
		var err error
		switch f[1] {
		case "append":
			got = l.Append(f[2])
		case "new_replace":
			got, err = l.Replace(f[2])
		case "delete":
			got, err = l.Delete(f[2])
		default:
			t.Fatalf("unknown edit %q", f[1])
		}
		if (err != nil) != (f[3] == "!") || err == nil && got.String() != f[3] {
			t.Errorf("%s of %q in %q: got %q, %v, want %q", f[1], f[2], f[0], got, err, f[3])
		}
		if l.String() != f[0] {
			t.Errorf("%s of %q changed %q to %q", f[1], f[2], f[0], l)
		}
	}
	if n < 200 {
		t.Errorf("got %d vectors, want 200 or more", n)
	}
}

func TestParse(t *testing.T) {
	for _, tc := range []struct {
		options string
		want    List
	}{
		{"", nil},
		{" \t\n", nil},
		{"a", List{"a"}},
		{"  a\tb=1 \n", List{"a", "b=1"}},
		{`q="a b" c`, List{`q="a b"`, "c"}},
		{`"q=a b" c`, List{`"q=a b"`, "c"}},
		{`q=a"b c"d e`, List{`q=a"b c"d`, "e"}},
		{`dyndbg="file a.c +p; module b -p" x=""`, List{`dyndbg="file a.c +p; module b -p"`, `x=""`}},
		{`q="a b`, List{`q="a b"`}},
		{`a -- init`, List{"a", "--", "init"}},
		{"a\u00a0b", List{"a\u00a0b"}},
	} {
		if got := Parse(tc.options); !slices.Equal(got, tc.want) {
			t.Errorf("%q: got %q, want %q", tc.options, got, tc.want)
		}
	}
}

func TestValue(t *testing.T) {
	l := Parse(`root=UUID=1 rw a= q="x y" "w=u v" root=2 console`)
	for key, want := range map[string]string{"root": "UUID=1", "rw": "", "a": "", "q": "x y", "w": "u v", "console": ""} {
		if got, ok := l.Value(key); !ok || got != want {
			t.Errorf("%s: got %q, %v, want %q", key, got, ok, want)
		}
	}
	if got, ok := l.Value("roo"); ok {
		t.Errorf("got %q for a key that is not there", got)
	}
}

func TestEdit(t *testing.T) {
	const options = `root=UUID=x rw ostree=/ostree/boot.1/os/c/0 q="a b" console=tty0 console=ttyS0`
	replace := func(arg string) func(List) (List, error) { return func(l List) (List, error) { return l.Replace(arg) } }
	remove := func(arg string) func(List) (List, error) { return func(l List) (List, error) { return l.Delete(arg) } }
	for _, tc := range []struct {
		name string
		edit func(List) (List, error)
		want string
		err  string
	}{
		{
			name: "replace a quoted value", edit: replace(`q="c = d"`),
			want: `root=UUID=x rw ostree=/ostree/boot.1/os/c/0 q="c = d" console=tty0 console=ttyS0`,
		},
		{
			name: "replace a named quoted value", edit: replace(`q="a b"=new`),
			want: `root=UUID=x rw ostree=/ostree/boot.1/os/c/0 q=new console=tty0 console=ttyS0`,
		},
		{
			name: "replace a value with equals sign by a quoted one", edit: replace(`root="UUID=y"`),
			want: `root="UUID=y" rw ostree=/ostree/boot.1/os/c/0 q="a b" console=tty0 console=ttyS0`,
		},
		{
			name: "replace one of several", edit: replace("console=ttyS0=ttyS1,115200"),
			want: `root=UUID=x rw ostree=/ostree/boot.1/os/c/0 q="a b" console=tty0 console=ttyS1,115200`,
		},
		{name: "replace any of several", edit: replace("console=ttyS1"), err: "kernel argument console has several values"},
		{name: "replace what is not there", edit: replace("quiet"), err: "no kernel argument quiet"},
		{name: "replace a value that is not there", edit: replace("root=UUID=y"), err: "no kernel argument root=UUID"},
		{name: "replace two", edit: replace("rw x"), err: `"rw x" is not one kernel argument`},
		{name: "replace nothing", edit: replace(""), err: `"" is not one kernel argument`},
		{name: "replace without a key", edit: replace("=1"), err: `"=1" is not one kernel argument`},
		{
			name: "delete a quoted value", edit: remove(`q="a b"`),
			want: `root=UUID=x rw ostree=/ostree/boot.1/os/c/0 console=tty0 console=ttyS0`,
		},
		{name: "delete any of several", edit: remove("console"), err: "kernel argument console has several values"},
		{name: "delete what is not there", edit: remove("root=UUID=y"), err: "no kernel argument root=UUID=y"},
		{name: "delete two", edit: remove("rw x"), err: `"rw x" is not one kernel argument`},
		{
			name: "append what is missing",
			edit: func(l List) (List, error) { return l.AppendIfMissing("rw", `q="a b"`, "console=tty1", "ro ro"), nil },
			want: options + " console=tty1 ro",
		},
		{
			name: "append several in one", edit: func(l List) (List, error) { return l.Append("a b", "", `c="d e"`), nil },
			want: options + ` a b c="d e"`,
		},
		{
			name: "without a key", edit: func(l List) (List, error) { return l.Without("console"), nil },
			want: `root=UUID=x rw ostree=/ostree/boot.1/os/c/0 q="a b"`,
		},
		{
			name: "another deployment", edit: func(l List) (List, error) { return l.WithOSTree("/ostree/boot.0/os/d/1"), nil },
			want: `root=UUID=x rw ostree=/ostree/boot.0/os/d/1 q="a b" console=tty0 console=ttyS0`,
		},
		{
			name: "the first deployment",
			edit: func(l List) (List, error) { return l.Without("ostree").WithOSTree("/x"), nil },
			want: `root=UUID=x rw q="a b" console=tty0 console=ttyS0 ostree=/x`,
		},
		{
			name: "a deployment that is named twice",
			edit: func(l List) (List, error) { return l.Append("ostree=/y", "z", "ostree").WithOSTree("/x"), nil },
			want: `root=UUID=x rw ostree=/x q="a b" console=tty0 console=ttyS0 z`,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := Parse(options)
			got, err := tc.edit(l)
			if err != nil && err.Error() != tc.err || err == nil && (tc.err != "" || got.String() != tc.want) {
				t.Errorf("got %q, %v, want %q, %s", got, err, tc.want, tc.err)
			}
			if l.String() != options {
				t.Errorf("the list is now %q", l)
			}
		})
	}
}

func TestParseDropIn(t *testing.T) {
	for _, tc := range []struct {
		name, data, arch string
		want             []string
		err              string // part of the error
	}{
		{name: "plain", data: `kargs = ["mitigations=auto,nosmt", "quiet"]`, arch: "amd64", want: []string{"mitigations=auto,nosmt", "quiet"}},
		{name: "none", data: `kargs = []`, arch: "amd64"},
		{name: "several in one", data: `kargs = ["a b", "c=\"d e\"", ""]`, arch: "amd64", want: []string{"a", "b", `c="d e"`}},
		{name: "Go's name", data: "kargs = [\"a\"]\nmatch-architectures = [\"x86_64\"]", arch: "amd64", want: []string{"a"}},
		{name: "the kernel's name", data: "kargs = [\"a\"]\nmatch-architectures = [\"arm\", \"aarch64\"]", arch: "aarch64", want: []string{"a"}},
		{name: "Rust's name", data: "kargs = [\"a\"]\nmatch-architectures = [\"powerpc64\"]", arch: "ppc64le", want: []string{"a"}},
		{name: "Debian's name in the file", data: "kargs = [\"a\"]\nmatch-architectures = [\"amd64\"]", arch: "x86_64", want: []string{"a"}},
		{name: "another architecture", data: "kargs = [\"a\"]\nmatch-architectures = [\"x86_64\"]", arch: "arm64"},
		{name: "for no architecture", data: "kargs = [\"a\"]\nmatch-architectures = []", arch: "amd64"},
		{name: "no kargs", data: "", arch: "amd64", err: "no key kargs"},
		{name: "unknown key", data: "kargs = [\"a\"]\n[x]\ny = 1", arch: "amd64", err: `unknown key "x`},
		{name: "not a list", data: `kargs = "a"`, arch: "amd64", err: "parse kernel arguments: toml: "},
		{name: "not TOML", data: `kargs`, arch: "amd64", err: "parse kernel arguments: toml: "},
		{name: "line feed", data: `kargs = ["a\nlinux /evil"]`, arch: "arm64", err: `control character in "a\nlinux /evil"`},
		{name: "too long", data: strings.Repeat("#", MaxDropIn+1), arch: "amd64", err: "more than 65536 bytes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := ParseDropIn([]byte(tc.data), tc.arch)
			if !slices.Equal(got, tc.want) || (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
				t.Errorf("got %q, %v, want %q, %s", got, err, tc.want, tc.err)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add(`root=UUID=x rw q="a b" ostree=/ostree/boot.0/os/c/0`, "console=ttyS0")
	f.Add(`"a b" c="`, `d="e = f"=g`)
	f.Fuzz(func(t *testing.T, options, arg string) {
		l := Parse(options)
		if again := Parse(l.String()); !slices.Equal(l, again) {
			t.Fatalf("%q becomes %q, then %q", options, l, again)
		}
		added := l.Append(arg)
		if again := Parse(added.String()); !slices.Equal(added, again) || !slices.Equal(l, again[:len(l)]) {
			t.Fatalf("%q with %q becomes %q, then %q", options, arg, added, again)
		}
		if got, ok := l.WithOSTree("/x").Value("ostree"); !ok || got != "/x" {
			t.Fatalf("%q does not name the deployment: %q", options, got)
		}
		for _, edit := range []func(string) (List, error){l.Replace, l.Delete} {
			if got, err := edit(arg); err == nil && !slices.Equal(got, Parse(got.String())) {
				t.Fatalf("%q edited by %q is %q, then %q", options, arg, got, Parse(got.String()))
			}
		}
	})
}

// TestParseDropInTime: an image can have many files with as many keys as fit.
func TestParseDropInTime(t *testing.T) {
	for name, tt := range map[string]struct{ before, key, after, err string }{
		"keys":         {"", "k%d=1\n", "", `unknown key "k0"`},
		"tables":       {"kargs=[]\n", "[k%d]\n", "", `unknown key "k0"`},
		"parts":        {"kargs", ".k%d", "=1", `unknown key "kargs"`},
		"inline table": {"kargs=[{", "k%d=1,", "k=1}]", "kargs is not a list of texts"},
		"texts":        {"kargs=[", `"%d",`, "]", ""},
	} {
		t.Run(name, func(t *testing.T) {
			parse := func(keys int) time.Duration {
				var text strings.Builder
				text.WriteString(tt.before)
				for i := range keys {
					fmt.Fprintf(&text, tt.key, i)
				}
				text.WriteString(tt.after)
				best := time.Hour
				for range 5 {
					start := time.Now()
					if _, err := ParseDropIn([]byte(text.String()), "amd64"); (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
						t.Fatalf("got error %v, want %q", err, tt.err)
					}
					best = min(best, time.Since(start))
				}
				return best
			}
			if few, many := parse(500), parse(8000); many > 64*few+100*time.Millisecond {
				t.Errorf("16 times as many take %v, and not %v", many, 16*few)
			}
		})
	}
}

func FuzzParseDropIn(f *testing.F) {
	f.Add([]byte("kargs = [\"console=ttyS0,115200n8\", 'a=\"b c\"']\nmatch-architectures = [\"x86_64\"]\n"))
	f.Add([]byte("kargs = [\"\\u0000\"]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		args, err := ParseDropIn(data, "amd64")
		if err != nil {
			return
		}
		if text := List(args).String(); !slices.Equal(Parse(text), List(args)) || strings.ContainsAny(text, "\n\x00") {
			t.Fatalf("%q has arguments %q", data, args)
		}
	})
}

func TestKey(t *testing.T) {
	for arg, want := range map[string]string{
		"quiet":                   "quiet",
		"root=LABEL=x":            "root",
		`root="LABEL=x y"`:        "root",
		`"ostree=/ostree/boot.1"`: "ostree",
		`"quiet"`:                 "quiet",
		`"ostree=a`:               "ostree", // not closed
		`a"b=c"`:                  `a"b`,
		"=x":                      "",
		"":                        "",
	} {
		if got := Key(arg); got != want {
			t.Errorf("Key(%q) = %q, want %q", arg, got, want)
		}
	}
}

func TestSets(t *testing.T) {
	for arg, want := range map[string]bool{
		"ostree": true, "ostree=/x": true, `"ostree=/x"`: true, `x="a ostree=/x"`: true, `x="ostree=/x a"`: false, `"x ostree"`: true,
		"x=\"a\tostree=/x\"": true, `x="a "ostree=/x`: true, `x="ostree"`: false, "x=ostree": false, "ostree.x=1": false, "": false,
		`x="a ostree.x=ostree"`: false,
	} {
		if got := Sets(arg, "ostree"); got != want {
			t.Errorf("%s: got %t, want %t", arg, got, want)
		}
	}
}
