package snapshotter_test

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/snaptest"
)

// eachMode runs a test on a snapshotter of each checkout mode.
func eachMode(t *testing.T, opts []snapshotter.Option, f func(t *testing.T, e *snaptest.Env)) {
	t.Helper()
	testenv.NeedsRoot(t)
	t.Run("hard links", func(t *testing.T) {
		e, err := snaptest.OpenBare(t.Context(), t.TempDir(), opts...)
		testenv.Must(t, err)
		t.Cleanup(func() { testenv.Must(t, e.Close()) })
		f(t, e)
	})
	t.Run("composefs", func(t *testing.T) {
		composefs := snapshotter.WithComposefs(snaptest.Kernel(t))
		e, err := snaptest.OpenBare(t.Context(), t.TempDir(), append(opts, composefs)...)
		testenv.Must(t, err)
		t.Cleanup(func() { testenv.Must(t, e.Close()) })
		f(t, e)
	})
}

// TestMountsKeepObjects mounts what Prepare, View and Mounts return as containerd does, makes it writable as root in a
// container can, and changes every file in every way. Nothing that other snapshots share may change.
func TestMountsKeepObjects(t *testing.T) {
	img := newImage(t)
	mapped := []snapshots.Opt{snapshots.WithLabels(map[string]string{
		snapshots.LabelSnapshotUIDMapping: "0:100000:65536", snapshots.LabelSnapshotGIDMapping: "0:200000:65536",
	})}
	eachMode(t, []snapshotter.Option{allowed}, func(t *testing.T, e *snaptest.Env) {
		t.Helper()
		two := img.unpackAll(t, e)
		one := img.name(0)
		twice := "twice"
		apply(t, e, prepare(t, e, "one more", one), img.tars[0])
		commit(t, e, twice, "one more")
		staged := func(n int) []snapshots.Opt {
			return []snapshots.Opt{snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotDiffID: img.chain[n].String()})}
		}
		for _, c := range []struct {
			key, parent string
			view        bool
			opts        []snapshots.Opt
			unmounted   bool // an overlay of an unpack may lack its lower directory
		}{
			{key: "active"},
			{key: "active on one", parent: one},
			{key: "active on two", parent: two},
			{key: "active on one twice", parent: twice},
			{key: "active on one, mapped", parent: one, opts: mapped},
			{key: "active on two, mapped", parent: two, opts: mapped},
			{key: "view", view: true},
			{key: "view of one", parent: one, view: true},
			{key: "view of two", parent: two, view: true},
			{key: "view of one twice", parent: twice, view: true},
			{key: "view of one, mapped", parent: one, view: true, opts: mapped},
			{key: "view of two, mapped", parent: two, view: true, opts: mapped},
			{key: "ns/1/extract-1 x", unmounted: true},
			{key: "ns/2/extract-1 x", parent: one, unmounted: true},
			{key: "ns/3/extract-1 x", opts: staged(0)},
			{key: "ns/4/extract-1 x", parent: one, opts: staged(1)},
		} {
			create := e.Prepare
			if c.view {
				create = e.View
			}
			created := value(create(t.Context(), c.key, c.parent, c.opts...))(t)
			again := value(e.Mounts(t.Context(), c.key))(t)
			for _, m := range [][]mount.Mount{created, again} {
				for _, with := range []func(context.Context, []mount.Mount, func(string) error) error{
					mount.WithTempMount, mount.WithReadonlyTempMount,
				} {
					mounted := false
					// To map owners, containerd changes the options in place.
					given := []mount.Mount{m[0]}
					given[0].Options = slices.Clone(m[0].Options)
					err := with(t.Context(), given, func(dir string) error {
						mounted = true
						before := shared(t, e)
						attack(t, dir)
						for _, line := range changed(before, shared(t, e)) {
							t.Errorf("%s, mounted by %v: %s", c.key, m, line)
						}
						return nil
					})
					if (!mounted || err != nil) && !c.unmounted {
						t.Errorf("%s: mount %v: %v", c.key, m, err)
					}
				}
			}
		}
		wantFiles(t, view(t, e, one), lowerFiles)
		wantFiles(t, view(t, e, two), imageFiles)
	})
}

