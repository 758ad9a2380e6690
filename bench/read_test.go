package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/composefsmount"
)

// BenchmarkRead compares work on the files of an image, on containerd's overlayfs snapshotter and on both kinds of our
// checkouts: mounting it the first time and the 100th, visiting every file, and reading every file. Everything is in
// the page cache. Ratios are to overlayfs.
func BenchmarkRead(b *testing.B) {
	blob := layerBlob(b, "base:1")
	s := make(map[string]series)
	for b.Loop() {
		for name, open := range map[string]func(*testing.B, string, string) (snapshots.Snapshotter, func()){
			"overlayfs": openOverlayfs,
			"composefs": func(b *testing.B, dir, blob string) (snapshots.Snapshotter, func()) {
				b.Helper()
				return openOurs(b, dir, blob, true)
			},
			"hardlink": func(b *testing.B, dir, blob string) (snapshots.Snapshotter, func()) {
				b.Helper()
				return openOurs(b, dir, blob, false)
			},
		} {
			dir, remove := freshDisk(b, "4G")
			sn, closeIt := open(b, dir, blob)
			target := b.TempDir()
			use := func(what, key string) {
				if s[what] == nil {
					s[what] = make(series)
				}
				s[what].time(b, name, func() error {
					m, err := sn.Prepare(b.Context(), key, "image")
					if err != nil {
						return err
					}
					return mount.All(m, target)
				})
			}
			use("first", "c0")
			for what, visit := range map[string]func(string, fs.DirEntry) error{"stat": lookAt, "read": readAll} {
				testenv.Must(b, walk(target, visit)) // fill the caches
				if s[what] == nil {
					s[what] = make(series)
				}
				s[what].time(b, name, func() error { return errors.Join(walk(target, visit), walk(target, visit), walk(target, visit)) })
			}
			testenv.Must(b, mount.UnmountAll(target, 0))
			for i := 1; i < 99; i++ {
				m, err := sn.Prepare(b.Context(), fmt.Sprintf("c%d", i), "image")
				testenv.Must(b, err)
				testenv.Must(b, errors.Join(mount.All(m, target), mount.UnmountAll(target, 0)))
			}
			use("100th", "c99")
			testenv.Must(b, mount.UnmountAll(target, 0))
			for i := range 100 {
				testenv.Must(b, sn.Remove(b.Context(), fmt.Sprintf("c%d", i)))
			}
			if c, ok := sn.(snapshots.Cleaner); ok {
				testenv.Must(b, c.Cleanup(b.Context()))
			}
			closeIt()
			remove()
		}
	}
	for what, times := range s {
		b.Run(what, func(b *testing.B) {
			for range b.N {
				times.report(b, "overlayfs")
			}
		})
	}
}

func walk(root string, visit func(string, fs.DirEntry) error) error {
	return filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return visit(name, d)
	})
}

func lookAt(name string, _ fs.DirEntry) error {
	var st unix.Stat_t
	return unix.Lstat(name, &st)
}

func readAll(name string, d fs.DirEntry) (err error) {
	if !d.Type().IsRegular() {
		return nil
	}
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, struct{ io.Reader }{f})
	return errors.Join(err, f.Close())
}

// openOverlayfs unpacks a blob into a snapshot "image" of containerd's overlayfs snapshotter.
func openOverlayfs(b *testing.B, dir, blob string) (snapshots.Snapshotter, func()) {
	b.Helper()
	sn, err := overlay.NewSnapshotter(dir)
	testenv.Must(b, err)
	m, err := sn.Prepare(b.Context(), "unpack", "")
	testenv.Must(b, err)
	r, err := klauspost(b.Context(), blob)
	testenv.Must(b, err)
	testenv.Must(b, mount.WithTempMount(b.Context(), m, func(root string) error {
		_, err := archive.Apply(b.Context(), root, r)
		return err
	}))
	testenv.Must(b, errors.Join(r.Close(), sn.Commit(b.Context(), "image", "unpack")))
	return sn, func() { testenv.Must(b, sn.Close()) }
}

// openOurs does the same with our snapshotter.
func openOurs(b *testing.B, dir, blob string, composefs bool) (snapshots.Snapshotter, func()) {
	b.Helper()
	store := openStore(b, dir)
	root, err := atfs.Open(dir)
	testenv.Must(b, err)
	var opts []snapshotter.Option
	if composefs {
		support, err := composefsmount.Probe(root)
		testenv.Must(b, err)
		opts = append(opts, snapshotter.WithComposefs(support))
	}
	sn, err := snapshotter.New(b.Context(), root, store, opts...)
	testenv.Must(b, err)
	key := "default/1/extract-1 x"
	m, err := sn.Prepare(b.Context(), key, "")
	testenv.Must(b, err)
	testenv.Must(b, unpackOurs(b.Context(), sn, store, m, blob))
	testenv.Must(b, sn.Commit(b.Context(), "image", key))
	return sn, func() {
		testenv.Must(b, errors.Join(sn.Close(), root.Close(), store.Close(), store.Repo().Close()))
	}
}

func unpackOurs(ctx context.Context, sn *snapshotter.Snapshotter, store *layer.Store, m []mount.Mount, blob string) error {
	id, _, err := sn.Locate(ctx, m)
	if err != nil {
		return err
	}
	r, err := klauspost(ctx, blob)
	if err != nil {
		return err
	}
	held, err := store.Import(ctx, r, layer.ImportOptions{})
	if err = errors.Join(err, r.Close()); err != nil {
		return err
	}
	return errors.Join(sn.AddLayer(ctx, id, held, false), held.Release())
}
