package plugin

import (
	"archive/tar"
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/diff"
	diffproxy "github.com/containerd/containerd/v2/core/diff/proxy"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/plugin/containerd/containerdtest"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/snaptest"
)

// ownModes holds the types and modes of all files that the daemon creates for itself below the root.
var ownModes = map[string]fs.FileMode{
	".": fs.ModeDir | 0o711, "repo": fs.ModeDir | 0o700, "layers": fs.ModeDir | 0o700, "snapshots": fs.ModeDir | 0o700,
	"empty":   fs.ModeDir | 0o700,
	"journal": fs.ModeDir | 0o700, "tmp": fs.ModeDir | 0o700, "metadata.db": 0o600, "lock": 0o600, checkoutFile: 0o600,
}

// TestModes pulls a layer of setuid, world-writable and oddly owned files, under several umasks and over existing roots
// with other modes. Then only root can reach files in the root or connect to the socket, and the user of a container
// can reach the files of the container.
func TestModes(t *testing.T) {
	for _, tt := range []struct {
		name     string
		checkout Checkout
		umask    int
		prepare  func(t *testing.T, root string)
	}{
		{"umask 0", CheckoutHardlink, 0, nil},
		{"umask 077", CheckoutHardlink, 0o077, nil},
		{"umask 0777", CheckoutHardlink, 0o777, nil},
		{"composefs, umask 0", CheckoutAuto, 0, nil},
		{"composefs, umask 0777", CheckoutAuto, 0o777, nil},
		{"root for everybody", CheckoutHardlink, 0o022, func(t *testing.T, root string) {
			t.Helper()
			for _, name := range []string{".", "repo", "layers", "snapshots", "journal", "tmp"} {
				if err := errors.Join(os.MkdirAll(filepath.Join(root, name), 0o777), os.Chmod(filepath.Join(root, name), 0o777)); err != nil {
					t.Fatal(err)
				}
			}
			if err := errors.Join(os.WriteFile(filepath.Join(root, "lock"), nil, 0o666), os.Chmod(filepath.Join(root, "lock"), 0o666)); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := testConfig(t)
			c.Checkout = tt.checkout
			if err := os.Chmod(filepath.Dir(c.Root), 0o755); err != nil {
				t.Fatal(err)
			}
			if tt.prepare != nil {
				tt.prepare(t, c.Root)
			}
			old := unix.Umask(tt.umask)
			t.Cleanup(func() { unix.Umask(old) })
			mounts := pullSetuid(t, c)
			checkModes(t, c)
			checkNobody(t, c)
			checkContainer(t, mounts)
		})
	}
}

