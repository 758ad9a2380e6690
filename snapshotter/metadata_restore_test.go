package snapshotter_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	"github.com/sirupsen/logrus"
	bolt "go.etcd.io/bbolt"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/snaptest"
)

// rows returns the names of all snapshots.
func rows(tb testing.TB, e *snaptest.Env) []string {
	tb.Helper()
	var names []string
	testenv.Must(tb, e.Walk(tb.Context(), func(_ context.Context, info snapshots.Info) error {
		names = append(names, info.Name)
		return nil
	}))
	slices.Sort(names)
	return names
}

// writeInto writes a file into an active snapshot, as its container does.
func writeInto(tb testing.TB, e *snaptest.Env, key, content string) {
	tb.Helper()
	m, err := e.Mounts(tb.Context(), key)
	testenv.Must(tb, err)
	target, unmount := snaptest.Mount(tb, m)
	testenv.Must(tb, os.WriteFile(filepath.Join(target, "written"), []byte(content), 0o600))
	unmount()
}

// lostEnv returns a closed store. Its copy of metadata.db has the image and the container "copied", but not "late",
// which has content, and "unused", which has none.
func lostEnv(t *testing.T) (path string, img image) {
	t.Helper()
	testenv.NeedsRoot(t)
	path = t.TempDir()
	e, err := snaptest.Open(t.Context(), path)
	testenv.Must(t, err)
	img = newImage(t)
	top := img.unpackAll(t, e)
	prepare(t, e, "copied", top)
	writeInto(t, e, "copied", "in time")
	testenv.Must(t, e.CopyMetadata())
	data, err := os.ReadFile(filepath.Join(path, snapshotter.MetadataCopy))
	testenv.Must(t, err)
	prepare(t, e, "late", top)
	writeInto(t, e, "late", "too late")
	prepare(t, e, "unused", top)
	testenv.Must(t, e.Close())
	testenv.Must(t, os.WriteFile(filepath.Join(path, snapshotter.MetadataCopy), data, 0o600))
	return path, img
}

// damages are ways to lose a database.
var damages = []struct {
	name   string
	damage func(name string) error
	kept   bool // set aside
}{
	{"deleted", os.Remove, false},
	{"empty", func(name string) error { return os.Truncate(name, 0) }, true},
	{"cut", func(name string) error { return os.Truncate(name, 3*4096+100) }, true},
	{"garbage", func(name string) error {
		return os.WriteFile(name, bytes.Repeat([]byte("no database. "), 5000), 0o600)
	}, true},
	{"garbage behind the first pages", func(name string) error {
		b, err := os.ReadFile(name)
		for i := 2 * 4096; i < len(b); i++ {
			b[i] = byte(rand.Uint32())
		}
		return errors.Join(err, os.WriteFile(name, b, 0o600))
	}, true},
}

// TestSweepOfDamagedMetadata checks that a container's files are not taken for garbage because metadata.db is damaged.
func TestSweepOfDamagedMetadata(t *testing.T) {
	for _, tt := range damages {
		t.Run(tt.name, func(t *testing.T) {
			path, _ := lostEnv(t)
			testenv.Must(t, tt.damage(filepath.Join(path, "metadata.db")))
			before, err := os.ReadDir(filepath.Join(path, "snapshots"))
			testenv.Must(t, err)
			root, err := atfs.Open(path)
			testenv.Must(t, err)
			defer root.Close()
			swept, err := snapshotter.Sweep(t.Context(), root, false)
			if tt.kept && !errdefs.IsDataLoss(err) || !tt.kept && (err != nil || len(swept.Orphans) != 0) {
				t.Errorf("Sweep: got %+v, %v", swept, err)
			}
			after, err := os.ReadDir(filepath.Join(path, "snapshots"))
			testenv.Must(t, err)
			if len(after) != len(before) {
				t.Errorf("%d directories are left of %d", len(after), len(before))
			}
		})
	}
}

