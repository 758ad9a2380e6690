package layer

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

var errInjected = errors.New("injected fault")

// countdown is a hook that fails the n-th operation, counted from 1, and tells which one it was.
type countdown struct {
	mu     sync.Mutex
	left   int
	failed string
}

func (c *countdown) hook(op atfs.Op, name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.left--; c.left == 0 {
		c.failed = fmt.Sprintf("%s %s", op, name)
		return errInjected
	}
	return nil
}

// faultSweep runs a durable operation once for each operation that it does on the disk, and fails that one. Then the
// error has to be the injected one, check has to find nothing half done, and the same again has to work. prepare gets
// each run's store, before the fault is armed.
func faultSweep(t *testing.T, prepare func(*Store, string), run func(*Store) error, check func(*Store, string)) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: a bare repository has files of any owner")
	}
	for n := 1; ; n++ {
		path := t.TempDir()
		c := &countdown{}
		done := false
		ok := t.Run(fmt.Sprintf("operation %d", n), func(t *testing.T) {
			s, _ := openStore(t, path, Options{})
			prepare(s, path)
			h := hooked(t, path, Options{Workers: 1}, c.hook)
			c.mu.Lock()
			c.left, c.failed = n, ""
			c.mu.Unlock()
			err := run(h)
			c.mu.Lock()
			failed := c.failed
			c.mu.Unlock()
			if done = failed == ""; done {
				must(t, err)
				return
			}
			if err == nil {
				t.Fatalf("%s failed: got no error", failed)
			}
			if !errors.Is(err, errInjected) {
				t.Errorf("%s failed: got error %v, want %v", failed, err, errInjected)
			}
			check(s, failed)
			if err := run(s); err != nil {
				t.Errorf("%s failed: the same again: %v", failed, err)
			}
		})
		if done || !ok {
			if n < 20 {
				t.Errorf("got %d operations, want more", n)
			}
			return
		}
	}
}

func faultTar(t testing.TB) []byte {
	t.Helper()
	return makeTar(t, dir("d", owner(1, 2), withXattr("user.a", "1")), file("d/f", "content", mode(0o4755), owner(3, 4), withXattr("user.b", "2")),
		hardlink("d/g", "d/f", mode(0o755)), file("e", ""), file("big", string(bytes.Repeat([]byte("b"), smallFile+1))), symlink("l", "d"),
		fifo("p", owner(1, 1)), whiteout("", "w"), file("x", "x", withXattr("user.empty", "")))
}

func TestImportFaults(t *testing.T) {
	b := faultTar(t)
	faultSweep(t, func(*Store, string) {}, func(s *Store) error {
		h, err := s.Import(t.Context(), bytes.NewReader(b), ImportOptions{})
		if err != nil {
			return err
		}
		return h.Release()
	}, func(s *Store, failed string) {
		refs, err := s.Repo().Refs("")
		must(t, err)
		for ref, id := range refs { // the last operations come after the ref
			if _, err := s.Layer(t.Context(), id); err != nil {
				t.Errorf("%s failed: ref %s: %v", failed, ref, err)
			}
		}
	})
}

func TestCheckoutFaults(t *testing.T) {
	b := faultTar(t)
	var id objectstore.Checksum
	var root string
	faultSweep(t, func(s *Store, path string) {
		id, root = importTar(t, s, b).ID, path
	}, func(s *Store) error {
		name, _, err := s.Checkout(t.Context(), []objectstore.Checksum{id})
		if err == nil {
			wantTree(t, filepath.Join(root, name), `big: file 644 "`+digestText(string(bytes.Repeat([]byte("b"), smallFile+1)))+`"`, `d: dir 755 1:2 user.a="1"`,
				`d/f: file 755 "content" user.b="2" = d/f`, `d/g: file 755 "content" user.b="2" = d/f`, `e: file 644 ""`, `l: link "d"`,
				"p: fifo 644 1:1", "w: whiteout", `x: file 644 "x" user.empty=""`)
		}
		return err
	}, func(s *Store, failed string) {
		name := filepath.Join(layersDir, id.String()[:shortID], checkoutFS)
		if ok, err := s.HasCheckout(name); err != nil || ok {
			// Only what comes after the checkout has got its name may have failed.
			if _, _, err := s.Checkout(t.Context(), []objectstore.Checksum{id}); err != nil {
				t.Errorf("%s failed: a checkout is there: %v", failed, err)
			}
		}
		must(t, s.SweepTmp())
	})
}

func TestImportDirFaults(t *testing.T) {
	var upper string
	faultSweep(t, func(_ *Store, path string) {
		upper = filepath.Join(path, "upper")
		writeTree(t, upper, [2]string{"d/", ""}, [2]string{"d/f", "content"}, [2]string{"g", "more"}, [2]string{"h", "open"})
		must(t, os.Chmod(upper, 0o755))
		must(t, os.Chmod(filepath.Join(upper, "g"), 0o600))
		w, err := os.OpenFile(filepath.Join(upper, "h"), os.O_WRONLY, 0)
		must(t, err)
		t.Cleanup(func() { must(t, w.Close()) })
	}, func(s *Store) error {
		d, err := atfs.Open(upper)
		must(t, err)
		defer d.Close()
		h, err := s.ImportDir(t.Context(), d, "x")
		if err != nil {
			return err
		}
		return h.Release()
	}, func(s *Store, failed string) {
		wantTree(t, upper, "d: dir 755", `d/f: file 644 "content"`, `g: file 600 "more"`, `h: file 644 "open"`)
		refs, err := s.Repo().Refs("")
		must(t, err)
		for ref, id := range refs {
			if _, err := s.Layer(t.Context(), id); err != nil {
				t.Errorf("%s failed: ref %s: %v", failed, ref, err)
			}
		}
	})
}
