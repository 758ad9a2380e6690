package bench

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/snaptest"
)

const (
	scaleDepth = 5   // layers below the measured snapshots
	scaleFiles = 100 // of the layer that is added and removed
)

// BenchmarkScale measures the snapshotter's calls in stores of different sizes: of many snapshots, each with a layer of
// its own, and of many objects, in layers of 1,000 files. The stores take turns. It reports the shortest times, because
// other load makes a call slower, never faster.
func BenchmarkScale(b *testing.B) {
	for _, of := range []struct {
		name  string
		sizes []int
		files int // in a layer
		disk  string
		mkfs  []string
	}{
		{"snapshots", []int{10, 1000, 10000}, 1, "4G", []string{"-N", "500000"}},
		{"objects", []int{10_000, 100_000, 1_000_000}, 1000, "6G", []string{"-b", "1024", "-N", "1500000"}},
	} {
		b.Run(of.name, func(b *testing.B) {
			stores := make(map[int]*scaleStore)
			for _, size := range of.sizes {
				dir, remove := ramDisk(b, of.disk, of.mkfs...)
				defer remove()
				s := &scaleStore{dir: dir}
				s.open(b)
				defer func() { testenv.Must(b, s.env.Close()) }()
				start := time.Now()
				s.fill(b, size/of.files, of.files)
				b.Logf("%d %s: made in %.0f s", size, of.name, time.Since(start).Seconds())
				stores[size] = s
			}
			t := make(series)
			for i := 0; b.Loop(); i++ {
				for j := range of.sizes {
					size := of.sizes[(i+j)%len(of.sizes)] // each is first in turn
					stores[size].measure(b, t, fmt.Sprint(size))
				}
			}
			for name, d := range t {
				b.ReportMetric(float64(slices.Min(d).Microseconds()), name+"-µs")
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

type scaleStore struct {
	dir  string
	env  *snaptest.Env
	made int    // number of names used
	top  string // snapshot with scaleDepth-1 snapshots below it
}

func (s *scaleStore) open(b *testing.B) {
	b.Helper()
	var err error
	s.env, err = snaptest.OpenWith(b.Context(), s.dir, layer.Options{Journal: true})
	testenv.Must(b, err)
}

func (s *scaleStore) name(prefix string) string {
	s.made++
	return fmt.Sprintf("%s-%d", prefix, s.made)
}

// layerTar returns a tar of small files with unique contents.
func layerTar(b *testing.B, seed string, files int) []byte {
	b.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for i := range files {
		text := fmt.Sprintf("file %d of %s\n", i, seed)
		name := fmt.Sprintf("%02x/%s-%d", i%64, strings.ReplaceAll(seed, "/", "_"), i)
		testenv.Must(b, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(text)), Mode: 0o644, ModTime: time.Unix(1700000000, 0)}))
		_, err := w.Write([]byte(text))
		testenv.Must(b, err)
	}
	testenv.Must(b, w.Close())
	return buf.Bytes()
}

// fill makes chains of scaleDepth snapshots.
func (s *scaleStore) fill(b *testing.B, snapshots, files int) {
	b.Helper()
	parent := ""
	for i := range snapshots {
		key, name := s.name("extract"), s.name("layer")
		s.apply(b, key, parent, layerTar(b, fmt.Sprint("layer ", i), files))
		testenv.Must(b, s.env.Commit(b.Context(), name, key))
		switch i % scaleDepth {
		case scaleDepth - 1:
			s.top, parent = name, ""
		default:
			parent = name
		}
	}
	testenv.Must(b, errors.Join(s.env.Cleanup(b.Context()), s.env.Store.Sync(b.Context())))
}

// apply makes an active snapshot and applies a layer to it.
func (s *scaleStore) apply(b *testing.B, key, parent string, tar []byte) {
	b.Helper()
	mounts, err := s.env.Prepare(b.Context(), key, parent)
	testenv.Must(b, err)
	id, _, err := s.env.Locate(b.Context(), mounts)
	testenv.Must(b, err)
	held, err := s.env.Store.Import(b.Context(), bytes.NewReader(tar), layer.ImportOptions{})
	testenv.Must(b, err)
	testenv.Must(b, errors.Join(s.env.AddLayer(b.Context(), id, held, false), held.Release()))
}

// measure makes every call once and adds the times to t.
func (s *scaleStore) measure(b *testing.B, t series, size string) {
	b.Helper()
	ctx := b.Context()
	e := s.env
	timed := func(what string, f func() error) { t.time(b, what+"-"+size, f) }
	active, view := s.name("active"), s.name("view")
	timed("prepare", func() error { _, err := e.Prepare(ctx, active, s.top); return err })
	timed("view", func() error { _, err := e.View(ctx, view, s.top); return err })
	timed("mounts", func() error { _, err := e.Mounts(ctx, active); return err })
	timed("remove-active", func() error { return e.Remove(ctx, active) })
	testenv.Must(b, e.Remove(ctx, view))

	key, name := s.name("extract"), s.name("layer")
	text := layerTar(b, name, scaleFiles)
	timed("apply", func() error { s.apply(b, key, s.top, text); return nil })
	timed("commit", func() error { return e.Commit(ctx, name, key) })
	testenv.Must(b, e.Cleanup(ctx))
	timed("cleanup-nothing", func() error { return e.Cleanup(ctx) })
	timed("remove", func() error { return e.Remove(ctx, name) })
	timed("cleanup", func() error { return e.Cleanup(ctx) })

	key = s.name("extract")
	s.apply(b, key, s.top, layerTar(b, key, scaleFiles))
	testenv.Must(b, e.Remove(ctx, key))
	var plan *layer.PrunePlan
	timed("plan", func() (err error) { plan, err = e.Store.PlanPrune(ctx, e.Live); return err })
	timed("execute", func() error { // holds the exclusive lock for most of it
		stats, err := plan.Execute(ctx)
		if stats.Layers != 1 || stats.Objects < scaleFiles {
			return errors.Join(err, fmt.Errorf("pruned %+v, want one layer", stats))
		}
		return err
	})
	testenv.Must(b, e.Store.Sync(ctx))
	testenv.Must(b, e.Close())
	timed("start", func() error { s.open(b); return nil })
	testenv.Must(b, s.env.Cleanup(ctx))
}