// TestMetadataIsRestored checks that the copy replaces metadata.db in whatever way it is lost: copied snapshots work
// on, and directories of the others are kept.
func TestMetadataIsRestored(t *testing.T) {
	for _, tt := range damages {
		t.Run(tt.name, func(t *testing.T) {
			path, img := lostEnv(t)
			testenv.Must(t, tt.damage(filepath.Join(path, "metadata.db")))
			before, _ := os.ReadFile(filepath.Join(path, "metadata.db"))
			ctx, text := logged(t.Context())
			e, err := snaptest.Open(ctx, path)
			testenv.Must(t, err)
			defer func() { testenv.Must(t, e.Close()) }()
			if n := strings.Count(text.String(), "its copy takes its place"); n != 1 || !strings.Contains(text.String(), "snapshots=3") || !strings.Contains(text.String(), "age=") {
				t.Errorf("log says so %d times, want once, with the number of snapshots and the age:\n%s", n, text)
			}
			t.Run("copied snapshots work", func(t *testing.T) {
				if got, want := rows(t, e), 3; len(got) != want {
					t.Errorf("got snapshots %q, want %d", got, want)
				}
				m, err := e.Mounts(t.Context(), "copied")
				testenv.Must(t, err)
				target, unmount := snaptest.Mount(t, m)
				want := maps.Clone(imageFiles)
				want["written"] = "in time"
				wantFiles(t, files(t, target), want)
				unmount()
			})
			t.Run("lost directories are kept", func(t *testing.T) {
				wantLost(t, e, text, map[string]string{"late": "too late"})
			})
			t.Run("damaged file is kept", func(t *testing.T) {
				aside, err := filepath.Glob(filepath.Join(path, "metadata.db.damaged-*"))
				testenv.Must(t, err)
				if (len(aside) == 1) != tt.kept {
					t.Errorf("set aside: got %q, want one: %v", aside, tt.kept)
				}
				for _, name := range aside {
					if b, err := os.ReadFile(name); err != nil || !bytes.Equal(b, before) {
						t.Errorf("%s: got %d bytes, %v, want the %d that were there", name, len(b), err, len(before))
					}
				}
			})
			t.Run("IDs of lost snapshots are used again", func(t *testing.T) {
				for i := range 4 {
					key := fmt.Sprintf("new-%d", i)
					prepare(t, e, key, img.name(1))
					writeInto(t, e, key, key)
				}
				testenv.Must(t, e.Cleanup(t.Context()))
				wantLost(t, e, text, map[string]string{"late": "too late"})
				wantFiles(t, view(t, e, img.name(1)), imageFiles)
			})
			testenv.Must(t, e.Close())
			ctx, text = logged(context.WithoutCancel(t.Context()))
			e, err = snaptest.Open(ctx, path)
			testenv.Must(t, err)
			t.Run("next start", func(t *testing.T) {
				if text.Len() > 0 {
					t.Errorf("logs\n%s", text)
				}
				wantLost(t, e, nil, map[string]string{"late": "too late"})
			})
			t.Run("all removed", func(t *testing.T) {
				for _, key := range []string{"copied", "new-0", "new-1", "new-2", "new-3", img.name(1), img.name(0)} {
					testenv.Must(t, e.Remove(t.Context(), key))
				}
				testenv.Must(t, e.Cleanup(t.Context()))
				if ls, err := e.Store.Layers(t.Context()); err != nil || len(ls) != 0 {
					t.Errorf("there are layers %v, %v", ls, err)
				}
			})
		})
	}
}

// wantLost checks that lost/ has exactly the directories with these contents of the file written, and that the log, if
// given, names each.
func wantLost(t *testing.T, e *snaptest.Env, text *bytes.Buffer, want map[string]string) {
	t.Helper()
	dirs, err := filepath.Glob(filepath.Join(e.Path, "lost", "*"))
	testenv.Must(t, err)
	var got []string
	for _, dir := range dirs {
		b, err := os.ReadFile(filepath.Join(dir, "fs/written"))
		testenv.Must(t, err)
		got = append(got, string(b))
		if text != nil && !strings.Contains(text.String(), "lost/"+filepath.Base(dir)) {
			t.Errorf("log does not name %s:\n%s", dir, text)
		}
	}
	slices.Sort(got)
	if w := slices.Sorted(maps.Values(want)); !slices.Equal(got, w) {
		t.Errorf("lost/ has %q, want %q", got, w)
	}
	if len(dirs) == 0 {
		return
	}
	if fi, err := os.Stat(filepath.Join(e.Path, "lost")); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("lost/ is %v, %v, want mode 700", fi, err)
	}
}

