package selinux_test

import (
	"errors"
	"io/fs"
	"regexp"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/selinux"
)

// files are the files of a policy, by what follows file_contexts in their names.
type files map[string]string

const config = "# a comment\nSELINUX=permissive\nSELINUXTYPE=default\n"

func load(t *testing.T, f files) (*selinux.Policy, error) {
	t.Helper()
	tree := fstest.MapFS{"usr/etc/selinux/config": {Data: []byte(config)}}
	for suffix, text := range f {
		tree["usr/etc/selinux/default/contexts/files/file_contexts"+suffix] = &fstest.MapFile{Data: []byte(text)}
	}
	return selinux.Load(tree.ReadFile, "usr/etc/selinux")
}

func TestConfig(t *testing.T) {
	for _, tt := range []struct {
		text    string
		want    selinux.Config
		enabled bool
	}{
		{config, selinux.Config{Mode: "permissive", Type: "default"}, true},
		{"SELINUX=Enforcing # really\nSELINUXTYPE= mls \n", selinux.Config{Mode: "enforcing", Type: "mls"}, true},
		{"SELINUXTYPE=a\nSELINUXTYPE=b\nSELINUX=disabled\nSELINUX=enforcing", selinux.Config{Mode: "enforcing", Type: "b"}, true},
		{"SELINUX=disabled\nSELINUXTYPE=default\n", selinux.Config{Mode: "disabled", Type: "default"}, false},
		{"SELINUXTYPE=default\n", selinux.Config{Mode: "disabled", Type: "default"}, false},
		{"SELINUX=enforcing\n", selinux.Config{Mode: "enforcing"}, false},
		{" SELINUX=enforcing\nSELINUX =enforcing\n", selinux.Config{Mode: "disabled"}, false},
		{"", selinux.Config{Mode: "disabled"}, false},
	} {
		got := selinux.ParseConfig([]byte(tt.text))
		if got != tt.want || got.Enabled() != tt.enabled {
			t.Errorf("%q: got %+v, enabled: %t, want %+v, %t", tt.text, got, got.Enabled(), tt.want, tt.enabled)
		}
	}
}

