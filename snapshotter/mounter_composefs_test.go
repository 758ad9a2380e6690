package snapshotter_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/snaptest"
)

// mountedRootfses returns the mount points below rootfs/ and mounts/.
func mountedRootfses(t *testing.T, e *snaptest.Env) (names []string) {
	t.Helper()
	table, err := mountinfo.GetMounts(mountinfo.PrefixFilter(e.Path))
	testenv.Must(t, err)
	for _, m := range table {
		for _, dir := range []string{"/rootfs/", "/mounts/"} {
			if strings.HasPrefix(m.Mountpoint, e.Path+dir) {
				names = append(names, strings.TrimPrefix(m.Mountpoint, e.Path))
			}
		}
	}
	return names
}

func rootfsImages(t *testing.T, e *snaptest.Env) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(e.Path, "rootfs/*/image"))
	testenv.Must(t, err)
	return names
}

// TestRootfsLifetime checks that a rootfs image is mounted for as long as a snapshot runs on it, through restarts of
// daemon and host, and exists for as long as its container image.
func TestRootfsLifetime(t *testing.T) {
	composefs := snapshotter.WithComposefs(snaptest.Kernel(t))
	e := snaptest.New(t, composefs)
	e.StopPrebuild()
	img := newImage(t)
	name := img.unpackAll(t, e)
	wantMounted := func(t *testing.T, want int) {
		t.Helper()
		if got := mountedRootfses(t, e); len(got) != want {
			t.Errorf("got %q mounted, want %d", got, want)
		}
	}
	remove := func(t *testing.T, key string) {
		t.Helper()
		testenv.Must(t, e.Remove(t.Context(), key))
		testenv.Must(t, e.Cleanup(t.Context()))
	}
	t.Run("unpacked", func(t *testing.T) { wantMounted(t, 0) })
	t.Run("one container", func(t *testing.T) {
		prepare(t, e, "a", name)
		wantMounted(t, 2) // the image and the container
	})
	t.Run("two containers", func(t *testing.T) {
		prepare(t, e, "b", name)
		wantMounted(t, 3)
	})
	running, stop := snaptest.Mount(t, value(e.Mounts(t.Context(), "a"))(t))
	t.Run("daemon restarts", func(t *testing.T) {
		ids := mountIDs(t, e)
		testenv.Must(t, e.Snapshotter.Close())
		again, err := snapshotter.New(context.WithoutCancel(t.Context()), e.Root, e.Store, composefs)
		testenv.Must(t, err)
		e.Snapshotter = again
		testenv.Must(t, e.Cleanup(t.Context()))
		value(e.Mounts(t.Context(), "a"))(t)
		if got := mountIDs(t, e); !slices.Equal(got, ids) {
			t.Errorf("got mounts %q, want those of before, %q", got, ids)
		}
		wantFiles(t, files(t, running), imageFiles)
	})
	t.Run("unmounted below a running container", func(t *testing.T) {
		testenv.Must(t, e.Unmount())
		wantFiles(t, files(t, running), imageFiles)
	})
	stop()
	t.Run("host restarts", func(t *testing.T) { // Mounts mounts the image again
		wantFiles(t, activeFiles(t, e, "a"), imageFiles)
		value(e.Mounts(t.Context(), "b"))(t)
	})
	t.Run("one container left", func(t *testing.T) {
		remove(t, "a")
		wantMounted(t, 2)
	})
	t.Run("no container left", func(t *testing.T) {
		remove(t, "b")
		wantMounted(t, 0)
		if got := rootfsImages(t, e); len(got) != 1 {
			t.Errorf("got images %q, want one", got)
		}
	})
	t.Run("no image left", func(t *testing.T) {
		for i := len(img.chain); i > 0; i-- {
			testenv.Must(t, e.Remove(t.Context(), img.name(i-1)))
		}
		testenv.Must(t, e.Cleanup(t.Context()))
		if got := left(t, e); len(got) > 0 {
			t.Errorf("%q is left", got)
		}
	})
}

func mountIDs(t *testing.T, e *snaptest.Env) (ids []string) {
	t.Helper()
	table, err := mountinfo.GetMounts(mountinfo.PrefixFilter(e.Path))
	testenv.Must(t, err)
	for _, m := range table {
		if strings.HasPrefix(m.Mountpoint, e.Path+"/rootfs/") || strings.HasPrefix(m.Mountpoint, e.Path+"/mounts/") {
			ids = append(ids, fmt.Sprint(m.ID, m.Mountpoint))
		}
	}
	return ids
}

