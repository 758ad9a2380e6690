// Package testenv holds the one policy for skipping tests. No other package calls Skip of package testing.
//
// A test that needs root, a tool or a kernel feature calls a Needs function. If the need is not met the test is
// skipped, with a message that names it. In CI (environment variable CI=true) a need that a machine can be given (root,
// a Debian package) fails the test instead, so that a green run never hides a missing install step. A need that a
// machine cannot be given (a feature of the kernel or a file system) skips the test there too.
package testenv

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/process"
)

// Missing ends the test because an installable requirement is missing. In CI the test fails.
func Missing(tb testing.TB, format string, args ...any) {
	tb.Helper()
	if os.Getenv("CI") == "true" {
		tb.Fatalf("needed in CI: "+format, args...)
	}
	tb.Skipf(format, args...)
}

// Unsupported skips the test because the kernel, the file system or the processor lacks a feature.
func Unsupported(tb testing.TB, format string, args ...any) {
	tb.Helper()
	tb.Skipf(format, args...)
}

// SkipShort skips the test under -short. why names the slow part.
func SkipShort(tb testing.TB, why string) {
	tb.Helper()
	if testing.Short() {
		tb.Skipf("left out by -short: %s", why)
	}
}

// NeedsEnv returns the value of an environment variable that names the test's input. Without it the test is skipped.
func NeedsEnv(tb testing.TB, name, what string) string {
	tb.Helper()
	v := os.Getenv(name)
	if v == "" {
		tb.Skipf("set %s to %s", name, what)
	}
	return v
}

// NeedsRoot ends the test unless it runs as root.
func NeedsRoot(tb testing.TB) {
	tb.Helper()
	if os.Geteuid() != 0 {
		Missing(tb, "needs root, runs as user %d", os.Geteuid())
	}
}

// NeedsTool returns the path of a program in PATH or in one of the system's directories, and ends the test if there is
// none.
func NeedsTool(tb testing.TB, name string) string {
	tb.Helper()
	if p, ok := LookTool(name); ok {
		return p
	}
	Missing(tb, "needs the program %s, which is not installed", name)
	return ""
}

// NeedsFile ends the test unless a file exists that a package installs.
func NeedsFile(tb testing.TB, path string) {
	tb.Helper()
	if _, err := os.Stat(path); err != nil {
		Missing(tb, "needs a file of a package that is not installed: %v", err)
	}
}

// LookTool finds a program in PATH, or in the system directories missing from an ordinary user's PATH.
func LookTool(name string) (string, bool) {
	if p, err := exec.LookPath(name); err == nil {
		return p, true
	}
	for _, dir := range []string{"/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin"} {
		p := filepath.Join(dir, name)
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return p, true
		}
	}
	return "", false
}

// NeedsOverlay ends the test unless overlayfs can be mounted with upper, work and lower directories in a temporary
// directory.
func NeedsOverlay(tb testing.TB) {
	tb.Helper()
	NeedsRoot(tb)
	dir := tb.TempDir()
	opts := ""
	for _, part := range []struct{ option, name string }{
		{"lowerdir", "lower"},
		{"upperdir", "upper"},
		{"workdir", "work"},
	} {
		p := filepath.Join(dir, part.name)
		if err := os.Mkdir(p, 0o755); err != nil {
			tb.Fatalf("make %s: %v", p, err)
		}
		opts += part.option + "=" + p + ","
	}
	target := filepath.Join(dir, "merged")
	if err := os.Mkdir(target, 0o755); err != nil {
		tb.Fatalf("make %s: %v", target, err)
	}
	if err := unix.Mount("overlay", target, "overlay", 0, opts+"index=off"); err != nil {
		Unsupported(tb, "needs overlayfs on %s: mount: %v", dir, err)
	}
	if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
		tb.Fatalf("unmount %s: %v", target, err)
	}
}

// NeedsVerity ends the test unless fs-verity can be enabled for a file in dir.
func NeedsVerity(tb testing.TB, dir string) {
	tb.Helper()
	if !HasVerity(tb, dir) {
		Unsupported(tb, "needs fs-verity on the file system of %s", dir)
	}
}

// HasVerity reports whether fs-verity can be enabled for a file in dir.
func HasVerity(tb testing.TB, dir string) bool {
	tb.Helper()
	d, err := atfs.Open(dir)
	if err != nil {
		tb.Fatal(err)
	}
	defer d.Close()
	f, err := d.TmpFile(0o600)
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	err = f.EnableVerity()
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		tb.Fatal(err)
	}
	return err == nil
}

// NeedsReflink ends the test unless files in dir can share extents (FICLONE).
func NeedsReflink(tb testing.TB, dir string) {
	tb.Helper()
	src, err := os.CreateTemp(dir, "reflink")
	if err != nil {
		tb.Fatalf("create file in %s: %v", dir, err)
	}
	defer os.Remove(src.Name())
	defer src.Close()
	if _, err := src.WriteString("data"); err != nil {
		tb.Fatalf("write %s: %v", src.Name(), err)
	}
	dst, err := os.CreateTemp(dir, "reflink")
	if err != nil {
		tb.Fatalf("create file in %s: %v", dir, err)
	}
	defer os.Remove(dst.Name())
	defer dst.Close()
	if err := unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())); err != nil {
		Unsupported(tb, "needs reflinks on the file system of %s: %v", dir, err)
	}
}

// NeedsLoop ends the test unless loop devices are available.
func NeedsLoop(tb testing.TB) {
	tb.Helper()
	NeedsRoot(tb)
	f, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		Unsupported(tb, "needs loop devices: %v", err)
	}
	defer f.Close()
	if _, err := unix.IoctlRetInt(int(f.Fd()), unix.LOOP_CTL_GET_FREE); err != nil {
		Unsupported(tb, "needs loop devices: get a free one: %v", err)
	}
}

// NeedsEROFS ends the test unless the running kernel has EROFS, built in or loaded.
func NeedsEROFS(tb testing.TB) {
	tb.Helper()
	NeedsRoot(tb)
	b, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		tb.Fatalf("read /proc/filesystems: %v", err)
	}
	if !hasFilesystem(string(b), "erofs") {
		Unsupported(tb, "needs EROFS: not in /proc/filesystems")
	}
}

// MemoryDir makes a directory that is removed when the test ends: in memory, if the host has a file system there that
// can hold a store, else in the directory for temporary files.
func MemoryDir(tb testing.TB) string {
	tb.Helper()
	const shared = "/dev/shm"
	var st unix.Statfs_t
	if unix.Statfs(shared, &st) == nil && st.Type == unix.TMPFS_MAGIC {
		dir, err := os.MkdirTemp(shared, "test-")
		if err == nil {
			tb.Cleanup(func() {
				if err := errors.Join(process.UnmountBelow(dir), os.RemoveAll(dir)); err != nil {
					tb.Error(err)
				}
			})
			if unix.Setxattr(dir, "user.test", []byte("1"), 0) == nil { // since Linux 6.6
				return dir
			}
		}
	}
	return tb.TempDir()
}

// Must ends the test if err is not nil.
func Must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// Checkout returns the kind of checkouts for all tests that choose none themselves, a value of the key "checkout" of the
// daemon's configuration or "composefs-verity"; "" leaves it to each test.
func Checkout() string { return os.Getenv("OSTREE_SNAPSHOTTER_TEST_CHECKOUT") }
