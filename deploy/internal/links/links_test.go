package links_test

import (
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/internal/links"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

func TestResolve(t *testing.T) {
	targets := map[string]string{ // "" for what is no link
		".": "", "usr": "", "usr/lib": "", "usr/lib/file": "", "usr/etc": "", "usr/etc/conf": "", "usr/share": "",
		"usr/share/relative": "../lib/file", "usr/share/absolute": "/usr/./lib//file", "usr/share/above": "../../../../usr/lib/file",
		"usr/share/dir": "/usr/lib", "usr/share/etc": "../../etc/conf", "usr/share/loop": "loop", "usr/share/dangling": "/var",
		"usr/share/root": "/", "lib": "usr/lib",
	}
	for n := range 41 { // usr/n40 needs 40 links, usr/n41 41
		targets[fmt.Sprintf("usr/n%d", n+1)] = fmt.Sprintf("n%d", n)
	}
	targets["usr/n0"] = ""
	for name, want := range map[string]string{
		"usr/lib/file": "usr/lib/file", "/usr//lib/./file": "usr/lib/file", "../usr/lib/../lib/file": "usr/lib/file",
		"usr/share/relative": "usr/lib/file", "usr/share/absolute": "usr/lib/file", "usr/share/above": "usr/lib/file",
		"usr/share/dir/file": "usr/lib/file", "lib/file": "usr/lib/file", "lib/..": "usr",
		"etc/conf": "usr/etc/conf", "/etc": "usr/etc", "usr/share/etc": "usr/etc/conf",
		"": ".", "/": ".", "usr/share/root": ".", "usr/n40": "usr/n0",
	} {
		got, err := links.Resolve(name, look(targets))
		if err != nil || got != want {
			t.Errorf("%q: got %q, %v, want %q", name, got, err, want)
		}
	}
	for name, want := range map[string]error{
		"usr/share/loop": unix.ELOOP, "usr/n41": unix.ELOOP,
		"usr/share/dangling": objectstore.ErrNoEntry, "usr/none": objectstore.ErrNoEntry, "usr/none/../lib": objectstore.ErrNoEntry,
	} {
		if _, err := links.Resolve(name, look(targets)); !errors.Is(err, want) {
			t.Errorf("%q: got error %v, want %v", name, err, want)
		}
	}
	targets["etc"], targets["etc/own"] = "", ""
	if got, err := links.Resolve("etc/own", look(targets)); got != "etc/own" {
		t.Errorf("in a tree with an /etc: got %q, %v, want etc/own", got, err)
	}
}

// look returns the path of an entry as the entry.
func look(targets map[string]string) func(string) (string, string, error) {
	return func(name string) (string, string, error) {
		target, ok := targets[name]
		if !ok {
			return "", "", objectstore.ErrNoEntry
		}
		return name, target, nil
	}
}