// TestRootfsCycles checks that a thousand containers leave nothing behind.
func TestRootfsCycles(t *testing.T) {
	e := snaptest.New(t, snapshotter.WithComposefs(snaptest.Kernel(t)))
	name := newImage(t).unpackAll(t, e)
	before := openFiles(t)
	for i := range 1000 {
		key := fmt.Sprintf("container-%d", i)
		m := prepare(t, e, key, name)
		if i%50 == 0 {
			_, stop := snaptest.Mount(t, m)
			stop()
		}
		testenv.Must(t, e.Remove(t.Context(), key))
		if i%3 == 0 { // containerd does not clean up after each
			testenv.Must(t, e.Cleanup(t.Context()))
		}
	}
	testenv.Must(t, e.Cleanup(t.Context()))
	if got := mountedRootfses(t, e); len(got) > 0 {
		t.Errorf("got %q mounted, want nothing", got)
	}
	if got := openFiles(t); got > before+5 {
		t.Errorf("%d files are open, %d were", got, before)
	}
	for _, pattern := range []string{"rootfs/*/fs*", "rootfs/*/view*", "mounts/*"} {
		if names, err := filepath.Glob(filepath.Join(e.Path, pattern)); err != nil || len(names) > 0 {
			t.Errorf("left: %q (%v)", names, err)
		}
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	testenv.Must(t, err)
	return len(fds)
}

// TestSwitchOfCheckouts checks that when a daemon starts in the other mode, containers of the earlier one keep running
// and new ones run.
func TestSwitchOfCheckouts(t *testing.T) {
	composefs := []snapshotter.Option{snapshotter.WithComposefs(snaptest.Kernel(t))}
	for to, modes := range map[string][2][]snapshotter.Option{
		"to composefs":  {nil, composefs},
		"to hard links": {composefs, nil},
	} {
		t.Run(to, func(t *testing.T) {
			e, err := snaptest.OpenBare(t.Context(), t.TempDir(), modes[0]...)
			testenv.Must(t, err)
			defer func() { testenv.Must(t, e.Close()) }()
			img := newImage(t)
			name := img.unpackAll(t, e)
			running, stop := snaptest.Mount(t, prepare(t, e, "old", name))
			testenv.Must(t, os.WriteFile(filepath.Join(running, "written"), []byte("x"), 0o600))
			want := files(t, running)

			testenv.Must(t, e.Snapshotter.Close())
			e.Snapshotter, err = snapshotter.New(t.Context(), e.Root, e.Store, modes[1]...)
			testenv.Must(t, err)
			testenv.Must(t, e.Cleanup(t.Context()))
			wantFiles(t, files(t, running), want)
			testenv.Must(t, os.WriteFile(filepath.Join(running, "dir", "more"), []byte("y"), 0o600))
			want = files(t, running)
			stop()
			wantFiles(t, activeFiles(t, e, "old"), want) // as after a restart
			prepare(t, e, "new", name)
			wantFiles(t, activeFiles(t, e, "new"), imageFiles)

			if got, err := filepath.Glob(filepath.Join(e.Path, "layers/*")); err != nil || len(got) != len(img.chain) && to == "to composefs" {
				t.Errorf("with a container of before: got checkouts %q, %v, want %d", got, err, len(img.chain))
			}
			commit(t, e, "committed", "old")
			testenv.Must(t, e.Cleanup(t.Context()))
			if got, err := filepath.Glob(filepath.Join(e.Path, "layers/*")); err != nil || len(got) > 0 && to == "to composefs" {
				t.Errorf("without containers of before: got checkouts %q, %v, want none", got, err)
			}
			wantFiles(t, view(t, e, "committed"), want)
			for _, key := range append([]string{"committed", "new"}, img.name(1), img.name(0)) {
				testenv.Must(t, e.Remove(t.Context(), key))
			}
			testenv.Must(t, e.Cleanup(t.Context()))
			if got := left(t, e); len(got) > 0 {
				t.Errorf("%q is left", got)
			}
		})
	}
}

// TestRootfsIsMadeAgain checks that lost or damaged images are rebuilt when they are mounted.
func TestRootfsIsMadeAgain(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, image string){
		"lost": func(t *testing.T, image string) { t.Helper(); testenv.Must(t, os.RemoveAll(filepath.Dir(image))) },
		"cut": func(t *testing.T, image string) {
			t.Helper()
			b, err := os.ReadFile(image)
			testenv.Must(t, err)
			replace(t, image, b[:5000])
		},
		"a bit": func(t *testing.T, image string) {
			t.Helper()
			b, err := os.ReadFile(image)
			testenv.Must(t, err)
			b[len(b)/2] ^= 4
			replace(t, image, b)
		},
		"digest": func(t *testing.T, image string) {
			t.Helper()
			testenv.Must(t, os.WriteFile(filepath.Join(filepath.Dir(image), "digest"), nil, 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := snaptest.New(t, snapshotter.WithComposefs(snaptest.Kernel(t)))
			e.StopPrebuild()
			prepare(t, e, "c", newImage(t).unpackAll(t, e))
			testenv.Must(t, e.Unmount())
			images := rootfsImages(t, e)
			if len(images) != 1 {
				t.Fatalf("got images %q, want one", images)
			}
			before, err := os.ReadFile(images[0])
			testenv.Must(t, err)
			damage(t, images[0])
			wantFiles(t, activeFiles(t, e, "c"), imageFiles)
			after, err := os.ReadFile(images[0])
			testenv.Must(t, err)
			if string(after) != string(before) {
				t.Error("it is not the same image")
			}
		})
	}
}

// TestRootfsSweepsAtOnce checks that concurrent sweeps and removals do not disturb each other.
func TestRootfsSweepsAtOnce(t *testing.T) {
	e := snaptest.New(t, snapshotter.WithComposefs(snaptest.Kernel(t)))
	for round := range 20 {
		img := newImage(t)
		prepare(t, e, "c", img.unpackAll(t, e))
		var group errgroup.Group
		for i := range 4 {
			group.Go(func() error {
				key := fmt.Sprintf("%d-%d", round, i)
				if _, err := e.Prepare(t.Context(), key, ""); err != nil {
					return err
				}
				if err := e.Remove(t.Context(), key); err != nil { // leaves something to sweep
					return err
				}
				return e.Cleanup(t.Context())
			})
		}
		group.Go(func() error {
			for _, key := range []string{"c", img.name(1), img.name(0)} {
				if err := errors.Join(e.Remove(t.Context(), key), e.Cleanup(t.Context())); err != nil {
					return err
				}
			}
			return nil
		})
		testenv.Must(t, group.Wait())
		testenv.Must(t, e.Cleanup(t.Context()))
		if got := left(t, e); len(got) > 0 {
			t.Fatalf("%q is left", got)
		}
	}
}

// replace replaces the content of a file, which may have fs-verity.
func replace(t *testing.T, name string, content []byte) {
	t.Helper()
	testenv.Must(t, os.Remove(name))
	testenv.Must(t, os.WriteFile(name, content, 0o600))
}

// TestRootfsIsMadeAhead checks that an image is built before a container needs it.
func TestRootfsIsMadeAhead(t *testing.T) {
	e := snaptest.New(t, snapshotter.WithComposefs(snaptest.Kernel(t)))
	img := newImage(t)
	img.unpackAll(t, e)
	var chain []objectstore.Checksum
	for i := range img.chain {
		id, err := objectstore.ParseChecksum(labelsOf(t, e, img.name(i))[snapshotter.LabelLayer])
		testenv.Must(t, err)
		chain = append(chain, id)
	}
	name := filepath.Join(e.Path, e.Store.RootfsName(chain), "image")
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(name); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is not made", name)
		}
	}
	if got := mountedRootfses(t, e); len(got) > 0 {
		t.Errorf("got %q mounted, want nothing", got)
	}
}

