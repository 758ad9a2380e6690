package faulttest

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// Update is the flag of test binaries that rewrites golden files instead of comparing them.
var Update = flag.Bool("update", false, "rewrite the golden files in testdata")

// Order compares the disk operations of Run and Close, one a line, with testdata/<name>.golden, which the flag -update
// rewrites. Hashes and random names are written HASH and RANDOM.
//
// Some operations have no line or no fixed place. Operations on a file before it has a name are left out, except its
// sync: nobody sees the file, and several may be in progress. So are the directories of objects, which objects share.
// Where a tree in tmp/ is removed the lines are sorted, since the file system determines the order.
//
// The umask is 0, as in the daemon: tests that make files must not run at the same time.
func Order[S io.Closer](t *testing.T, name string, c Case[S]) []string {
	t.Helper()
	path, mounted := Dir(t)
	if !mounted {
		testenv.Unsupported(t, "needs tmpfs, and root to mount it: other file systems list names in an order of their own")
	}
	old := unix.Umask(0)
	defer unix.Umask(old)
	if c.Prepare != nil {
		c.Prepare(t, path)
	}
	var mu sync.Mutex
	armed := false
	var ops []string
	s := c.Open(t, path, func(op atfs.Op, name string) error {
		mu.Lock()
		defer mu.Unlock()
		if armed {
			ops = append(ops, fmt.Sprintf("%s: %s", op, plainName(name)))
		}
		return nil
	})
	mu.Lock()
	armed = true
	mu.Unlock()
	if err := errors.Join(c.Run(t, s), s.Close()); err != nil {
		t.Error(err)
	}
	s = c.Open(t, path, nil)
	c.Check(t, s, true)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	ops = settle(ops)
	compare(t, filepath.Join("testdata", name+".golden"), ops)
	return ops
}

func compare(t *testing.T, golden string, ops []string) {
	t.Helper()
	got := strings.Join(ops, "\n") + "\n"
	if *Update {
		if err := os.MkdirAll(filepath.Dir(golden), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := testenv.Diff(string(want), got); diff != "" {
		t.Errorf("order of operations (-%s +got); rewrite with -update:\n%s", golden, diff)
	}
}

var randomNames = []struct {
	pattern *regexp.Regexp
	text    string
}{
	{regexp.MustCompile(`\b[0-9a-f]{2}/[0-9a-f]{62}\b`), "HASH"},
	{regexp.MustCompile(`\b([0-9a-f]{64}|[0-9a-f]{16})\b`), "HASH"},
	{regexp.MustCompile(`\b[A-Z2-7]{26}\b`), "RANDOM"},
	{regexp.MustCompile(`\.tmp-[0-9a-z]+`), ".tmp-RANDOM"},
}

func plainName(name string) string {
	for _, r := range randomNames {
		name = r.pattern.ReplaceAllString(name, r.text)
	}
	return name
}

var (
	objectsDir = regexp.MustCompile(`^mkdir: (repo/)?objects/[0-9a-f]{2}$`)
	removed    = regexp.MustCompile(`^unlink: tmp/`)
)

// settle removes the dependence of the order on hashes, goroutines and the file system.
func settle(ops []string) []string {
	ops = slices.DeleteFunc(ops, func(op string) bool {
		unnamed := strings.HasPrefix(op, "tmpfile: ") || strings.HasSuffix(op, "(unnamed)") && !strings.HasPrefix(op, "sync: ")
		return unnamed || objectsDir.MatchString(op)
	})
	for i := 0; i < len(ops); i++ {
		end := i
		for end < len(ops) && removed.MatchString(ops[end]) {
			end++
		}
		if end > i {
			slices.Sort(ops[i:end])
			i = end
		}
	}
	return ops
}