// pullSetuid starts a daemon and unpacks a layer of files that are dangerous in the wrong hands. It returns the mounts
// of a container over that layer.
func pullSetuid(t *testing.T, c *Config) []mount.Mount {
	t.Helper()
	id, err := os.ReadFile("/usr/bin/id")
	if err != nil {
		t.Fatal(err)
	}
	suid, open, private := snaptest.File("id", string(id)), snaptest.File("open", "open"), snaptest.File("private", "private")
	suid.Mode, open.Mode, private.Mode = 0o4755, 0o666, 0o600
	private.Uid, private.Gid = nobody, nobody
	dir := snaptest.Dir("dir")
	dir.Mode = 0o1777
	f := containerdtest.NewAt(t, c.Containerd.Address)
	f.ContentRoot = f.Dir
	desc := f.Blob(ocispec.MediaTypeImageLayer, snaptest.Tar(t, suid, open, private, dir, tar.Header{
		Typeflag: tar.TypeChar, Name: "null", Mode: 0o666, Devmajor: 1, Devminor: 3,
	}))
	conn, _ := start(t, c)
	sn := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "ostree")
	applier := diffproxy.NewDiffApplier(diffapi.NewDiffClient(conn)).(diff.Applier)
	ctx := namespaces.WithNamespace(t.Context(), "default")
	m, err := sn.Prepare(ctx, "default/1/extract-1 x", "")
	if err == nil {
		_, err = applier.Apply(ctx, desc, m)
	}
	if err == nil {
		err = sn.Commit(ctx, "default/2/x", "default/1/extract-1 x")
	}
	if err == nil {
		m, err = sn.Prepare(ctx, "default/3/container", "default/2/x")
	}
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// checkModes checks the modes of the daemon's own files.
func checkModes(t *testing.T, c *Config) {
	t.Helper()
	names, err := os.ReadDir(c.Root)
	if err != nil {
		t.Fatal(err)
	}
	want := maps.Clone(ownModes)
	patterns := map[string]fs.FileMode{"journal/*": 0o600, "snapshots/*": fs.ModeDir | 0o700}
	if _, err := os.Lstat(filepath.Join(c.Root, "rootfs")); err == nil && c.Checkout == CheckoutAuto {
		want["rootfs"], want["mounts"] = fs.ModeDir|0o700, fs.ModeDir|0o700
		patterns["rootfs/*"], patterns["rootfs/*/image"], patterns["rootfs/*/digest"] = fs.ModeDir|0o700, 0o600, 0o600
	} else {
		patterns["layers/*"], patterns["layers/*/commit"] = fs.ModeDir|0o700, 0o600
	}
	if len(names) != len(want)-1 {
		t.Errorf("root has %v, want the %d names that are checked", names, len(want)-1)
	}
	check := func(name string, want fs.FileMode) {
		fi, err := os.Lstat(name)
		if err != nil {
			t.Error(err)
			return
		}
		st := fi.Sys().(*syscall.Stat_t)
		if fi.Mode() != want || st.Uid != 0 || st.Gid != 0 {
			t.Errorf("%s is %v of %d:%d, want %v of 0:0", name, fi.Mode(), st.Uid, st.Gid, want)
		}
	}
	for name, want := range want {
		check(filepath.Join(c.Root, name), want)
	}
	check(c.Address, fs.ModeSocket|0o600)
	check(filepath.Dir(c.Address), fs.ModeDir|0o711)
	for pattern, want := range patterns {
		found, err := filepath.Glob(filepath.Join(c.Root, pattern))
		if err != nil || len(found) == 0 {
			t.Errorf("%s: found %v, %v, want something", pattern, found, err)
		}
		for _, name := range found {
			check(name, want)
		}
	}
}

const nobody = 65534

// asNobody calls f on a thread of its own without any privileges. The thread ends with the call.
func asNobody(t *testing.T, f func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		var err error
		for _, call := range [][4]uintptr{
			{unix.SYS_SETGROUPS, 0, 0, 0}, {unix.SYS_SETRESGID, nobody, nobody, nobody}, {unix.SYS_SETRESUID, nobody, nobody, nobody},
		} {
			// Unlike the functions of package syscall, this changes only one thread.
			if _, _, errno := unix.RawSyscall(call[0], call[1], call[2], call[3]); errno != 0 {
				err = errors.Join(err, errno)
			}
		}
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// checkNobody tries to reach the store as an unprivileged user.
func checkNobody(t *testing.T, c *Config) {
	t.Helper()
	var below []string // names two levels below the root and deeper
	suid := 0
	err := filepath.WalkDir(c.Root, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := e.Info()
		if err != nil {
			return err
		}
		if rel, _ := filepath.Rel(c.Root, name); strings.Contains(rel, "/") {
			below = append(below, name)
		}
		if fi.Mode()&fs.ModeSetuid != 0 {
			suid++
		}
		return nil
	})
	if err != nil || suid < 2 {
		t.Fatalf("%d setuid files, %v; want one in the repository and one in a checkout", suid, err)
	}
	open := filepath.Join(filepath.Dir(c.Root), "control") // proves that the attempts can succeed
	if err := os.Link(findSetuid(t, c.Root), open); err != nil {
		t.Fatal(err)
	}
	asNobody(t, func() {
		if out, err := exec.Command(open, "-u").Output(); err != nil || string(out) != "0\n" {
			t.Errorf("setuid file where it can be reached: got %q, %v, want root's user ID", out, err)
		}
		for name, mode := range ownModes {
			name = filepath.Join(c.Root, name)
			if _, err := os.Open(name); !errors.Is(err, fs.ErrPermission) {
				t.Errorf("open %s: got %v, want %v", name, err, fs.ErrPermission)
			}
			if mode.IsDir() {
				if err := os.Mkdir(filepath.Join(name, "new"), 0o700); !errors.Is(err, fs.ErrPermission) {
					t.Errorf("make something in %s: got %v, want %v", name, err, fs.ErrPermission)
				}
			}
		}
		for _, name := range below {
			if _, err := os.Lstat(name); !errors.Is(err, fs.ErrPermission) {
				t.Errorf("stat %s: got %v, want %v", name, err, fs.ErrPermission)
			}
			if err := exec.Command(name, "-u").Run(); !errors.Is(err, fs.ErrPermission) {
				t.Errorf("execute %s: got %v, want %v", name, err, fs.ErrPermission)
			}
		}
		s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Error(err)
			return
		}
		defer unix.Close(s)
		if err := unix.Connect(s, &unix.SockaddrUnix{Name: c.Address}); !errors.Is(err, unix.EACCES) {
			t.Errorf("connect: got %v, want %v", err, unix.EACCES)
		}
	})
}