// TestRootfsOfLowerLayers checks that images of chains are not built while a layer is being unpacked that will lie on
// them: nothing runs on those chains.
func TestRootfsOfLowerLayers(t *testing.T) {
	e := snaptest.New(t, snapshotter.WithComposefs(snaptest.Kernel(t)))
	img := newImage(t)
	top := img.name(len(img.chain) - 1)
	for i := range img.chain { // all, since a slow machine may begin the next layer too late
		name := img.name(i)
		prepare(t, e, "default/9/extract-9 on "+name, "", snapshots.WithLabels(map[string]string{
			"containerd.io/snapshot/parent-chain-id": name[strings.Index(name, "sha256:"):],
		}))
	}
	img.unpackAll(t, e)
	time.Sleep(300 * time.Millisecond)
	if got := rootfsImages(t, e); len(got) > 0 {
		t.Errorf("got images %q, want none", got)
	}
	testenv.Must(t, e.Remove(t.Context(), "default/9/extract-9 on "+top))
	prepare(t, e, "c", top)
	wantFiles(t, activeFiles(t, e, "c"), imageFiles)
}

// TestUserNamespace checks that a container in a user namespace owns the files of its image, and that its own files
// have the host's owners. The image does not change.
func TestUserNamespace(t *testing.T) {
	labels := snapshots.WithLabels(map[string]string{
		snapshots.LabelSnapshotUIDMapping: "0:100000:65536", snapshots.LabelSnapshotGIDMapping: "0:200000:65536",
	})
	for name, opts := range map[string][]snapshotter.Option{
		"hard links": nil, "composefs": {snapshotter.WithComposefs(snaptest.Kernel(t))},
	} {
		t.Run(name, func(t *testing.T) {
			e, err := snaptest.OpenBare(t.Context(), t.TempDir(), opts...)
			testenv.Must(t, err)
			defer func() { testenv.Must(t, e.Close()) }()
			img := newImage(t)
			parent := img.unpackAll(t, e)
			plain := prepare(t, e, "plain", parent)
			dir, stop := snaptest.Mount(t, prepare(t, e, "mapped", parent, labels))
			wantFiles(t, files(t, dir), imageFiles)
			for file := range imageFiles {
				wantOwner(t, filepath.Join(dir, file), 100000, 200000)
				testenv.Must(t, os.Chmod(filepath.Join(dir, file), 0o640)) // copied up
				wantOwner(t, filepath.Join(dir, file), 100000, 200000)
			}
			wantOwner(t, dir, 100000, 200000)
			stop()
			again, stop := snaptest.Mount(t, value(e.Mounts(t.Context(), "mapped"))(t))
			wantFiles(t, files(t, again), imageFiles)
			stop()
			dir, stop = snaptest.Mount(t, plain)
			for file := range imageFiles {
				wantOwner(t, filepath.Join(dir, file), 0, 0)
			}
			stop()
			for key, want := range map[string]map[string]string{img.name(0): lowerFiles, parent: imageFiles} {
				dir, stop = snaptest.Mount(t, value(e.View(t.Context(), "view of "+key, key, labels))(t))
				wantFiles(t, files(t, dir), want)
				for file := range want {
					wantOwner(t, filepath.Join(dir, file), 100000, 200000)
				}
				stop()
			}
			for _, key := range []string{"mapped", "view of " + img.name(0), "view of " + parent, "plain"} {
				testenv.Must(t, e.Remove(t.Context(), key))
			}
			testenv.Must(t, e.Cleanup(t.Context()))
			if got := mountedRootfses(t, e); len(got) > 0 {
				t.Errorf("got %q mounted, want nothing", got)
			}
			for _, bad := range []string{"0:100000", "x", "1:100000:10", "0:4294967295:2", "0:1:1,", "-1:0:1"} {
				_, err := e.Prepare(t.Context(), "bad", parent, snapshots.WithLabels(map[string]string{
					snapshots.LabelSnapshotUIDMapping: bad, snapshots.LabelSnapshotGIDMapping: "0:1:1",
				}))
				if !errdefs.IsInvalidArgument(err) {
					t.Errorf("mapping %q: got %v, want an invalid argument", bad, err)
				}
			}
		})
	}
}

