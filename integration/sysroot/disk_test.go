package sysroot

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/ostreehost"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// needs ends the test unless hosts can be started here.
func needs(t *testing.T) {
	t.Helper()
	testenv.SkipShort(t, "mounts file systems and starts ostree in namespaces")
	testenv.NeedsRoot(t)
	testenv.NeedsTool(t, "mmdebstrap")
}

// eachRelease runs a test with the ostree of each release.
func eachRelease(t *testing.T, f func(t *testing.T, r ostreehost.Release)) {
	t.Helper()
	needs(t)
	for _, r := range ostreehost.Releases {
		t.Run(string(r), func(t *testing.T) {
			t.Parallel()
			f(t, r)
		})
	}
}

// mountMemory mounts an empty file system in memory, of a size like "64m", and returns its directory.
func mountMemory(t *testing.T, size string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "disk")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	mountMemoryAt(t, dir, size)
	return dir
}

func mountMemoryAt(t *testing.T, dir, size string) {
	t.Helper()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0755,size="+size); err != nil {
		t.Fatalf("mount a file system in memory at %s: %v", dir, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil { // hosts of the test may still have it mounted
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
}