func findSetuid(t *testing.T, root string) (found string) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(root, "repo/objects"), func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if fi, err := e.Info(); err == nil && fi.Mode()&fs.ModeSetuid != 0 {
			found = name
		}
		return nil
	})
	if err != nil || found == "" {
		t.Fatalf("no setuid file among the objects: %v", err)
	}
	return found
}

// checkContainer uses the file system of a container as an unprivileged user.
func checkContainer(t *testing.T, mounts []mount.Mount) {
	t.Helper()
	target := snaptest.SocketDir(t)
	if err := os.Chmod(target, 0o755); err != nil {
		t.Fatal(err)
	}
	rootfs := filepath.Join(target, "rootfs")
	if err := os.Mkdir(rootfs, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := mount.All(mounts, rootfs); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := mount.UnmountAll(rootfs, unix.UMOUNT_NOFOLLOW); err != nil {
			t.Error(err)
		}
	}()
	asNobody(t, func() {
		for name, want := range map[string]string{"open": "open", "private": "private"} {
			if b, err := os.ReadFile(filepath.Join(rootfs, name)); err != nil || string(b) != want {
				t.Errorf("read %s in the container: got %q, %v, want %q", name, b, err, want)
			}
		}
		if out, err := exec.Command(filepath.Join(rootfs, "id"), "-u").Output(); err != nil || string(out) != "0\n" {
			t.Errorf("setuid file in the container: got %q, %v, want root's user ID", out, err)
		}
		if err := os.WriteFile(filepath.Join(rootfs, "open"), []byte("written"), 0); err != nil {
			t.Errorf("write to a file for everybody in the container: %v", err)
		}
	})
}

// TestForeignRoot starts on roots that another user owns, or that have an entry of another user.
func TestForeignRoot(t *testing.T) {
	chown := func(name string) error { return os.Lchown(name, nobody, nobody) }
	for _, tt := range []struct {
		name    string
		prepare func(root string) error
	}{
		{"root", chown},
		{"layers", func(root string) error { return errors.Join(os.Mkdir(root+"/layers", 0o700), chown(root+"/layers")) }},
		{"repo", func(root string) error { return errors.Join(os.Mkdir(root+"/repo", 0o755), chown(root+"/repo")) }},
		{"metadata.db", func(root string) error { return os.Symlink("/etc/hostname", root+"/metadata.db") }},
		{"snapshots", func(root string) error { return os.Symlink("/etc", root+"/snapshots") }},
		{"journal", func(root string) error { return os.WriteFile(root+"/journal", nil, 0o600) }},
		{"lock", func(root string) error { return unix.Mkfifo(root+"/lock", 0o600) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := testConfig(t)
			if err := errors.Join(os.Mkdir(c.Root, 0o777), tt.prepare(c.Root)); err != nil {
				t.Fatal(err)
			}
			s, err := Assemble(context.WithoutCancel(t.Context()), c)
			if err == nil {
				t.Fatal(errors.Join(errors.New("got a server, want an error"), s.Close()))
			}
			if !strings.Contains(err.Error(), tt.name) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v, want one line about %s", err, tt.name)
			}
		})
	}
}
