package objectstore

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func TestParseConfig(t *testing.T) {
	c, err := parseConfig("[core]\nrepo_version=1\nmode=archive-z2\nlock-timeout-secs=-1\ntmp-expiry-secs=60\nlocking=false\n" +
		"tombstone-commits=1\n[remote \"a b\"]\nurl=http://x/\\\\\\sy\nbranches=a\\;b;\n[core]\nparent=/x\n")
	if err != nil {
		t.Fatal(err)
	}
	want := config{mode: "archive-z2", parent: "/x", lockTimeout: forever, tmpExpiry: time.Minute, tombstones: true}
	if *c != want {
		t.Errorf("got %+v, want %+v", *c, want)
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add("[core]\nrepo_version=1\nmode=bare\n")
	f.Add("[core]\nrepo_version=1\nmode=archive-z2\nlock-timeout-secs=-1\nlocking=false\n[remote \"x\"]\nurl=a\\sb\n# comment")
	f.Add("[core\n=\\")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := parseConfig(text)
		if err != nil {
			return
		}
		if !strings.Contains(text, "core") || c.lockTimeout < forever || c.tmpExpiry < forever {
			t.Errorf("%q is parsed as %+v", text, c)
		}
	})
}

func TestLooseNames(t *testing.T) {
	sum := Checksum{0xab, 0xcd, 31: 0x01}
	for typ := TypeFile; typ <= TypeFileXattrsLink; typ++ {
		path := LoosePath(sum, typ)
		name := looseName(&sum, typ)
		if path != "ab/"+name {
			t.Errorf("path %q, name %q", path, name)
		}
		got, gotType, ok := parseLooseName(0xab, name)
		if !ok || got != sum || gotType != typ {
			t.Errorf("%q comes back as %s, %s, %v", name, got, gotType, ok)
		}
	}
	digits := strings.Repeat("0", 62)
	for _, bad := range []string{
		"", "x", digits, digits + ".", digits + ".filez", digits[1:] + ".file", "0" + digits + ".file",
		strings.Repeat("A", 62) + ".file", strings.Repeat("g", 62) + ".file", digits + ".file.tmp",
	} {
		if _, _, ok := parseLooseName(0, bad); ok {
			t.Errorf("%q is taken for an object", bad)
		}
	}
}

func FuzzParseObjectName(f *testing.F) {
	sum := strings.Repeat("ab", 32)
	for _, s := range []string{sum + ".file", sum + ".dirtree", sum + ".commit", sum + ".", sum, "." + sum, sum + ".file.file", strings.ToUpper(sum) + ".file", "../" + sum[3:] + ".file", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseObjectName(s)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("%q: got %v, want %v", s, err, ErrInvalid)
			}
			return
		}
		if n.String() != s {
			t.Fatalf("%q comes back as %q", s, n)
		}
		path := LoosePath(n.Checksum, n.Type)
		if got, typ, ok := parseLooseName(n.Checksum[0], path[3:]); !ok || got != n.Checksum || typ != n.Type {
			t.Fatalf("%q has path %q, which is %s.%s, %v", s, path, got, typ, ok)
		}
	})
}
