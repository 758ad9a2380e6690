package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
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
)

// Whichever operation of a repair fails, and before whichever the process is killed: nothing else is damaged, and another
// repair makes everything right.
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

// A sweptRepair is a store of one image, in root, and the blobs of its layers. Nothing is open between commands.
type sweptRepair struct {
	repairBed
	hook atfs.Hook
}

func (sweptRepair) Close() error { return nil }

// openDir opens a directory of the store with the hook, which gets paths below the root.
func (s sweptRepair) openDir(name string) (*atfs.Dir, error) {
	rel, err := filepath.Rel(s.root, name)
	if err != nil {
		return nil, err
	}
	plain, err := atfs.Open(name)
	if err != nil {
		return nil, err
	}
	defer plain.Close()
	return plain.WithHook(func(op atfs.Op, name string) error {
		if s.hook == nil {
			return nil
		}
		return s.hook(op, path.Join(rel, name))
	})
}

// repairing is "fsck --repair" of a store in which an object is damaged, a checkout lacks a file and a ref is empty.
func repairing() faulttest.Case[sweptRepair] {
	layers := [][]tarFile{
		{{name: "bin/sh", content: "shell", mtime: 1}},
		{{name: "lib/a", content: "library", mtime: 2}, {name: "lib/b", content: "another", mtime: 2}},
	}
	told := false // the last repair has said that an operation failed
	return faulttest.Case[sweptRepair]{
		Min: 25,
		Prepare: func(t *testing.T, dir string) {
			t.Helper()
			makeDamagedStore(t, sweptBed(dir), layers)
		},
		Open: func(_ *testing.T, dir string, hook atfs.Hook) sweptRepair {
			return sweptRepair{sweptBed(dir), hook}
		},
		Run: func(t *testing.T, s sweptRepair) error {
			t.Helper()
			var stdout, stderr bytes.Buffer
			c := cli{stdout: &stdout, stderr: &stderr, openDir: s.openDir}
			status := c.execute(t.Context(), []string{
				"fsck", "--repair", "--root", s.root, "--address", filepath.Join(s.root, "no-containerd"), "--content-root", s.blobs,
			})
			told = strings.Contains(stderr.String(), faulttest.Err.Error())
			switch {
			case status == exitOK:
				return nil
			case told: // a layer or a checkout that cannot be repaired is a note, the others are
				return fmt.Errorf("status %d: %w", status, faulttest.Err)
			}
			return fmt.Errorf("status %d: %s%s", status, &stdout, &stderr)
		},
		// What fails after everything is right again is said, and does no harm.
		Survives: func(atfs.Op, string) bool { return told },
		Check: func(t *testing.T, s sweptRepair, done bool) {
			t.Helper()
			f, err := openFixture(t.Context(), s.root) // as the daemon does
			if err != nil {
				t.Fatal(err)
			}
			report, err := f.repo.Fsck(t.Context(), objectstore.FsckOptions{})
			if err == nil {
				objects := slices.DeleteFunc(report.Problems, func(p objectstore.Problem) bool { return p.Ref != "" })
				if len(objects) > 1 || done && len(report.Problems) > 0 {
					err = report.Err()
				}
			}
			if err := errors.Join(err, f.layers.SweepTmp(), f.close()); err != nil {
				t.Error(err)
			}
			if !done {
				return
			}
			if status, r, stderr := s.fsck(t); status != exitOK {
				t.Errorf("fsck: status %d, %+v, %s", status, r.Problems, stderr)
			}
			for name, content := range files(t, filepath.Join(s.root, "layers")) {
				for _, f := range append(layers[0], layers[1]...) {
					if strings.HasSuffix(name, "/"+f.name) && content != f.content {
						t.Errorf("%s: got %q, want %q", name, content, f.content)
					}
				}
			}
		},
	}
}

// silence drops what is logged until the test ends.
func silence(t *testing.T) {
	t.Helper()
	old := log.L.Logger.Out
	log.L.Logger.SetOutput(io.Discard)
	t.Cleanup(func() { log.L.Logger.SetOutput(old) })
}

func sweptBed(dir string) repairBed {
	return repairBed{root: filepath.Join(dir, "root"), blobs: filepath.Join(dir, "content")}
}

// makeDamagedStore unpacks layers, and damages one of the files that lib/ has, with its object, the checkout of the other
// and a ref.
func makeDamagedStore(t *testing.T, b repairBed, layers [][]tarFile) {
	t.Helper()
	blobs := filepath.Join(b.blobs, "blobs/sha256")
	for _, dir := range []string{b.root, blobs} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	if err := createRepo(filepath.Join(b.root, "repo")); err != nil {
		t.Fatal(err)
	}
	f, err := openFixture(t.Context(), b.root)
	if err != nil {
		t.Fatal(err)
	}
	var parent digest.Digest
	for _, layer := range layers {
		if _, parent, err = f.unpack(t.Context(), parent, layer); err != nil {
			t.Fatal(err)
		}
		data, err := makeTar(layer)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(blobs, digest.FromBytes(data).Encoded()), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.close(); err != nil {
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
