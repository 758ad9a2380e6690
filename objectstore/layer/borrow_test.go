package layer

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/objecttest"
)

// hostRepo makes the repository of a host whose operating system has n files of 4 KiB, with the names and contents of
// libFile.
func hostRepo(t *testing.T, path string, n int, mtime time.Time) *objectstore.Repo {
	t.Helper()
	testenv.Must(t, os.MkdirAll(path, 0o755))
	repo := objecttest.NewRepoAt(t, objecttest.OpenDir(t, path))
	lib := make(map[string]*objecttest.Node)
	for i := range n {
		f := objecttest.File(0o644, libContent(i))
		f.Mtime = unix.NsecToTimespec(mtime.UnixNano())
		lib[fmt.Sprintf("f%d", i)] = f
	}
	objecttest.Commit(t, repo, "os", objecttest.Dir(0o755, map[string]*objecttest.Node{"lib": objecttest.Dir(0o755, lib)}))
	return repo
}

func libContent(i int) string { return strings.Repeat(fmt.Sprintf("%8d", i), 512) }

// appTar has n files of the host's system, and one of its own.
func appTar(t *testing.T, n int) []byte {
	t.Helper()
	entries := []tarEntry{dir("lib"), dir("app"), file("app/own", strings.Repeat("own", 4000))}
	for i := range n {
		entries = append(entries, file(fmt.Sprintf("lib/f%d", i), libContent(i)))
	}
	return makeTar(t, entries...)
}

// inodes returns how many content objects of a store share their inode with the host's repository, and the bytes of the
// others.
func inodes(t *testing.T, path string, host *objectstore.Repo) (shared int, own int64) {
	t.Helper()
	names, err := filepath.Glob(path + "/repo/objects/??/*.file")
	testenv.Must(t, err)
	for _, name := range names {
		var st unix.Stat_t
		testenv.Must(t, unix.Lstat(name, &st))
		rel, err := filepath.Rel(path+"/repo/objects", name)
		testenv.Must(t, err)
		obj, err := objectstore.ParseLoosePath(rel)
		testenv.Must(t, err)
		theirs, err := host.Stat(obj.Checksum)
		switch {
		case errors.Is(err, objectstore.ErrNotExist):
			own += atfs.Allocated(&st)
		case err != nil:
			t.Fatal(err)
		case theirs.Ino == st.Ino && theirs.Dev == st.Dev:
			shared++
		default:
			t.Errorf("object %s is an inode of its own, and the host has it too", obj.Checksum)
		}
	}
	return shared, own
}

// TestBorrow imports an application on a host whose system has most of its files: only the other files take space, and
// either side can be removed.
func TestBorrow(t *testing.T) {
	testenv.NeedsRoot(t)
	const n = 50
	for _, gone := range []string{"host", "store"} {
		t.Run(gone+" goes", func(t *testing.T) {
			host := hostRepo(t, t.TempDir(), n, when)
			s, path := newStore(t, Options{Borrow: []*objectstore.Repo{host}})
			h, err := s.Import(t.Context(), strings.NewReader(string(appTar(t, n))), ImportOptions{})
			testenv.Must(t, err)
			testenv.Must(t, h.Release())
			shared, own := inodes(t, path, host)
			if shared != n || own > 64<<10 {
				t.Errorf("%d objects are the host's, %d bytes of others, want %d and less than 64 KiB", shared, own, n)
			}
			// Metadata objects count too, but not the host's files.
			if h.Added.Bytes < 12000 || h.Added.Bytes > 100<<10 {
				t.Errorf("the layer has added %d bytes, want its own file and metadata", h.Added.Bytes)
			}
			fs := checkOut(t, s, path, h.ID)
			got, err := os.ReadFile(fs + "/lib/f7")
			if err != nil || string(got) != libContent(7) {
				t.Errorf("file in the checkout: %d bytes, %v, want those of the layer", len(got), err)
			}
			if gone == "store" {
				testenv.Must(t, os.RemoveAll(path+"/repo/objects"))
				testenv.Must(t, os.RemoveAll(path+"/repo/refs/heads/oci"))
				testenv.Must(t, os.RemoveAll(path+"/layers"))
				testenv.Must(t, os.MkdirAll(path+"/repo/objects", 0o755))
				return // the host's repository is checked when the test ends
			}
			testenv.Must(t, host.DeleteRefs(t.Context(), "os"))
			p, err := host.PlanPrune(t.Context(), objectstore.PruneOptions{})
			testenv.Must(t, err)
			stats, err := p.Execute(t.Context())
			if err != nil || stats.Objects < n {
				t.Errorf("the host's prune: %+v, %v, want that it removes the system", stats, err)
			}
			if stats.Bytes > n*1024 {
				t.Errorf("the host's prune says that it frees %d bytes, which the store has still", stats.Bytes)
			}
			checkStore(t, path)
			if got, err = os.ReadFile(fs + "/lib/f7"); err != nil || string(got) != libContent(7) {
				t.Errorf("file in the checkout: %d bytes, %v, want those of the layer", len(got), err)
			}
		})
	}
}

// TestBorrowTimes has files with other times on the host, as in each repository that ostree has pulled into: an exact
// checkout on a file system without reflinks would have to copy each of them.
func TestBorrowTimes(t *testing.T) {
	testenv.NeedsRoot(t)
	for _, tt := range []struct {
		mtime  Mtime
		fstype string // "": that of temporary files
		want   int
	}{
		{MtimeExact, "ext4", 0},
		{MtimeCanonical, "ext4", 5},
		{MtimeExact, "btrfs", 5},
	} {
		t.Run(fmt.Sprintf("%s on %s", tt.mtime, tt.fstype), func(t *testing.T) {
			disk := testenv.NewDisk(t, tt.fstype, 128<<20)
			host := hostRepo(t, disk.Dir+"/host", 5, time.Unix(0, 0))
			testenv.Must(t, os.Mkdir(disk.Dir+"/store", 0o711))
			s, path := openStore(t, disk.Dir+"/store", Options{Borrow: []*objectstore.Repo{host}, Mtime: tt.mtime})
			l := importTar(t, s, appTar(t, 5))
			names, err := filepath.Glob(path + "/repo/objects/??/*.file")
			testenv.Must(t, err)
			shared := 0
			for _, name := range names {
				var st unix.Stat_t
				testenv.Must(t, unix.Lstat(name, &st))
				if st.Nlink > 1 {
					shared++
				}
			}
			if shared != tt.want {
				t.Errorf("%d objects are the host's, want %d", shared, tt.want)
			}
			fi, err := os.Stat(checkOut(t, s, path, l.ID) + "/lib/f1")
			testenv.Must(t, err)
			if exact := fi.ModTime().Equal(when); exact != (tt.mtime == MtimeExact) {
				t.Errorf("the time in the checkout is %s", fi.ModTime())
			}
		})
	}
}
