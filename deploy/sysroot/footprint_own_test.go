package sysroot_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// diskUsage returns the allocated bytes of what is below a directory, each inode once.
func diskUsage(t *testing.T, dir string) (sum int64) {
	t.Helper()
	seen := map[atfs.Inode]bool{}
	testenv.Must(t, filepath.WalkDir(dir, func(name string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(name, &st); err != nil {
			return err
		}
		if i := atfs.InodeOf(&st); !seen[i] {
			seen[i] = true
			sum += atfs.Allocated(&st)
		}
		return nil
	}))
	return sum
}

// TestFootprintOfCopies: the unique size of a deployment is what removing it frees, with the files that are no objects.
func TestFootprintOfCopies(t *testing.T) {
	testenv.NeedsRoot(t)
	path := testenv.NewDisk(t, "ext4", 64<<20).Dir // where directories take space
	initSysroot(t, path)
	b := openSysroot(t, path, sysroot.Options{})
	for _, version := range []string{"1", "2"} {
		tree := osTree(version, "kernel")
		at(tree, "opt")["data"] = file(0o644, strings.Repeat(version, 40<<10))
		at(tree, "usr/lib/many")["file"] = file(0o644, strings.Repeat(version, 20<<10))
		commitTree(t, b.Repo(), "os/"+version, version, tree)
		b.deploy(ref(b, version))
		etc := filepath.Join(path, b.load().Default().Path(), "etc")
		testenv.Must(t, os.WriteFile(etc+"/local"+version, []byte(strings.Repeat("x", 100<<10)), 0o644))
		testenv.Must(t, os.Link(etc+"/local"+version, etc+"/link"+version))
	}
	testenv.Must(t, b.Repo().DeleteRefs(t.Context(), "os/1"))
	list := b.load().All()
	sizes := value(b.Footprints(t.Context(), list))(t)
	before := diskUsage(t, path+"/ostree")
	b.do(func(st *sysroot.State) (*sysroot.Plan, error) { return b.PlanUndeploy(st, 1) })
	freed, unique := before-diskUsage(t, path+"/ostree"), sizes[1].Unique
	const files = (40 + 40 + 20 + 100) << 10 // object and copy in /opt, object in /usr, file of /etc
	if unique < files || unique > freed || unique < freed-128<<10 {
		t.Errorf("unique are %d bytes, %d were freed; the large files have %d", unique, freed, files)
	}
}

// TestFootprintOfUser: a user gets the sizes without what root alone may read. What is mounted in a deployment does not count
// for anybody.
func TestFootprintOfUser(t *testing.T) {
	testenv.NeedsRoot(t)
	b := newSysroot(t)
	commitTree(t, b.Repo(), "os/1", "1", osTree("1", "kernel"))
	b.deploy(ref(b, "1"))
	list := b.load().All()
	measure := func() int64 {
		t.Helper()
		return value(b.Footprints(t.Context(), list))(t)[0].Unique
	}
	etc := filepath.Join(b.path, list[0].Path(), "etc")
	testenv.Must(t, os.WriteFile(etc+"/open", []byte(strings.Repeat("x", 64<<10)), 0o644))
	without := measure()
	testenv.Must(t, os.MkdirAll(etc+"/mnt", 0o755))
	mounted := testenv.NewDisk(t, "ext4", 16<<20).Dir
	testenv.Must(t, os.WriteFile(mounted+"/file", []byte(strings.Repeat("x", 256<<10)), 0o644))
	bind(t, mounted, etc+"/mnt")
	if got := measure(); got-without >= 256<<10 {
		t.Errorf("with a mount: %d bytes, without %d", got, without)
	}
	testenv.Must(t, os.Mkdir(etc+"/secret", 0o700))
	testenv.Must(t, os.WriteFile(etc+"/secret/file", []byte(strings.Repeat("x", 128<<10)), 0o644))
	testenv.Must(t, os.Chmod(filepath.Join(b.path, "ostree/deploy/os/backing"), 0o700))
	root := measure()
	testenv.Must(t, os.Chmod(b.path, 0o755))
	runtime.LockOSThread()
	testenv.Must(t, unix.Setfsuid(65534))
	sizes, err := b.Footprints(t.Context(), list)
	testenv.Must(t, unix.Setfsuid(0))
	runtime.UnlockOSThread()
	testenv.Must(t, err)
	if hidden := root - sizes[0].Unique; hidden < 128<<10 || hidden > 160<<10 {
		t.Errorf("a user gets %d bytes less than root, who has 128 KiB in a directory", hidden)
	}
}
