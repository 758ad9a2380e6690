package plugin

import (
	"reflect"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"

	"github.com/pelletier/go-toml/v2"
)

func TestDefaultConfigIsWhatIsWritten(t *testing.T) {
	b, err := DefaultConfig().Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseConfig(b)
	if err != nil {
		t.Fatalf("%v in\n%s", err, b)
	}
	if diff := testenv.Diff(DefaultConfig(), got); diff != "" {
		t.Errorf("configuration after writing and reading (-want +got):\n%s", diff)
	}
	for line := range strings.Lines(string(b)) {
		if strings.TrimRight(line, " \n")+"\n" != line {
			t.Errorf("line %q ends with a space", line)
		}
	}
}

// Every key has a comment, and no two have the same.
func TestEveryKeyIsDocumented(t *testing.T) {
	seen := make(map[string]string)
	var walk func(typ reflect.Type, path string)
	walk = func(typ reflect.Type, path string) {
		for f := range fields(typ) {
			key := path + f.Tag.Get("toml")
			if f.Type.Kind() == reflect.Struct {
				walk(f.Type, key+".")
				continue
			}
			comment := f.Tag.Get("comment")
			switch {
			case f.Tag.Get("toml") == "-":
				continue
			case f.Tag.Get("toml") == "":
				t.Errorf("field %s has no key", f.Name)
			case comment == "":
				t.Errorf("key %s has no comment", key)
			case seen[comment] != "":
				t.Errorf("keys %s and %s have the same comment", seen[comment], key)
			case strings.Contains(comment, "\\n"):
				t.Errorf("comment of %s has a backslash and an n", key)
			}
			seen[comment] = key
		}
	}
	walk(reflect.TypeFor[Config](), "")
}

func fields(typ reflect.Type) func(func(reflect.StructField) bool) {
	return func(yield func(reflect.StructField) bool) {
		for i := range typ.NumField() {
			if !yield(typ.Field(i)) {
				return
			}
		}
	}
}