// TestLabel looks up paths in a policy of every kind of line. The same policy and paths are compared with libselinux in
// integration/selinux.
func TestLabel(t *testing.T) {
	p, err := load(t, files{
		"": `# comment
/.*                u:o:root
/                -d u:o:slash
	/usr(/.*)?	u:o:usr
/usr/lib/[^/]*\.so(\.[^/]*)*	--	u:o:lib
/usr/lib(64)?/modules/.+\.ko	--	u:o:module
/usr/bin/su\.old	--	u:o:literal	ignored
/usr/bin/su.*	u:o:su
/dev/null	-c	u:o:null
/dev/sd.*	-b	u:o:disk
/run/.*	<<none>>
/run/keep	u:o:keep
/run/.*\.sock	-s	u:o:sock
/opt/a|/opt/b/c	u:o:alternative
/srv/x.y	u:o:byte
/var/tie	u:o:base
/var/pattern.*	u:o:base
/a/b/c/none/.*	<<none>>
/a/.*	u:o:later
`,
		".homedirs":  "/home/[^/]+	-d	u:o:home\n/var/tie	u:o:homedirs\n",
		".local":     "/var/tie	u:o:local\n/var/pattern.*	u:o:local\n",
		".subs":      "# comment\n/mine /usr\n/nothing\n/mine/deep /run/keep\n",
		".subs_dist": "/usr/local/lib /usr/lib\n/lib /usr/lib\n/other /\n/usr/again /dev/null\n",
	})
	if err != nil {
		t.Fatal(err)
	}
	const file, none = fs.FileMode(0), ""
	for _, tt := range []struct {
		path string
		typ  fs.FileMode
		want string
	}{
		{"/", fs.ModeDir, "u:o:slash"},
		{"/x", file, "u:o:root"},
		{"/usr", fs.ModeDir, "u:o:usr"},
		{"/usrx", file, "u:o:root"},
		{"/usr/lib/a.so.1.2", file, "u:o:lib"},
		{"/usr/lib/a.so.1.2", fs.ModeSymlink, "u:o:usr"},
		{"/usr/lib/d/a.so", file, "u:o:usr"},
		{"/usr/lib64/modules/6.1/k.ko", file, "u:o:module"},
		{"/lib/modules/6.1/k.ko", file, "u:o:module"},
		{"/lib/modules/.ko", file, "u:o:usr"},
		{"/usr/bin/su.old", file, "u:o:literal"},
		{"/usr/bin/su.old", fs.ModeDir, "u:o:su"},
		{"/usr/bin/sudo", file, "u:o:su"},
		{"/dev/null", fs.ModeDevice | fs.ModeCharDevice | 0o666, "u:o:null"},
		{"/dev/null", fs.ModeDevice, "u:o:root"},
		{"/dev/sda1", fs.ModeDevice, "u:o:disk"},
		{"/run/x", file, none},
		{"/run/keep", file, "u:o:keep"},
		{"/run/s.sock", fs.ModeSocket, "u:o:sock"},
		{"/run/s.sock", fs.ModeNamedPipe, none},
		{"/opt/a", file, "u:o:alternative"},
		{"/opt/b/c", file, "u:o:alternative"},
		{"/opt/a/x", file, "u:o:alternative"}, // the first alternative has no end
		{"/opt/b/c/x", file, "u:o:root"},
		{"/opt/x/opt/b/c", file, "u:o:alternative"}, // and the second no beginning
		{"/srv/opt/b/c", file, "u:o:root"},          // but libselinux looks below /opt only
		{"/srv/x-y", file, "u:o:byte"},
		{"/srv/x\u00e9y", file, "u:o:root"}, // two bytes
		{"/srv/x\nz\n", file, "u:o:root"},
		{"/srv/x-y\n", file, "u:o:byte"},
		{"/var/tie", file, "u:o:local"},
		{"/var/pattern-1", file, "u:o:local"},
		{"/a/b/c/none/x", file, none},
		{"/a/b/c/x", file, "u:o:later"},
		{"/home/me", fs.ModeDir, "u:o:home"},
		{"/mine/bin/su.old", file, "u:o:literal"},
		{"/mine/deep", file, "u:o:keep"}, // the last line of subs comes first
		{"/mine", fs.ModeDir, "u:o:usr"},
		{"/minex", fs.ModeDir, "u:o:root"},
		{"/mine/again", fs.ModeDevice | fs.ModeCharDevice, "u:o:null"}, // both files, one after the other
		{"/usr/local/lib/a.so", file, "u:o:lib"},
		{"/other/usr", fs.ModeDir, "u:o:usr"},
		{"/nothing", file, "u:o:root"},
		{"//usr///bin//su.old/", file, "u:o:literal"},
	} {
		if got, _ := p.Label(tt.path, tt.typ); got != tt.want {
			m, _ := p.Lookup(tt.path, tt.typ)
			t.Errorf("%s (%v): got %q by line %d of %s, want %q", tt.path, tt.typ, got, m.Line, m.File, tt.want)
		}
	}
	got, ok := p.Lookup("/usr/local/lib/a.so.1", 0)
	want := selinux.Match{
		Context: "u:o:lib", Spec: `/usr/lib/[^/]*\.so(\.[^/]*)*`,
		File: "/usr/etc/selinux/default/contexts/files/file_contexts", Line: 5,
	}
	if !ok || got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestInvalid(t *testing.T) {
	for _, tt := range []struct {
		name  string
		files files
		want  string
	}{
		{"no file", files{".local": "/ u:o:x\n"}, "there is no /usr/etc/selinux/default/contexts/files/file_contexts"},
		{"no root", files{"": "/usr/.* u:o:x\n"}, "has no label for /"},
		{"context", files{"": "/ u:o:x\n\n/usr\n"}, `file_contexts: line 3: "/usr" has no context`},
		{"type", files{"": "/ u:o:x\n", ".local": "/usr -x u:o:x\n"}, `file_contexts.local: line 1: "-x" is not a type of file`},
		{"ASCII", files{"": "/ u:o:x\n/\u00e9 u:o:x\n"}, "line 2: \"/\u00e9\" has characters that are not ASCII"},
		{"pattern", files{"": "/ u:o:x\n/a(?=b).* u:o:x\n"}, `line 2: pattern "/a(?=b).*": error parsing regexp`},
		{"parenthesis", files{"": "/ u:o:x\n/a(b u:o:x\n"}, `line 2: pattern "/a(b": error parsing regexp`},
		{"length", files{"": "/ u:o:x\n/" + strings.Repeat("a", 4095) + " u:o:x\n"}, "line 2: pattern of 4096 bytes, at most 4095"},
	} {
		_, err := load(t, tt.files)
		if !errors.Is(err, selinux.ErrInvalid) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got error %v, want an ErrInvalid with %q", tt.name, err, tt.want)
		}
	}
	for name, text := range map[string]string{"no type": "SELINUX=enforcing\n", "disabled": "SELINUX=disabled\nSELINUXTYPE=x\n"} {
		tree := fstest.MapFS{"etc/selinux/config": {Data: []byte(text)}}
		if _, err := selinux.Load(tree.ReadFile, "etc/selinux"); !errors.Is(err, selinux.ErrNoPolicy) {
			t.Errorf("%s: got error %v, want an ErrNoPolicy", name, err)
		}
	}
	if _, err := selinux.Load(fstest.MapFS{}.ReadFile, "etc/selinux"); !errors.Is(err, selinux.ErrNoPolicy) {
		t.Errorf("no configuration: got error %v, want an ErrNoPolicy", err)
	}
	for _, policy := range []string{"..", "a/b", "."} {
		tree := fstest.MapFS{"etc/selinux/config": {Data: []byte("SELINUX=enforcing\nSELINUXTYPE=" + policy)}}
		if _, err := selinux.Load(tree.ReadFile, "etc/selinux"); !errors.Is(err, selinux.ErrInvalid) {
			t.Errorf("policy %q: got error %v, want an ErrInvalid", policy, err)
		}
	}
	unreadable := errors.New("unreadable")
	if _, err := selinux.Load(func(string) ([]byte, error) { return nil, unreadable }, "etc/selinux"); !errors.Is(err, unreadable) {
		t.Errorf("got error %v, want %v", err, unreadable)
	}
}