// TestMetadataIsLost checks that without a usable copy the store starts empty. It keeps what containers wrote, and the
// layers until a pull finds them again.
func TestMetadataIsLost(t *testing.T) {
	for _, tt := range damages {
		t.Run(tt.name, func(t *testing.T) {
			path, img := lostEnv(t)
			testenv.Must(t, os.Remove(filepath.Join(path, "metadata.db")))
			testenv.Must(t, tt.damage(filepath.Join(path, snapshotter.MetadataCopy)))
			ctx, text := logged(t.Context())
			e, err := snaptest.Open(ctx, path)
			testenv.Must(t, err)
			defer func() { testenv.Must(t, e.Close()) }()
			if n := strings.Count(text.String(), "the store starts empty"); n != 1 {
				t.Errorf("log says so %d times, want once:\n%s", n, text)
			}
			if got := rows(t, e); len(got) != 0 {
				t.Errorf("got snapshots %q, want none", got)
			}
			kept := map[string]string{"copied": "in time", "late": "too late"}
			wantLost(t, e, text, kept)
			aside, err := filepath.Glob(filepath.Join(path, snapshotter.MetadataCopy+".damaged-*"))
			if err != nil || (len(aside) == 1) != tt.kept {
				t.Errorf("set aside: got %q, %v, want one: %v", aside, err, tt.kept)
			}
			testenv.Must(t, e.Cleanup(t.Context()))
			for _, diffID := range img.chain {
				held, err := e.Store.Acquire(t.Context(), diffID)
				testenv.Must(t, err)
				testenv.Must(t, held.Release())
			}
			top := img.unpackAll(t, e)
			wantFiles(t, view(t, e, top), imageFiles)
			prepare(t, e, "container", top)
			wantLost(t, e, nil, kept)
			for _, name := range []string{"container", top, img.name(0)} {
				testenv.Must(t, e.Remove(t.Context(), name))
			}
			testenv.Must(t, e.Cleanup(t.Context()))
			if ls, err := e.Store.Layers(t.Context()); err != nil || len(ls) != 0 {
				t.Errorf("after all is removed there are layers %v, %v", ls, err)
			}
		})
	}
}

// TestNewStore checks that a new store has lost nothing, even if it was killed before metadata.db had any content.
func TestNewStore(t *testing.T) {
	testenv.NeedsRoot(t)
	for _, size := range []int64{-1, 0} {
		path := t.TempDir()
		if size >= 0 {
			testenv.Must(t, os.WriteFile(filepath.Join(path, "metadata.db"), nil, 0o600))
		}
		ctx, text := logged(t.Context())
		e, err := snaptest.Open(ctx, path)
		testenv.Must(t, err)
		prepare(t, e, "container", "")
		testenv.Must(t, e.Close())
		if text.Len() > 0 {
			t.Errorf("size %d: log has\n%s", size, text)
		}
		ents, err := filepath.Glob(filepath.Join(path, "*.*"))
		if err != nil || len(ents) != 2 {
			t.Errorf("got files %q, %v, want metadata.db and its copy", ents, err)
		}
	}
}

// TestMetadataInUse checks that a database locked by another process, or unreadable, does not count as damaged and
// stays in place.
func TestMetadataInUse(t *testing.T) {
	path, _ := lostEnv(t)
	db, err := bolt.Open(filepath.Join(path, "metadata.db"), 0o600, nil)
	testenv.Must(t, err)
	defer db.Close()
	if e, err := snaptest.Open(t.Context(), path); err == nil {
		t.Error("opened a database that is in use")
		testenv.Must(t, e.Close())
	}
	if names, err := filepath.Glob(filepath.Join(path, "*.damaged-*")); err != nil || len(names) != 0 {
		t.Errorf("set aside: %q, %v", names, err)
	}
}

