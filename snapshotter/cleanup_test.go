package snapshotter_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/snaptest"
)

// TestCleanupGoesOn removes containers of which one has protected its files as chattr(1) does, and one has a foreign mount
// in its upper directory: all but that one go, with the image, and it goes once the mount has gone.
func TestCleanupGoesOn(t *testing.T) {
	e := snaptest.New(t)
	img := newImage(t)
	name := img.unpackAll(t, e)
	upper := make(map[string]string)
	for _, key := range []string{"frozen", "mounted", "plain"} {
		before, err := filepath.Glob(filepath.Join(e.Path, snapshotter.SnapshotsDir, "*/fs"))
		testenv.Must(t, err)
		prepare(t, e, key, name)
		after, err := filepath.Glob(filepath.Join(e.Path, snapshotter.SnapshotsDir, "*/fs"))
		testenv.Must(t, err)
		for _, dir := range after {
			if !strings.Contains(strings.Join(before, "\n"), dir) {
				upper[key] = dir
			}
		}
	}
	for _, dir := range []string{upper["frozen"] + "/dir", upper["mounted"] + "/mnt"} {
		testenv.Must(t, os.Mkdir(dir, 0o755))
		testenv.Must(t, os.WriteFile(dir+"/file", []byte("text"), 0o644))
	}
	testenv.SetFlags(t, upper["frozen"]+"/dir/file", testenv.Immutable)
	testenv.SetFlags(t, upper["frozen"]+"/dir", testenv.AppendOnly)
	testenv.Must(t, unix.Mount("tmpfs", upper["mounted"]+"/mnt", "tmpfs", 0, ""))
	testenv.Must(t, os.WriteFile(upper["mounted"]+"/mnt/precious", nil, 0o600))
	unmount := func() error {
		var errs []error
		for _, pattern := range []string{"snapshots/*/fs/mnt", "tmp/*/fs/mnt"} {
			names, err := filepath.Glob(filepath.Join(e.Path, pattern))
			errs = append(errs, err)
			for _, name := range names {
				errs = append(errs, unix.Unmount(name, 0))
			}
		}
		return errors.Join(errs...)
	}
	t.Cleanup(func() { _ = unmount() })

	for _, key := range []string{"mounted", "frozen", "plain"} {
		testenv.Must(t, e.Remove(t.Context(), key))
	}
	for i := len(img.tars); i > 0; i-- {
		testenv.Must(t, e.Remove(t.Context(), img.unpacked(i)))
	}
	err := e.Cleanup(t.Context())
	if !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), "/fs/mnt") || strings.Count(err.Error(), "\n") > 0 {
		t.Errorf("got %v, want that /fs/mnt alone is busy", err)
	}
	if left, err := filepath.Glob(filepath.Join(e.Path, "tmp/*/fs/*/*")); err != nil || len(left) != 1 || filepath.Base(left[0]) != "precious" {
		t.Errorf("left of upper directories: %q (%v), want the file on the mount", left, err)
	}
	wantEmpty := func(patterns ...string) {
		t.Helper()
		for _, pattern := range patterns {
			if left, err := filepath.Glob(filepath.Join(e.Path, pattern)); err != nil || len(left) > 0 {
				t.Errorf("left: %q (%v)", left, err)
			}
		}
	}
	wantEmpty("repo/objects/??/*", "snapshots/*", "layers/*", "rootfs/*", "mounts/*")

	testenv.Must(t, unmount())
	testenv.Must(t, e.Cleanup(t.Context()))
	wantEmpty("tmp/*")
}