// FuzzPolicy compares what the package finds out about patterns with the patterns themselves.
func FuzzPolicy(f *testing.F) {
	for _, spec := range []string{"/usr(/.*)?", "/usr/lib/.*", "/a|/b", `/x\.so.*\.1`, "/(a|ab)c+", "/.*"} {
		f.Add(spec, "/usr/lib/x")
	}
	f.Add("/usr/(.*/)?lib(/.*)?", "/usr/lib")
	f.Add("/usr/lib/[^/]+/bin(64)?/x.*x", "/usr/lib/x/bin64/x")
	f.Add("/usr/.*ab.*bc", "/usr/xabc")
	f.Fuzz(func(t *testing.T, spec, path string) {
		if strings.ContainsAny(spec, " \t\n\v\f\r#") || spec == "" || path == "" || strings.Contains(path, "//") {
			return
		}
		p, err := load(t, files{"": "/ u:o:slash\n" + spec + " u:o:spec\n"})
		if err != nil {
			return
		}
		label, _ := p.Label(path, 0)
		got, want := label == "u:o:spec", reference(spec, strings.TrimSuffix(path, "/"))
		// Such a pattern can match a path that does not have its leading directories.
		elsewhere := strings.Contains(spec, "|") || regexp.MustCompile(`/[*?{]`).MatchString(spec)
		if got != want && path != "/" && (!want || !elsewhere) {
			t.Errorf("%q matches %q: %t, want %t", spec, path, got, want)
		}
	})
}