// newDatabase creates a metadata.db with n committed snapshots, each with the labels of one, in one transaction.
func newDatabase(tb testing.TB, name string, n int) {
	tb.Helper()
	ms, err := storage.NewMetaStore(name)
	testenv.Must(tb, err)
	parent := ""
	testenv.Must(tb, ms.WithTransaction(tb.Context(), true, func(ctx context.Context) error {
		for i := range n {
			id := digest.FromString(fmt.Sprint(i))
			key, name := fmt.Sprintf("default/%d/extract-1 %s", 2*i, id), fmt.Sprintf("default/%d/%s", 2*i+1, id)
			if i%8 == 0 {
				parent = ""
			}
			if _, err := storage.CreateSnapshot(ctx, snapshots.KindActive, key, parent); err != nil {
				return err
			}
			labels := snapshots.WithLabels(map[string]string{
				snapshots.LabelSnapshotRef: id.String(), snapshotter.LabelLayer: id.Encoded(), snapshotter.LabelBlob: id.String(),
				snapshotter.LabelChainID: id.String(), snapshotter.LabelCheckout: "layers/" + id.Encoded()[:16] + "/fs",
			})
			if _, err := storage.CommitActive(ctx, key, name, snapshots.Usage{Size: int64(i), Inodes: 1}, labels); err != nil {
				return err
			}
			parent = name
		}
		return nil
	}))
	testenv.Must(tb, ms.Close())
}

// TestCopyBlocksNobody checks that snapshots are created, committed and mounted, and the database grows, while a copy
// is written to the disk.
func TestCopyBlocksNobody(t *testing.T) {
	testenv.NeedsRoot(t)
	reached, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	e, err := openHooked(t, t.TempDir(), func(op atfs.Op, name string) error {
		if op == atfs.OpSync && strings.HasPrefix(name, snapshotter.MetadataCopy) {
			once.Do(func() {
				close(reached)
				<-release
			})
		}
		return nil
	})
	testenv.Must(t, err)
	defer func() { testenv.Must(t, e.Close()) }()
	prepare(t, e, "first", "")
	done := make(chan error, 1)
	go func() { done <- e.CopyMetadata() }()
	<-reached
	large := snapshots.WithLabels(map[string]string{"large": strings.Repeat("x", 3000)})
	for i := range 100 {
		key := fmt.Sprint(i)
		prepare(t, e, key, "", large)
		if i%10 == 0 {
			commit(t, e, "c"+key, key)
		}
	}
	if _, err := e.Mounts(t.Context(), "first"); err != nil {
		t.Error(err)
	}
	close(release)
	testenv.Must(t, <-done)
	ms, err := storage.NewMetaStore(filepath.Join(e.Path, snapshotter.MetadataCopy))
	testenv.Must(t, err)
	testenv.Must(t, ms.WithTransaction(t.Context(), false, func(ctx context.Context) error {
		if _, _, _, err := storage.GetInfo(ctx, "first"); err != nil {
			t.Errorf("what was there when the copy was begun: %v", err)
		}
		if _, _, _, err := storage.GetInfo(ctx, "1"); err == nil {
			t.Error("the copy has what came after it was begun")
		}
		return nil
	}))
	testenv.Must(t, ms.Close())
}

func openHooked(t *testing.T, path string, hook atfs.Hook) (*snaptest.Env, error) {
	t.Helper()
	plain, err := atfs.Open(path)
	testenv.Must(t, err)
	defer plain.Close()
	root, err := plain.WithHook(hook)
	testenv.Must(t, err)
	return snaptest.OpenAt(t.Context(), root, layer.Options{})
}

var errInjected = errors.New("injected fault")

// faults fails the n-th operation and, with all, every later one, as if the process had ended there.
type faults struct {
	mu     sync.Mutex
	n      int
	all    bool
	failed string
}

func (f *faults) hook(op atfs.Op, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.n--; f.n == 0 {
		f.failed = fmt.Sprintf("%s %s", op, name)
	}
	if f.n == 0 || f.n < 0 && f.all && f.failed != "" {
		return errInjected
	}
	return nil
}

func (f *faults) arm(n int, all bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.n, f.all, f.failed = n, all, ""
}

