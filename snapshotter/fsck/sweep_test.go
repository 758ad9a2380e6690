package fsck

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/faulttest"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/snaptest"
)

// Whichever operation of a repair fails, and before whichever the process is killed: nothing else is damaged, and
// another repair makes everything right.
func TestRepairInterrupted(t *testing.T) {
	testenv.NeedsRoot(t)
	silence(t)
	t.Run("faults", func(t *testing.T) {
		t.Parallel()
		faulttest.Sweep(t, repairing())
	})
	t.Run("kills", func(t *testing.T) {
		t.Parallel()
		faulttest.KillSweep(t, repairing())
	})
}

// The order of operations on the disk, for reviewers.
func TestRepairOrder(t *testing.T) {
	testenv.NeedsRoot(t)
	silence(t)
	faulttest.Order(t, "repair", repairing())
}

// A sweptRepair is a store of one image, and the blobs of its layers. Nothing is open between operations.
type sweptRepair struct{ bed }

func (sweptRepair) Close() error { return nil }

// repairing is the repair of a store in which an object is damaged, a checkout lacks a file and a ref is empty.
func repairing() faulttest.Case[sweptRepair] {
	layers := [][]snaptest.TarFile{
		{{Name: "bin/sh", Content: "shell", Mtime: 1}},
		{{Name: "lib/a", Content: "library", Mtime: 2}, {Name: "lib/b", Content: "another", Mtime: 2}},
	}
	told := false // the last repair reported a failed operation
	return faulttest.Case[sweptRepair]{
		Min: 25,
		Prepare: func(t *testing.T, dir string) {
			t.Helper()
			makeDamagedStore(t, sweptBed(dir), layers)
		},
		Open: func(_ *testing.T, dir string, hook atfs.Hook) sweptRepair {
			b := sweptBed(dir)
			b.hook = hook
			return sweptRepair{b}
		},
		Run: func(t *testing.T, s sweptRepair) error {
			t.Helper()
			r, failed, err := s.tryRepair(t)
			all := errors.Join(append(failed, err)...)
			told = errors.Is(all, faulttest.Err)
			if err == nil && len(r.Problems) == 0 {
				return nil
			}
			return fmt.Errorf("repair: %w", all)
		},
		// Failures after everything is repaired are reported, and do no harm.
		Survives: func(atfs.Op, string) bool { return told },
		Check: func(t *testing.T, s sweptRepair, done bool) {
			t.Helper()
			f, err := snaptest.OpenFixture(t.Context(), s.root) // as the daemon does
			if err != nil {
				t.Fatal(err)
			}
			report, err := f.Repo.Fsck(t.Context(), objectstore.FsckOptions{})
			if err == nil {
				objects := slices.DeleteFunc(report.Problems, func(p objectstore.Problem) bool { return p.Ref != "" })
				if len(objects) > 1 || done && len(report.Problems) > 0 {
					err = report.Err()
				}
			}
			if err := errors.Join(err, f.Store.SweepTmp(), f.Close()); err != nil {
				t.Error(err)
			}
			if !done {
				return
			}
			if r := s.check(t); len(r.Problems) != 0 || r.Unread != nil {
				t.Errorf("check: %+v, %v", r.Problems, r.Unread)
			}
			for name, content := range files(t, filepath.Join(s.root, "layers")) {
				for _, f := range append(layers[0], layers[1]...) {
					if strings.HasSuffix(name, "/"+f.Name) && content != f.Content {
						t.Errorf("%s: got %q, want %q", name, content, f.Content)
					}
				}
			}
		},
	}
}

// silence drops log messages until the test ends.
func silence(t *testing.T) {
	t.Helper()
	old := log.L.Logger.Out
	log.L.Logger.SetOutput(io.Discard)
	t.Cleanup(func() { log.L.Logger.SetOutput(old) })
}

func sweptBed(dir string) bed {
	return bed{root: filepath.Join(dir, "root"), blobs: filepath.Join(dir, "content")}
}

// makeDamagedStore unpacks layers, and damages one of the files that lib/ has, with its object, the checkout of the
// other and a ref.
func makeDamagedStore(t *testing.T, b bed, layers [][]snaptest.TarFile) {
	t.Helper()
	if err := os.MkdirAll(b.root, 0o711); err != nil {
		t.Fatal(err)
	}
	f, err := snaptest.OpenFixture(t.Context(), b.root)
	if err != nil {
		t.Fatal(err)
	}
	var parent digest.Digest
	for _, layer := range layers {
		if _, parent, err = f.Unpack(t.Context(), parent, layer); err != nil {
			t.Fatal(err)
		}
		b.addBlob(t, layer)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	one := func(pattern string) string {
		t.Helper()
		found, err := filepath.Glob(filepath.Join(b.root, pattern))
		if err != nil || len(found) == 0 {
			t.Fatalf("%s: got %v, %v", pattern, found, err)
		}
		return found[0]
	}
	if err := os.WriteFile(one("layers/*/fs*/lib/a"), []byte("LIBRARY"), 0o600); err != nil { // a link of the object
		t.Fatal(err)
	}
	if err := os.Remove(one("layers/*/fs*/lib/b")); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(one("repo/refs/heads/oci/diff/*"), 0); err != nil {
		t.Fatal(err)
	}
}

// files returns the contents of the files below dir, by path.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	got := make(map[string]string)
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(name)
		got[name] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}