func TestParseConfig(t *testing.T) {
	for _, c := range []struct {
		name, text string
		change     func(*Config) // of the default
		errs       []string      // all of them in the error
	}{
		{name: "only the version", text: "version = 1\n", change: func(*Config) {}},
		{
			name: "some keys",
			text: "version = 1\nroot = '/a'\nmtime = 'canonical'\n[import]\nmemory = '1GiB'\n[cleanup]\nwait_above = 5\n",
			change: func(c *Config) {
				c.Root, c.Mtime, c.Import.Memory, c.Cleanup.WaitAbove = "/a", "canonical", 1<<30, 5
			},
		},
		{name: "empty", text: "", errs: []string{`"version"`, "must be 1"}},
		{name: "another version", text: "version = 2", errs: []string{`"version" is 2`, "must be 1"}},
		{name: "unknown key", text: "version = 1\n\nrooot = '/a'\n", errs: []string{"line 3", `"rooot"`}},
		{name: "unknown keys", text: "version = 1\na = 1\n[log]\nb = 1\n", errs: []string{"line 2", `"a"`, "line 4", `"log.b"`}},
		{name: "unknown table", text: "version = 1\n[metrics]\n", errs: []string{`"metrics"`}},
		{name: "wrong type", text: "version = 1\nroot = 5\n", errs: []string{"line 2", `"root"`, "string"}},
		{name: "syntax", text: "version = 1\nroot = \"\n", errs: []string{"line 2"}},
		{name: "twice", text: "version = 1\nroot = '/a'\nroot = '/b'\n", errs: []string{"line 3"}},
		{name: "relative root", text: "version = 1\nroot = 'a'\n", errs: []string{`"root"`, "absolute"}},
		{name: "relative repo", text: "version = 1\nrepo = 'a'\n", errs: []string{`"repo"`, "absolute"}},
		{name: "relative address", text: "version = 1\naddress = 'a'\n", errs: []string{`"address"`, "absolute"}},
		{name: "mtime", text: "version = 1\nmtime = 'x'\n", errs: []string{`"mtime"`, "canonical"}},
		{name: "durability", text: "version = 1\ndurability = 'x'\n", errs: []string{`"durability"`, "sync"}},
		{
			name: "removed key", text: "version = 1\n[decompress]\ngzip = '/opt/igzip'\n",
			change: func(c *Config) { c.Removed = []string{"decompress.gzip"} },
		},
		{name: "table of a removed key", text: "version = 1\n[decompress]\n", change: func(*Config) {}},
		{name: "unknown key beside a removed one", text: "version = 1\n[decompress]\ngzip = 'off'\nxz = 'off'\n", errs: []string{"line 4", `"decompress.xz"`}},
		{name: "memory without sense", text: "version = 1\n[import]\nmemory = 'much'\n", errs: []string{"line 3", `"import.memory"`, "64MiB"}},
		{name: "little memory", text: "version = 1\n[import]\nmemory = '1KiB'\n", errs: []string{`"import.memory"`, "1MiB"}},
		{name: "workers", text: "version = 1\n[import]\nworkers = -1\n", errs: []string{`"import.workers"`}},
		{name: "entries", text: "version = 1\n[import]\nmax_entries = 0\n", errs: []string{`"import.max_entries"`}},
		{name: "percentage", text: "version = 1\n[cleanup]\nwait_above = 101\n", errs: []string{`"cleanup.wait_above"`, "100"}},
		{name: "level", text: "version = 1\n[log]\nlevel = 'loud'\n", errs: []string{`"log.level"`, "debug"}},
		{name: "format", text: "version = 1\n[log]\nformat = 'xml'\n", errs: []string{`"log.format"`, "json"}},
		{name: "containerd", text: "version = 1\n[containerd]\naddress = ''\ncontent_root = ''\n", errs: []string{`"containerd.address"`}},
		{name: "content root", text: "version = 1\n[containerd]\ncontent_root = 'x'\n", errs: []string{`"containerd.content_root"`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := ParseConfig([]byte(c.text))
			if c.errs != nil {
				if err == nil {
					t.Fatalf("no error, want one with %q", c.errs)
				}
				for _, s := range c.errs {
					if !strings.Contains(err.Error(), s) {
						t.Errorf("error %q has no %q", err, s)
					}
				}
				if strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), "plugin.Config") {
					t.Errorf("error %q is not one line for users", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := DefaultConfig()
			c.change(want)
			if diff := testenv.Diff(want, got); diff != "" {
				t.Errorf("configuration (-want +got):\n%s", diff)
			}
		})
	}
}

func FuzzParseConfig(f *testing.F) {
	b, err := DefaultConfig().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte("version = 1\n[import]\nmemory = '5x'\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseConfig(b)
		if err != nil {
			return
		}
		c.Removed = nil // these are not written
		again, err := c.Encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := ParseConfig(again)
		if err != nil {
			t.Fatalf("%v in what was written:\n%s", err, again)
		}
		if diff := testenv.Diff(c, got); diff != "" {
			t.Errorf("after writing and reading (-want +got):\n%s", diff)
		}
	})
}

func TestSize(t *testing.T) {
	for text, want := range map[string]struct {
		size Size
		text string
	}{
		"64MiB":    {64 << 20, "64MiB"},
		"1048576":  {1 << 20, "1MiB"},
		"1GiB":     {1 << 30, "1GiB"},
		"1024 GiB": {1 << 40, "1024GiB"},
		"1MB":      {1000000, "1000000B"},
		"1025":     {1025, "1025B"},
		"3KiB":     {3 << 10, "3KiB"},
		"0":        {0, "0B"},
	} {
		var got struct {
			S Size
		}
		if err := toml.Unmarshal([]byte("s = '"+text+"'"), &got); err != nil || got.S != want.size {
			t.Errorf("%s: got %d, %v, want %d", text, got.S, err, want.size)
		}
		if b, err := got.S.MarshalText(); err != nil || string(b) != want.text {
			t.Errorf("%s: written as %s, %v, want %s", text, b, err, want.text)
		}
	}
	for _, text := range []string{"", "x", "-1MiB", "99999999999GiB"} {
		var s Size
		if err := s.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q: read as %d, want an error", text, s)
		}
	}
}

func TestRepoPath(t *testing.T) {
	c := DefaultConfig()
	if got, want := c.RepoPath(), "/var/lib/ostree-snapshotter/repo"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	c.Repo = "/ostree/repo"
	if got := c.RepoPath(); got != c.Repo {
		t.Errorf("got %s, want %s", got, c.Repo)
	}
}