// sweep calls run with a fault at the first operation, then at the second and so on, until no operation is left to
// fail.
func sweep(t *testing.T, least int, run func(t *testing.T, f *faults, n int, all bool)) {
	t.Helper()
	for _, all := range []bool{false, true} {
		for n := 1; ; n++ {
			f := &faults{}
			ok := t.Run(fmt.Sprintf("operation %d and all after it %v", n, all), func(t *testing.T) { run(t, f, n, all) })
			if !ok {
				return
			}
			if f.failed == "" {
				if n < least {
					t.Errorf("got %d operations, want at least %d", n, least)
				}
				break
			}
		}
	}
}

// TestCopyFaults checks that a whole copy exists whatever fails while it is written: the old or the new one.
func TestCopyFaults(t *testing.T) {
	testenv.NeedsRoot(t)
	sweep(t, 6, func(t *testing.T, f *faults, n int, all bool) {
		t.Helper()
		path := t.TempDir()
		e, err := openHooked(t, path, f.hook)
		testenv.Must(t, err)
		prepare(t, e, "first", "")
		testenv.Must(t, e.CopyMetadata())
		prepare(t, e, "second", "")
		f.arm(n, all)
		err = e.CopyMetadata()
		failed := f.failed
		f.arm(-1, false)
		if (err != nil) != (failed != "") || err != nil && !errors.Is(err, errInjected) {
			t.Errorf("%s failed: got error %v", failed, err)
		}
		if err := e.CheckCopy(); err != nil {
			t.Errorf("%s failed: copy: %v", failed, err)
		}
		testenv.Must(t, e.Close())
		f.failed = failed
		again, err := snaptest.Open(t.Context(), path)
		testenv.Must(t, err)
		defer func() { testenv.Must(t, again.Close()) }()
		names, err := filepath.Glob(filepath.Join(path, "*.tmp-*"))
		if err != nil || len(names) != 0 {
			t.Errorf("%s failed: after the next start %q, %v is left", failed, names, err)
		}
	})
}

// TestRestoreFaults checks that whatever fails while metadata.db is restored, and wherever the process ends then, the
// next start restores it and keeps what containers wrote.
func TestRestoreFaults(t *testing.T) {
	for _, tt := range damages[:2] {
		t.Run(tt.name, func(t *testing.T) {
			sweep(t, 12, func(t *testing.T, f *faults, n int, all bool) {
				t.Helper()
				path, img := lostEnv(t)
				testenv.Must(t, tt.damage(filepath.Join(path, "metadata.db")))
				f.arm(n, all)
				e, err := openHooked(t, path, f.hook)
				failed := f.failed
				f.arm(-1, false)
				if err == nil {
					testenv.Must(t, e.Close())
				} else if !errors.Is(err, errInjected) {
					t.Errorf("%s failed: got error %v", failed, err)
				}
				e, err = snaptest.Open(t.Context(), path)
				if err != nil {
					t.Fatalf("%s failed: the next start: %v", failed, err)
				}
				defer func() { testenv.Must(t, e.Close()) }()
				if got := rows(t, e); len(got) != 3 {
					t.Errorf("%s failed: got snapshots %q, want 3", failed, got)
				}
				testenv.Must(t, e.Cleanup(t.Context()))
				wantLost(t, e, nil, map[string]string{"late": "too late"})
				wantFiles(t, view(t, e, img.name(1)), imageFiles)
				f.failed = failed
			})
		})
	}
}

// BenchmarkCopyMetadata copies metadata.db with 10,000 snapshots, and checks it as every start does.
func BenchmarkCopyMetadata(b *testing.B) {
	testenv.NeedsRoot(b)
	path := b.TempDir()
	newDatabase(b, filepath.Join(path, "metadata.db"), 10_000)
	logger := logrus.New()
	logger.SetLevel(logrus.PanicLevel)
	e, err := snaptest.Open(log.WithLogger(b.Context(), logrus.NewEntry(logger)), path)
	testenv.Must(b, err)
	defer func() { testenv.Must(b, e.Close()) }()
	b.Run("copy", func(b *testing.B) {
		for b.Loop() {
			testenv.Must(b, e.CopyMetadata())
		}
		fi, err := os.Stat(filepath.Join(path, snapshotter.MetadataCopy))
		testenv.Must(b, err)
		b.ReportMetric(float64(fi.Size()), "bytes/copy")
	})
	b.Run("check", func(b *testing.B) {
		for b.Loop() {
			testenv.Must(b, e.CheckCopy())
		}
	})
}
