package sysroot_test

import (
	"io/fs"
	"os"
	"path/filepath"
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