// TestStuckFiles: files that cannot be removed, whatever the reason, keep no verb from doing the rest. They are named,
// and go once the reason has gone.
func TestStuckFiles(t *testing.T) {
	testenv.NeedsRoot(t)
	leftovers := []string{"snapshots/99/fs", "tmp/snapshot-new-x/fs", "tmp/snapshot-old-x/fs", "tmp/checkout-x/fs"}
	causes := map[string]struct {
		err   error
		start func(t *testing.T, name string)
	}{
		"mount": {unix.EBUSY, func(t *testing.T, name string) {
			t.Helper()
			testenv.Must(t, os.Mkdir(name, 0o755))
			testenv.Must(t, unix.Mount("tmpfs", name, "tmpfs", 0, ""))
		}},
		"bad disk": {unix.EIO, func(t *testing.T, name string) {
			t.Helper()
			testenv.Must(t, os.WriteFile(name, nil, 0o600))
		}},
	}
	// A verb returns the leftovers that are not its to remove, and the error that names what it could not remove.
	verbs := map[string]func(t *testing.T, root *atfs.Dir) (others []string, err error){
		"start": func(t *testing.T, root *atfs.Dir) (others []string, err error) {
			t.Helper()
			ctx, text := logged(t.Context())
			e, err := snaptest.OpenAt(ctx, root, layer.Options{})
			testenv.Must(t, err)
			testenv.Must(t, e.Close())
			return []string{"tmp/snapshot-old-"}, errors.New(text.String())
		},
		"Cleanup": func(t *testing.T, root *atfs.Dir) (others []string, err error) {
			t.Helper()
			e, err := snaptest.OpenAt(t.Context(), root, layer.Options{})
			testenv.Must(t, err)
			err = e.Cleanup(t.Context())
			testenv.Must(t, e.Close())
			return nil, err
		},
		"Sweep": func(t *testing.T, root *atfs.Dir) (others []string, err error) {
			t.Helper()
			swept, err := snapshotter.Sweep(t.Context(), root, false)
			if !errors.Is(err, objectstore.ErrNotRemoved) || swept == nil || swept.Bytes == 0 {
				t.Errorf("got %+v, %v, want a result with %v", swept, err, objectstore.ErrNotRemoved)
			}
			return []string{"tmp/checkout-x"}, err
		},
	}
	for verb, run := range verbs {
		for name, cause := range causes {
			t.Run(verb+"/"+name, func(t *testing.T) {
				path := t.TempDir()
				e, err := snaptest.Open(t.Context(), path)
				testenv.Must(t, err)
				prepare(t, e, "container", "")
				testenv.Must(t, e.Close())
				for _, dir := range leftovers {
					testenv.Must(t, os.MkdirAll(filepath.Join(path, dir), 0o700))
					testenv.Must(t, os.WriteFile(filepath.Join(path, dir, "free"), []byte("text"), 0o600))
					cause.start(t, filepath.Join(path, dir, "stuck"))
				}
				find := func(base string) []string {
					var found []string
					for _, pattern := range []string{"snapshots/*/fs/", "tmp/*/fs/"} {
						names, err := filepath.Glob(filepath.Join(path, pattern+base))
						testenv.Must(t, err)
						found = append(found, names...)
					}
					return found
				}
				unmount := func() {
					for _, name := range find("stuck") {
						_ = unix.Unmount(name, unix.MNT_DETACH)
					}
				}
				t.Cleanup(unmount)

				broken := true
				open := func() *atfs.Dir {
					plain, err := atfs.Open(path)
					testenv.Must(t, err)
					defer plain.Close()
					root, err := plain.WithHook(func(op atfs.Op, name string) error {
						if broken && op == atfs.OpUnlink && filepath.Base(name) == "stuck" {
							return cause.err
						}
						return nil
					})
					testenv.Must(t, err)
					t.Cleanup(func() { _ = root.Close() })
					return root
				}
				others, got := run(t, open())
				if got == nil || !strings.Contains(got.Error(), "/fs/stuck") || !strings.Contains(got.Error(), cause.err.Error()) {
					t.Errorf("got error %v, want %v for a file stuck", got, cause.err)
				}
				for _, name := range find("free") {
					if !slices.ContainsFunc(others, func(other string) bool { return strings.Contains(name, other) }) {
						t.Errorf("%s is left", name)
					}
				}
				if n := len(find("stuck")); n != len(leftovers) {
					t.Errorf("%d files are stuck, want %d", n, len(leftovers))
				}

				unmount()
				broken = false
				again, err := snaptest.OpenAt(t.Context(), open(), layer.Options{})
				testenv.Must(t, err)
				testenv.Must(t, again.Cleanup(t.Context()))
				if left := find("*"); len(left) > 0 {
					t.Errorf("left: %q", left)
				}
				activeFiles(t, again, "container")
				testenv.Must(t, again.Close())
			})
		}
	}
}

// TestStuckMount: a mount directory of ours that cannot be removed is named like any other file, and goes once the reason has
// gone.
func TestStuckMount(t *testing.T) {
	e := snaptest.New(t)
	stuck := filepath.Join(e.Path, snapshotter.MountsDir, "99", "stuck")
	testenv.Must(t, os.MkdirAll(stuck, 0o700))
	testenv.Must(t, unix.Mount("tmpfs", stuck, "tmpfs", 0, ""))
	t.Cleanup(func() { _ = unix.Unmount(stuck, unix.MNT_DETACH) })
	err := e.Cleanup(t.Context())
	if !errors.Is(err, objectstore.ErrNotRemoved) || !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), stuck) {
		t.Errorf("got %v, want that %s is busy", err, stuck)
	}
	testenv.Must(t, unix.Unmount(stuck, 0))
	testenv.Must(t, e.Cleanup(t.Context()))
	if _, err := os.Stat(filepath.Dir(stuck)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is left: %v", err)
	}
}
