package fsck

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/go-digest"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/blob"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/inspect"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/snaptest"
)

// manyFiles are the files of a layer with more objects than are damaged.
func manyFiles() []snaptest.TarFile {
	var files []snaptest.TarFile
	for i := range 160 {
		files = append(files, snaptest.TarFile{Name: fmt.Sprintf("many/%d", i), Content: snaptest.KiB(fmt.Sprint("file ", i), 1+i%9), Mtime: int64(i)})
	}
	return append(files, snaptest.TarFile{Name: "many/link", Link: "many/7", Mtime: 7}, snaptest.TarFile{Name: "other/sh", Content: snaptest.KiB("shell", 96), Mtime: 77})
}

// A bed is a store whose daemon is stopped, and containerd's content store with the blobs of its layers.
type bed struct {
	root, blobs string
	hook        atfs.Hook // sees all operations on the store; may be nil
}

func newBed(t *testing.T) bed {
	t.Helper()
	testenv.NeedsRoot(t)
	f, err := snaptest.MakeFixture(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := f.Unpack(t.Context(), f.Chain, manyFiles()); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	b := bed{root: f.Path, blobs: t.TempDir()}
	for _, files := range [][]snaptest.TarFile{snaptest.BaseFiles, snaptest.AFiles, snaptest.BFiles, manyFiles()} {
		b.addBlob(t, files)
	}
	return b
}

// addBlob adds the blob of a layer to the content store.
func (b bed) addBlob(t *testing.T, files []snaptest.TarFile) {
	t.Helper()
	data, err := snaptest.MakeTar(files)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(b.blobs, "blobs/sha256")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, digest.FromBytes(data).Encoded()), data, 0o644); err != nil {
		t.Fatal(err)
	}
}

// open opens the store beside a daemon, with a journal as the daemon has one, until close is called.
func (b bed) open() (_ *inspect.Store, closeAll func() error, err error) {
	s := &inspect.Store{}
	closeAll = func() error {
		var err error
		if s.Layers != nil {
			err = s.Layers.Close()
		}
		if s.Repo != nil {
			err = errors.Join(err, s.Repo.Close())
		}
		if s.Root != nil {
			err = errors.Join(err, s.Root.Close())
		}
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, closeAll())
		}
	}()
	plain, err := atfs.Open(b.root)
	if err != nil {
		return nil, nil, err
	}
	s.Root, err = plain.WithHook(b.hook)
	if err = errors.Join(err, plain.Close()); err != nil {
		return nil, nil, err
	}
	dir, err := s.Root.OpenDir("repo")
	if err != nil {
		return nil, nil, err
	}
	s.Repo, err = objectstore.Open(dir)
	if err = errors.Join(err, dir.Close()); err != nil {
		return nil, nil, err
	}
	s.Layers, err = layer.Open(s.Root, s.Repo, layer.Options{Journal: true})
	return s, closeAll, err
}

// check checks the store.
func (b bed) check(t *testing.T) *Report {
	t.Helper()
	s, closeAll, err := b.open()
	if err != nil {
		t.Fatal(err)
	}
	r, err := Check(t.Context(), s, Options{})
	if err := errors.Join(err, closeAll()); err != nil {
		t.Fatal(err)
	}
	return r
}

// repair checks and repairs the store. It also returns the errors of failed repairs.
func (b bed) repair(t *testing.T) (*Report, []error) {
	t.Helper()
	r, failed, err := b.tryRepair(t)
	if err != nil {
		t.Fatal(err)
	}
	return r, failed
}

func (b bed) tryRepair(t *testing.T) (_ *Report, failed []error, err error) {
	t.Helper()
	s, closeAll, err := b.open()
	if err != nil {
		return nil, nil, err
	}
	blobs := func(context.Context) content.Provider { return blob.Files(b.blobs) }
	r, err := CheckAndRepair(t.Context(), s, Options{}, blobs, func(err error) { failed = append(failed, err) })
	return r, failed, errors.Join(err, closeAll())
}

