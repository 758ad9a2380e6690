package layer

import (
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// mountOverlay mounts lower directories, lowest first, below an upper one, and returns the merged directory and a
// function that unmounts it. upper is "" for a read-only mount.
func mountOverlay(t testing.TB, lower []string, upper, work string) (string, func()) {
	t.Helper()
	dir := t.TempDir()
	var reversed []string
	for _, l := range slices.Backward(lower) {
		if !slices.Contains(reversed, l) { // overlayfs rejects a duplicate directory; it counts where it is topmost
			reversed = append(reversed, l)
		}
		if value(stat(l))(t).xattrs[xattrOpaque] != "" { // overlayfs does not see it on a layer's root
			break
		}
	}
	if upper == "" && len(reversed) == 1 { // overlayfs requires two
		reversed = append(reversed, t.TempDir())
	}
	opts := "index=off,lowerdir=" + strings.Join(reversed, ":")
	if upper != "" {
		opts += ",upperdir=" + upper + ",workdir=" + work
	}
	if err := unix.Mount("overlay", dir, "overlay", 0, opts); err != nil {
		if err == unix.ENODEV || err == unix.EPERM {
			testenv.Unsupported(t, "needs overlayfs: %v", err)
		}
		t.Fatalf("mount overlay with %s: %v", opts, err)
	}
	mounted := true
	umount := func() {
		if mounted {
			testenv.Must(t, unix.Unmount(dir, 0))
		}
		mounted = false
	}
	t.Cleanup(umount)
	return dir, umount
}

// mergedTree returns the view of an overlay of directories, lowest first.
func mergedTree(t testing.TB, dirs ...string) map[string]*node {
	t.Helper()
	dir, umount := mountOverlay(t, dirs, "", "")
	defer umount()
	return listTree(t, dir)
}