// TestUserNamespaceUnmapped has a containerd that cannot map the owners of a mount: a snapshot that it could not mount is
// refused.
func TestUserNamespaceUnmapped(t *testing.T) {
	labels := snapshots.WithLabels(map[string]string{
		snapshots.LabelSnapshotUIDMapping: "0:100000:65536", snapshots.LabelSnapshotGIDMapping: "0:200000:65536",
	})
	cannot := snapshotter.WithMappedMounts(func(context.Context) bool { return false })
	e := value(snaptest.OpenBare(t.Context(), t.TempDir(), cannot))(t)
	defer func() { testenv.Must(t, e.Close()) }()
	parent := newImage(t).unpackAll(t, e)
	prepare(t, e, "plain", parent)
	_, err := e.Prepare(t.Context(), "mapped", parent, labels)
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "2.0 or later") {
		t.Errorf("hard links: got %v, want a failed precondition that names the release that is needed", err)
	}
	if _, err := e.Stat(t.Context(), "mapped"); !errdefs.IsNotFound(err) {
		t.Errorf("the refused snapshot: got %v, want not found", err)
	}

	e = value(snaptest.OpenBare(t.Context(), t.TempDir(), cannot, snapshotter.WithComposefs(snaptest.Kernel(t))))(t)
	defer func() { testenv.Must(t, e.Close()) }()
	prepare(t, e, "mapped", newImage(t).unpackAll(t, e), labels)
}

func wantOwner(t *testing.T, name string, uid, gid uint32) {
	t.Helper()
	var st unix.Stat_t
	testenv.Must(t, unix.Lstat(name, &st))
	if st.Uid != uid || st.Gid != gid {
		t.Errorf("%s belongs to %d:%d, want %d:%d", name, st.Uid, st.Gid, uid, gid)
	}
}