// view is all that containers see of the checkouts.
func (b bed) view(t *testing.T) map[string]string {
	t.Helper()
	seen := make(map[string]string)
	err := filepath.WalkDir(filepath.Join(b.root, "layers"), func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		// The directory of a layer, and its name tag, are not part of any checkout.
		rel, err := filepath.Rel(filepath.Join(b.root, "layers"), name)
		if err != nil || strings.Count(rel, "/") == 0 || filepath.Base(name) == "commit" {
			return err
		}
		text := fmt.Sprint(fi.Mode(), fi.ModTime())
		if fi.Mode().IsRegular() {
			content, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			text += digest.FromBytes(content).String()
		}
		seen[rel] = text
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return seen
}

func (b bed) checkRight(t *testing.T, want map[string]string) {
	t.Helper()
	if r := b.check(t); len(r.Problems) != 0 || r.Unread != nil {
		t.Errorf("check after repair: %+v, %v", r.Problems, r.Unread)
	}
	if ostree, ok := testenv.LookTool("ostree"); ok {
		if out, err := exec.CommandContext(t.Context(), ostree, "fsck", "--repo="+filepath.Join(b.root, "repo")).CombinedOutput(); err != nil {
			t.Errorf("ostree fsck: %v\n%s", err, out)
		}
	}
	got := b.view(t)
	for name, text := range want {
		if got[name] != text {
			t.Errorf("%s: got %q, want %q", name, got[name], text)
		}
	}
	if len(got) != len(want) {
		t.Errorf("checkouts have %d entries, want %d", len(got), len(want))
	}
}

// flipBit changes one bit of a file and nothing else of it.
func flipBit(t *testing.T, rnd *rand.Rand, name string) {
	t.Helper()
	fi, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	at := rnd.Int64N(fi.Size())
	var c [1]byte
	if _, err := f.ReadAt(c[:], at); err != nil {
		t.Fatal(err)
	}
	c[0] ^= 1 << rnd.IntN(8)
	if _, err := f.WriteAt(c[:], at); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(name, fi.ModTime(), fi.ModTime()); err != nil {
		t.Fatal(err)
	}
}

// One bit flipped in each of 100 random objects: Check names all of them and the layers, and a repair makes everything
// right, checkouts included. Where the commit or a tree of a layer is damaged, only that can be blamed on the layer.
func TestRepairFlippedBits(t *testing.T) {
	for seed, pattern := range []string{"*.file", "*.file", "*", "*", "*"} {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			b := newBed(t)
			want := b.view(t)
			rnd := rand.New(rand.NewPCG(uint64(seed), 1))
			objects, err := filepath.Glob(filepath.Join(b.root, "repo/objects/*", pattern))
			if err != nil {
				t.Fatal(err)
			}
			rnd.Shuffle(len(objects), func(i, j int) { objects[i], objects[j] = objects[j], objects[i] })
			objects = objects[:100]
			for _, name := range objects {
				flipBit(t, rnd, name)
			}
			r := b.check(t)
			for _, name := range objects {
				dir, base := filepath.Split(name)
				i := slices.IndexFunc(r.Problems, func(p Problem) bool { return p.Name == filepath.Base(dir)+base })
				if i < 0 || len(r.Problems[i].Layers) == 0 && pattern == "*.file" {
					t.Errorf("Check does not name %s with its layers", name)
				}
			}
			r, failed := b.repair(t)
			if len(failed) != 0 || len(r.Problems) != 0 || len(r.Repaired) < len(objects) {
				t.Errorf("repair: %d repaired, left %+v, failed %v", len(r.Repaired), r.Problems, failed)
			}
			b.checkRight(t, want)
		})
	}
}

func TestRepair(t *testing.T) {
	remove := func(pattern string) func(t *testing.T, b bed) {
		t.Helper()
		return func(t *testing.T, b bed) {
			t.Helper()
			names, err := filepath.Glob(filepath.Join(b.root, pattern))
			if err != nil || len(names) == 0 {
				t.Fatalf("%s: got %v, %v", pattern, names, err)
			}
			for _, name := range names {
				if err := os.RemoveAll(name); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	for _, tt := range []struct {
		name   string
		damage func(t *testing.T, b bed)
	}{
		{"nothing", func(*testing.T, bed) {}},
		{"content objects missing", remove("repo/objects/*/*.file")},
		{"trees missing", remove("repo/objects/*/*.dirtree")},
		{"checkouts missing", remove("layers/*")},
		{"half of a checkout missing", remove("layers/*/fs*/many")},
		{"refs missing", remove("repo/refs/heads/oci/diff")},
		{"layers lost", func(t *testing.T, b bed) {
			t.Helper()
			remove("repo/refs/heads/oci")(t, b)
			remove("repo/objects/*/*.commit")(t, b)
			remove("layers/*")(t, b)
		}},
		{"refs empty", func(t *testing.T, b bed) {
			t.Helper()
			names, err := filepath.Glob(filepath.Join(b.root, "repo/refs/heads/oci/diff/*"))
			if err != nil || len(names) == 0 {
				t.Fatal(names, err)
			}
			for _, name := range names {
				if err := os.Truncate(name, 0); err != nil {
					t.Fatal(err)
				}
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBed(t)
			want := b.view(t)
			tt.damage(t, b)
			if r, failed := b.repair(t); len(failed) != 0 || len(r.Problems) != 0 {
				t.Errorf("repair: left %+v, failed %v", r.Problems, failed)
			}
			b.checkRight(t, want)
		})
	}
}

// Damage that cannot be repaired without a blob is reported.
func TestRepairWithoutBlobs(t *testing.T) {
	for _, tt := range []struct {
		name string
		keep bool // some blobs
	}{
		{"none", false},
		{"some", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBed(t)
			names, err := filepath.Glob(filepath.Join(b.root, "repo/objects/*/*.file"))
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range names {
				if err := os.Truncate(name, 1); err != nil {
					t.Fatal(err)
				}
			}
			many, err := snaptest.MakeTar(manyFiles())
			if err != nil {
				t.Fatal(err)
			}
			blobs, err := filepath.Glob(filepath.Join(b.blobs, "blobs/sha256/*"))
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range blobs {
				if tt.keep && filepath.Base(name) == digest.FromBytes(many).Encoded() {
					continue
				}
				if err := os.Remove(name); err != nil {
					t.Fatal(err)
				}
			}
			r, failed := b.repair(t)
			if len(failed) == 0 || len(r.Problems) == 0 || tt.keep != (len(r.Repaired) > 0) {
				t.Errorf("%d repaired, %d left, failed: %v", len(r.Repaired), len(r.Problems), failed)
			}
			if !slices.ContainsFunc(r.Problems, func(p Problem) bool { return len(p.Snapshots) > 0 }) {
				t.Error("the remaining problems name no snapshots")
			}
		})
	}
}
