package testhost

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// erofsUtils returns the program, and skips the test if it is not available.
func erofsUtils(t *testing.T) string {
	t.Helper()
	testenv.NeedsRoot(t)
	testenv.NeedsTool(t, "mmdebstrap")
	dir, err := ErofsUtils(t.Context(), t.Output())
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "mkfs.erofs")
}

func TestErofsVersion(t *testing.T) {
	out, err := exec.Command(erofsUtils(t), "--version").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var got [3]int
	format := "mkfs.erofs (erofs-utils) %d.%d.%d"
	if _, err := fmt.Sscanf(string(out), format, &got[0], &got[1], &got[2]); err != nil {
		t.Fatalf("it printed %q: %v", out, err)
	}
	if want := [3]int{1, 8, 2}; slices.Compare(got[:], want[:]) < 0 {
		t.Errorf("version %v, want at least %v", got, want)
	}
}

// Like containerd's differ: a layer on standard input becomes an image that the kernel mounts.
func TestErofsFromTar(t *testing.T) {
	testenv.NeedsEROFS(t)
	testenv.NeedsLoop(t)
	// Found by name, like containerd does.
	t.Setenv("PATH", filepath.Dir(erofsUtils(t))+":"+os.Getenv("PATH"))

	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	const text = "from a tar\n"
	for _, h := range []*tar.Header{
		{Typeflag: tar.TypeDir, Name: "dir/", Mode: 0o755},
		{Typeflag: tar.TypeReg, Name: "dir/file", Mode: 0o640, Size: int64(len(text)), Uid: 7},
		{Typeflag: tar.TypeReg, Name: "dir/.wh.gone", Mode: 0o644},
	} {
		err := w.WriteHeader(h)
		if err == nil && h.Size > 0 {
			_, err = w.Write([]byte(text))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}

	tmp := t.TempDir()
	image, mnt := filepath.Join(tmp, "layer.erofs"), filepath.Join(tmp, "mnt")
	mkfs := exec.Command("mkfs.erofs", "--tar=f", "--aufs", "--quiet", "-Enoinline_data", "-b4096", "--sort=none", image)
	mkfs.Stdin = &layer
	if out, err := mkfs.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := os.Mkdir(mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", "-t", "erofs", "-o", "loop,ro", image, mnt).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v\n%s", err, out)
	}
	defer func() {
		if err := unix.Unmount(mnt, 0); err != nil {
			t.Errorf("unmount %s: %v", mnt, err)
		}
	}()
	if b, err := os.ReadFile(filepath.Join(mnt, "dir/file")); err != nil || string(b) != text {
		t.Errorf("the file is %q, %v", b, err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(mnt, "dir/file"), &st); err != nil || st.Uid != 7 || st.Mode&0o777 != 0o640 {
		t.Errorf("the file's owner is %d and its mode %o, %v", st.Uid, st.Mode, err)
	}
	if err := unix.Stat(filepath.Join(mnt, "dir/gone"), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0 {
		t.Errorf("the whiteout has the mode %o and the number %d, %v", st.Mode, st.Rdev, err)
	}
}