// TestCommitWithMetacopy checks that where the kernel needs metacopy=on, layers hold the container's view: in the upper
// directory, files with only a new mode have no content, and renamed directories are incomplete.
func TestCommitWithMetacopy(t *testing.T) {
	support := snaptest.Kernel(t)
	support.Metacopy = true
	e := snaptest.New(t, snapshotter.WithComposefs(support))
	img := newImage(t)
	var want map[string]string
	m := prepare(t, e, "c", img.unpackAll(t, e))
	dir, stop := snaptest.Mount(t, m)
	for file := range imageFiles {
		testenv.Must(t, os.Chmod(filepath.Join(dir, file), 0o640))
	}
	testenv.Must(t, os.Rename(filepath.Join(dir, "dir"), filepath.Join(dir, "moved")))
	testenv.Must(t, os.WriteFile(filepath.Join(dir, "moved/new"), []byte("new"), 0o600))
	want = files(t, dir)
	stop()
	commit(t, e, "committed", "c")
	prepare(t, e, "d", "committed")
	wantFiles(t, activeFiles(t, e, "d"), want)
	mounted(t, e, "d", func(dir string) {
		for file := range want {
			fi, err := os.Stat(filepath.Join(dir, file))
			testenv.Must(t, err)
			if file != "moved/new" && fi.Mode().Perm() != 0o640 {
				t.Errorf("%s has mode %o, want 640", file, fi.Mode().Perm())
			}
		}
	})
}

// TestVerity checks that with fs-verity, an object exchanged for a copy cannot be read, VerifyRootfs reports it, and
// RemakeRootfs restores its fs-verity.
func TestVerity(t *testing.T) {
	support := snaptest.Kernel(t)
	e := snaptest.New(t, snapshotter.WithComposefs(support))
	if !support.Verity {
		testenv.Unsupported(t, "needs fs-verity on the file system of %s, and %s", e.Path, "OSTREE_SNAPSHOTTER_TEST_CHECKOUT=composefs-verity")
	}
	img := newImage(t)
	prepare(t, e, "c", img.unpackAll(t, e))
	wantFiles(t, activeFiles(t, e, "c"), imageFiles)
	var chain []objectstore.Checksum
	for i := range img.chain {
		id, err := objectstore.ParseChecksum(labelsOf(t, e, img.name(i))[snapshotter.LabelLayer])
		testenv.Must(t, err)
		chain = append(chain, id)
	}
	testenv.Must(t, e.Store.VerifyRootfs(t.Context(), chain))
	if _, err := os.OpenFile(filepath.Join(e.Path, e.Store.RootfsName(chain), "image"), os.O_RDWR, 0); !errors.Is(err, unix.EPERM) {
		t.Errorf("open the image for writing: got %v, want %v", err, unix.EPERM)
	}

	// Exchange all objects for copies.
	objects, err := filepath.Glob(filepath.Join(e.Path, "repo/objects/*/*.file"))
	testenv.Must(t, err)
	for _, name := range objects {
		if fi, err := os.Lstat(name); err != nil || !fi.Mode().IsRegular() {
			continue
		}
		out, err := exec.Command("cp", "-p", name, name+".copy").CombinedOutput()
		if err != nil {
			t.Fatalf("cp: %v\n%s", err, out)
		}
		testenv.Must(t, os.Rename(name+".copy", name))
	}
	testenv.Must(t, e.Unmount())
	prepare(t, e, "d", img.name(len(img.chain)-1))
	mounted(t, e, "d", func(dir string) {
		for name, content := range imageFiles {
			b, err := os.ReadFile(filepath.Join(dir, name))
			if content != "" && !errors.Is(err, unix.EIO) {
				t.Errorf("%s of an object without fs-verity: got %q, %v, want %v", name, b, err, unix.EIO)
			}
		}
	})
	if err := e.Store.VerifyRootfs(t.Context(), chain); !errors.Is(err, objectstore.ErrCorrupt) {
		t.Errorf("got %v, want %v", err, objectstore.ErrCorrupt)
	}
	testenv.Must(t, e.Store.RemakeRootfs(t.Context(), chain))
	testenv.Must(t, e.Store.VerifyRootfs(t.Context(), chain))
	wantFiles(t, activeFiles(t, e, "d"), imageFiles)
}

func value[T any](v T, err error) func(testing.TB) T {
	return func(tb testing.TB) T {
		tb.Helper()
		if err != nil {
			tb.Fatal(err)
		}
		return v
	}
}
