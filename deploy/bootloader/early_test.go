package bootloader

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/bls"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/objecttest"
)

// largeKernel is the size of each initramfs of TestEarlyPrune, whose ESP of smallESP bytes has room for two of them.
const (
	largeKernel = 3 << 20
	smallESP    = 8 << 20
)

// TestEarlyPrune deploys to a system whose ESP is full, while its /boot is not: that is an error, or if it is asked for, the
// kernel goes first that would go anyway. It also runs on FAT, where the kernel supports it.
func TestEarlyPrune(t *testing.T) {
	testenv.NeedsRoot(t)
	t.Run("memory", func(t *testing.T) {
		esp := t.TempDir()
		testenv.Must(t, unix.Mount("esp", esp, "tmpfs", 0, fmt.Sprintf("size=%d", smallESP)))
		t.Cleanup(func() { testenv.Must(t, unix.Unmount(esp, unix.MNT_DETACH)) })
		testEarlyPrune(t, esp)
	})
	t.Run("vfat", func(t *testing.T) { testEarlyPrune(t, testenv.NewDisk(t, "vfat", smallESP).Dir) })
}

func testEarlyPrune(t *testing.T, esp string) {
	t.Helper()
	testenv.Must(t, os.MkdirAll(filepath.Join(esp, entriesDir), 0o755))
	path := testenv.MemoryDir(t)
	s := newSysroot(t, path, esp)
	deploy := func(version string, early bool) error {
		st, err := s.Load(t.Context())
		testenv.Must(t, err)
		commit := objecttest.Commit(t, s.Repo(), "os/"+version, osTree(version))
		p, err := s.PlanDeploy(t.Context(), st, sysroot.Request{
			Stateroot: "os", Commit: commit, Merge: st.MergeDeployment("os"), EarlyPrune: early,
		})
		if err != nil {
			return err
		}
		return s.Execute(t.Context(), p)
	}
	check := func(want ...string) {
		t.Helper()
		if got := mirrored(t, path, esp); !slices.Equal(got, want) {
			t.Errorf("the ESP has entries of the versions %q, want %q", got, want)
		}
	}
	testenv.Must(t, deploy("1", false))
	testenv.Must(t, deploy("2", false))
	check("2", "1")
	var space *SpaceError
	if err := deploy("3", false); !errors.As(err, &space) || space.Needs <= space.Has {
		t.Errorf("deploy to a full ESP: got %v, want a SpaceError", err)
	}
	check("2", "1")
	testenv.Must(t, deploy("3", true))
	check("3", "2")
}

// newSysroot makes a sysroot with the stateroot os and an ESP.
func newSysroot(t *testing.T, path, esp string) *sysroot.Sysroot {
	t.Helper()
	loader, err := Open(esp)
	testenv.Must(t, err)
	t.Cleanup(func() { testenv.Must(t, loader.Close()) })
	dir := openDir(t, path, nil)
	defer dir.Close()
	testenv.Must(t, sysroot.Init(dir))
	s, err := sysroot.Open(dir, sysroot.Options{Bootloader: loader})
	testenv.Must(t, err)
	t.Cleanup(func() {
		thaw(t, path)
		testenv.Must(t, s.Close())
	})
	testenv.Must(t, s.InitStateroot("os"))
	return s
}

// thaw clears the immutable flags of deployments, so that they can be removed.
func thaw(t *testing.T, path string) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(path, "ostree/deploy/*/deploy/*.[0-9]"))
	testenv.Must(t, err)
	for _, name := range names {
		d, err := atfs.Open(name)
		testenv.Must(t, err)
		testenv.Must(t, errors.Join(d.SetImmutable(false), d.Close()))
	}
}

// osTree returns a tiny system with a large kernel.
func osTree(version string) *objecttest.Node {
	file, dir := objecttest.File, objecttest.Dir
	type nodes = map[string]*objecttest.Node
	return dir(0o755, nodes{
		"boot": dir(0o755, nil), "sysroot": dir(0o755, nil), "ostree": objecttest.Symlink("sysroot/ostree"), "var": dir(0o755, nil),
		"usr": dir(0o755, nodes{
			"etc": dir(0o755, nil),
			"lib": dir(0o755, nodes{
				"os-release": file(0o644, "PRETTY_NAME="+version+"\nID=test\n"),
				"modules": dir(0o755, nodes{"6.1.0": dir(0o755, nodes{
					"vmlinuz": file(0o644, "kernel "+version), "initramfs.img": file(0o600, strings.Repeat(version, largeKernel)),
				})}),
			}),
		}),
	})
}

// mirrored returns the versions of the entries of an ESP, the default first. The ESP must have the kernels of /boot and no
// others.
func mirrored(t *testing.T, path, esp string) (versions []string) {
	t.Helper()
	kernels := func(name string) map[string]string {
		dir := openDir(t, filepath.Join(name, kernelsDir), nil)
		defer dir.Close()
		return list(t, dir)
	}
	want, got := kernels(filepath.Join(path, "boot")), kernels(esp)
	if !maps.Equal(got, want) {
		t.Errorf("the ESP has the files %q, /boot has %q", slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
	}
	dir := openDir(t, filepath.Join(esp, entriesDir), nil)
	defer dir.Close()
	names, err := dir.ReadNames()
	testenv.Must(t, err)
	slices.SortFunc(names, func(a, b string) int { return -bls.CompareVersions(a, b) })
	for _, name := range names {
		e, err := readEntry(dir, name)
		testenv.Must(t, err)
		for _, p := range paths(e.entry) {
			if got[strings.TrimPrefix(p, "/"+kernelsDir+"/")] == "" {
				t.Errorf("the ESP lacks %s of the entry %s", p, name)
			}
		}
		version, _, _ := strings.Cut(e.entry.Title, " ")
		versions = append(versions, version)
	}
	return versions
}
