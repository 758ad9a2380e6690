package probe

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

func TestList(t *testing.T) {
	root := t.TempDir()
	testenv.Must(t, os.Mkdir(filepath.Join(root, "dev"), 0o755))
	testenv.Must(t, os.WriteFile(filepath.Join(root, "dev", "mine"), nil, 0o600))
	testenv.Must(t, os.WriteFile(filepath.Join(root, "devil"), []byte("abc"), 0o600))
	testenv.Must(t, os.Chmod(filepath.Join(root, "devil"), 0o640|os.ModeSetuid))
	testenv.Must(t, os.Symlink("to\n\xff", filepath.Join(root, "a \xfe\n")))
	testenv.Must(t, unix.Mkfifo(filepath.Join(root, "pipe"), 0o600))
	var b bytes.Buffer
	testenv.Must(t, list(t.Context(), &b, root))
	lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
	want := []string{
		`"/a \xfe\n" 120777 `,
		`"/devil" 104640 `,
		`"/pipe" 10600 `,
	}
	if len(lines) != len(want) {
		t.Fatalf("got %q", lines)
	}
	for i, l := range lines {
		if !strings.HasPrefix(l, want[i]) {
			t.Errorf("got %s, want %s...", l, want[i])
		}
	}
	if !strings.HasSuffix(lines[0], ` "to\n\xff" 0 `) || !strings.Contains(lines[1], " 3 ba7816bf8f01cfea") {
		t.Errorf("got %q", lines)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := list(ctx, &b, root); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: got %v", err)
	}
}

// A file that was read is in the page cache until it is evicted.
func TestRead(t *testing.T) {
	root := t.TempDir()
	const size = 1<<20 + 17
	name := filepath.Join(root, "file")
	f, err := os.Create(name)
	testenv.Must(t, err)
	_, err = f.Write(make([]byte, size))
	testenv.Must(t, err)
	testenv.Must(t, f.Sync())
	testenv.Must(t, f.Close())
	testenv.Must(t, os.Link(name, filepath.Join(root, "link")))
	cached := func() (n []int64) {
		testenv.Must(t, walkFiles(t.Context(), root, func(f *os.File, size int64) error {
			c, err := read(f, size)
			n = append(n, c)
			return err
		}))
		return n
	}
	testenv.Must(t, walkFiles(t.Context(), root, evict))
	if n := cached(); len(n) != 2 || n[0] != 0 || n[1] != size {
		t.Errorf("evicted: got %d, want [0 %d]: the second name is that of what was just read", n, size)
	}
	if n := cached(); n[0] != size || n[1] != size {
		t.Errorf("read before: got %d", n)
	}
}

func TestRunRefuses(t *testing.T) {
	for _, args := range [][]string{nil, {"dance"}, {"list", "/"}} {
		if err := Run(t.Context(), &bytes.Buffer{}, args); err == nil {
			t.Errorf("%q: got no error", args)
		}
	}
}
