package composefsmount

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/composefs"
)

// printUser has the test's own program print whose rights it has.
const printUser = "OSTREE_SNAPSHOTTER_TEST_PRINT_USER"

// TestImageAttributes checks that set-user-ID programs and devices of an image work in an overlay of it, and not in the
// mount of the image below.
func TestImageAttributes(t *testing.T) {
	testenv.NeedsRoot(t)
	testenv.NeedsOverlay(t)
	testenv.NeedsEROFS(t)
	if os.Getenv(printUser) != "" { // as the set-user-ID program
		fmt.Printf("user %d\n", os.Geteuid())
		os.Exit(0)
	}
	self, err := os.Executable()
	testenv.Must(t, err)
	program, err := os.ReadFile(self)
	testenv.Must(t, err)
	dir := t.TempDir()
	for d := dir; d != "/tmp" && d != "/"; d = filepath.Dir(d) {
		testenv.Must(t, os.Chmod(d, 0o755))
	}
	in := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"objects", "image.mnt", "root", "upper", "work"} {
		testenv.Must(t, os.Mkdir(in(name), 0o755))
	}
	testenv.Must(t, os.WriteFile(in("objects/program"), program, 0o755))
	image, err := composefs.Marshal(&composefs.Inode{Mode: unix.S_IFDIR | 0o755, Entries: []composefs.Entry{
		{Name: "null", Inode: &composefs.Inode{Mode: unix.S_IFCHR | 0o666, Rdev: unix.Mkdev(1, 3)}},
		{Name: "program", Inode: &composefs.Inode{Mode: unix.S_IFREG | 0o4755, Size: int64(len(program)), Payload: "program"}},
	}}, composefs.Options{})
	testenv.Must(t, err)
	testenv.Must(t, os.WriteFile(in("image"), image, 0o600))
	root, err := atfs.Open(dir)
	testenv.Must(t, err)
	defer root.Close()
	support, err := Probe(root)
	testenv.Must(t, err)
	f, err := root.Open("image")
	testenv.Must(t, err)
	defer f.Close()
	target, err := root.OpenDir("image.mnt")
	testenv.Must(t, err)
	defer target.Close()
	testenv.Must(t, Mount(f, target, support))
	t.Cleanup(func() { testenv.Must(t, Unmount(in("image.mnt"))) })
	o := Overlay{Image: in("image.mnt"), Objects: in("objects"), Upper: in("upper"), Work: in("work")}
	testenv.Must(t, o.Mount(in("root"), support))
	t.Cleanup(func() { testenv.Must(t, Unmount(in("root"))) })

	var st unix.Statfs_t
	testenv.Must(t, unix.Statfs(in("image.mnt"), &st))
	if want := int64(unix.ST_RDONLY | unix.ST_NOSUID | unix.ST_NODEV); st.Flags&want != want {
		t.Errorf("image mount has flags %#x, want %#x", st.Flags, want)
	}
	if f, err := os.Open(in("image.mnt/null")); err == nil {
		t.Error("image mount: opened a device")
		testenv.Must(t, f.Close())
	}
	cmd := exec.Command(in("root/program"), "-test.run=^TestImageAttributes$")
	cmd.Dir, cmd.Env = "/", []string{printUser + "=1"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != "user 0\n" {
		t.Errorf("set-user-ID program in the overlay: got %q (%v), want user 0", out, err)
	}
	if err := os.WriteFile(in("root/null"), []byte("x"), 0); err != nil {
		t.Errorf("device in the overlay: %v", err)
	}
}
