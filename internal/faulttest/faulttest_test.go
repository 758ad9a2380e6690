package faulttest

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
)

// A notebook is the smallest store: one page, replaced atomically.
type notebook struct{ *atfs.Dir }

func write() Case[notebook] {
	return Case[notebook]{
		Min: 5,
		Prepare: func(t *testing.T, path string) {
			t.Helper()
			if err := os.WriteFile(filepath.Join(path, "page"), []byte("old"), 0o600); err != nil {
				t.Fatal(err)
			}
		},
		Open: func(t *testing.T, path string, hook atfs.Hook) notebook {
			t.Helper()
			plain, err := atfs.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer plain.Close()
			d, err := plain.WithHook(hook)
			if err != nil {
				t.Fatal(err)
			}
			return notebook{d}
		},
		Run: func(t *testing.T, n notebook) error {
			t.Helper()
			return n.WriteFile("page", []byte("new"), 0o600, true)
		},
		Check: func(t *testing.T, n notebook, done bool) {
			t.Helper()
			got, err := n.ReadFile("page", 10)
			if err != nil || string(got) != "new" && (done || string(got) != "old") {
				t.Errorf("page: got %q, %v (done: %v)", got, err, done)
			}
		},
	}
}

func TestSweep(t *testing.T) { Sweep(t, write()) }

// The child gets the name of the test to run, even if that is a subtest with an odd name.
func TestKillSweep(t *testing.T) {
	for _, name := range []string{"plain", "with (odd) name"} {
		t.Run(name, func(t *testing.T) { KillSweep(t, write()) })
	}
}

// The page is complete when it gets its name: nothing writes to it afterwards.
func TestKillAfterRenameSweep(t *testing.T) { KillAfterRenameSweep(t, write()) }

func TestOrder(t *testing.T) {
	ops := Order(t, "write", write())
	if i := slices.Index(ops, "rename: page"); i < 1 || ops[i-1] != "sync: page.tmp-RANDOM" || i == len(ops)-1 {
		t.Errorf("page is not on the disk before it gets its name, or the name is not: %q", ops)
	}
}

func TestSettle(t *testing.T) {
	ops := []string{
		"tmpfile: repo/tmp", "write: repo/tmp/(unnamed)", "sync: repo/tmp/(unnamed)",
		"mkdir: repo/objects/0a", "link: repo/objects/HASH.file", "unlink: tmp/b", "unlink: tmp/a",
		"unlink: repo/objects/HASH.dirtree", "unlink: repo/objects/HASH.commit", "unlink: tmp/d", "unlink: tmp/c",
	}
	want := []string{
		"sync: repo/tmp/(unnamed)", "link: repo/objects/HASH.file", "unlink: tmp/a", "unlink: tmp/b",
		"unlink: repo/objects/HASH.dirtree", "unlink: repo/objects/HASH.commit", "unlink: tmp/c", "unlink: tmp/d",
	}
	if diff := testenv.Diff(want, settle(ops)); diff != "" {
		t.Errorf("operations (-want +got):\n%s", diff)
	}
}
