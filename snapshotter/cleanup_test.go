package snapshotter_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
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