// TestVolatile mounts a snapshot as containerd's CRI plugin mounts an image volume: it adds an option to overlay mounts.
// With composefs it gets a bind mount, to which it adds none; docs/configuration.md gives the reason.
func TestVolatile(t *testing.T) {
	img := newImage(t)
	eachMode(t, nil, func(t *testing.T, e *snaptest.Env) {
		t.Helper()
		m := prepare(t, e, "image volume", img.unpackAll(t, e))
		overlay := m[0].Type == "overlay"
		if overlay {
			m[0].Options = append(m[0].Options, "volatile")
		}
		dir, unmount := snaptest.Mount(t, m)
		defer unmount()
		info := value(mount.Lookup(dir))(t)
		options := strings.Split(info.VFSOptions, ",")
		set := slices.Contains(options, "volatile") || slices.Contains(options, "fsync=volatile")
		if info.FSType != "overlay" || set != overlay {
			t.Errorf("mounted by %v: %s with %q, want an overlay with the option if it was set", m, info.FSType, options)
		}
		wantFiles(t, files(t, dir), imageFiles)
	})
}

// shared describes every file that snapshots share, by path, in all that a change alters.
func shared(t *testing.T, e *snaptest.Env) map[string]string {
	t.Helper()
	all := make(map[string]string)
	for _, dir := range []string{"repo", layer.LayersDir} {
		err := filepath.WalkDir(filepath.Join(e.Path, dir), func(name string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			var st unix.Stat_t
			if err := unix.Lstat(name, &st); err != nil {
				return err
			}
			var content []byte
			if d.Type().IsRegular() {
				if content, err = os.ReadFile(name); err != nil {
					return err
				}
			}
			all[name] = fmt.Sprintf("mode %o, owner %d:%d, size %d, changed %v, content %.80q", st.Mode, st.Uid, st.Gid, st.Size, st.Ctim, content)
			return nil
		})
		testenv.Must(t, err)
	}
	return all
}

// changed returns a line for each difference between two results of shared.
func changed(before, after map[string]string) (lines []string) {
	all := maps.Clone(before)
	maps.Copy(all, after)
	for name := range all {
		if before[name] != after[name] {
			lines = append(lines, fmt.Sprintf("%s had %s, and has %s", name, before[name], after[name]))
		}
	}
	return lines
}

// attack makes a mount writable, as far as it can, and changes every file below it in every way.
func attack(t *testing.T, dir string) {
	t.Helper()
	_ = unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND, "")
	var st unix.Statfs_t
	testenv.Must(t, unix.Statfs(dir, &st))
	if st.Type == unix.OVERLAYFS_SUPER_MAGIC { // another one may be the host's
		_ = unix.Mount("", dir, "", unix.MS_REMOUNT, "")
	}
	var names []string
	testenv.Must(t, filepath.WalkDir(dir, func(name string, _ fs.DirEntry, err error) error {
		names = append(names, name)
		return err
	}))
	for _, name := range slices.Backward(names) { // files before their directories
		if f, err := os.OpenFile(name, os.O_WRONLY, 0); err == nil {
			_, _ = f.WriteString("changed")
			_ = f.Close()
		}
		// Read-only files can be opened again by their descriptor.
		if f, err := os.Open(name); err == nil {
			if again, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), os.O_WRONLY|os.O_APPEND, 0); err == nil {
				_, _ = again.WriteString("changed")
				_ = again.Close()
			}
			const nodump = 0x40
			if flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS); err == nil {
				_ = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags|nodump)
			}
			_ = f.Close()
		}
		_ = os.Truncate(name, 1)
		_ = unix.Lchown(name, 7, 8)
		_ = os.Chmod(name, 0o4777)
		_ = unix.Lsetxattr(name, "user.changed", []byte("1"), 0)
		_ = os.Chtimes(name, time.Unix(1, 0), time.Unix(1, 0))
		if os.Link(name, name+" link") == nil {
			_ = os.Remove(name + " link")
		}
		if os.Rename(name, name+" renamed") == nil {
			_ = os.Remove(name + " renamed")
		}
	}
	_ = os.WriteFile(filepath.Join(dir, "new"), nil, 0o600)
}
