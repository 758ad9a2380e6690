package snapshotter_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/faulttest"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/snaptest"
)

// bulkyImage has two layers, all of whose files differ.
func bulkyImage(t *testing.T, files int) (img image, want map[string]string) {
	t.Helper()
	rnd := rand.New(rand.NewPCG(1, 1))
	want = make(map[string]string)
	for i := range 2 {
		headers := []tar.Header{snaptest.Dir("dir")}
		for j := range files {
			name, content := fmt.Sprintf("dir/%d-%d", i, j), make([]byte, 1+rnd.IntN(16<<10))
			for k := range content {
				content[k] = byte(rnd.Uint32())
			}
			want[name] = string(content)
			headers = append(headers, snaptest.File(name, want[name]))
		}
		data := snaptest.Tar(t, headers...)
		img.tars = append(img.tars, data)
		img.chain = append(img.chain, digest.FromBytes(data))
	}
	return img, want
}

// use unpacks an image, runs a container on it, commits the container's files and removes everything again. It skips
// finished steps, as containerd does, and repeats unfinished ones.
func use(ctx context.Context, e *snaptest.Env, img image) error {
	for i := range img.tars {
		if err := unpackOnce(ctx, e, img, i); err != nil {
			return err
		}
	}
	mounts, err := anew(ctx, e, "container", img.unpacked(len(img.tars)))
	if err != nil {
		return err
	}
	for _, o := range mounts[0].Options {
		if upper, ok := strings.CutPrefix(o, "upperdir="); ok {
			if err := os.WriteFile(filepath.Join(upper, "written"), make([]byte, 100<<10), 0o600); err != nil {
				return err
			}
		}
	}
	if err := e.Commit(ctx, "saved", "container"); err != nil {
		return err
	}
	if err := e.Remove(ctx, "saved"); err != nil {
		return err
	}
	return e.Cleanup(ctx)
}

func unpackOnce(ctx context.Context, e *snaptest.Env, img image, i int) error {
	name, parent := img.unpacked(i+1), ""
	if _, err := e.Stat(ctx, name); !errdefs.IsNotFound(err) {
		return err
	}
	if i > 0 {
		parent = img.unpacked(i)
	}
	mounts, err := anew(ctx, e, extract, parent)
	if err != nil {
		return err
	}
	id, _, err := e.Locate(ctx, mounts)
	if err != nil {
		return err
	}
	held, err := e.Store.Import(ctx, bytes.NewReader(img.tars[i]), layer.ImportOptions{})
	if err != nil {
		return err
	}
	if err := errors.Join(e.AddLayer(ctx, id, held, false), held.Release()); err != nil {
		return err
	}
	return e.Commit(ctx, name, extract)
}

// anew prepares a snapshot after removing leftovers of an earlier attempt.
func anew(ctx context.Context, e *snaptest.Env, key, parent string) ([]mount.Mount, error) {
	for _, name := range []string{"saved", key} {
		if err := e.Remove(ctx, name); err != nil && !errdefs.IsNotFound(err) {
			return nil, err
		}
	}
	return e.Prepare(ctx, key, parent)
}

// empty removes all snapshots. The store must be empty then.
func empty(t *testing.T, e *snaptest.Env, img image) {
	t.Helper()
	for _, name := range []string{"saved", "container", extract, img.unpacked(2), img.unpacked(1)} {
		if err := e.Remove(t.Context(), name); err != nil && !errdefs.IsNotFound(err) {
			t.Error(err)
		}
	}
	testenv.Must(t, e.Cleanup(t.Context()))
	if names := left(t, e); len(names) != 0 {
		t.Errorf("left: %q", names)
	}
}

// plain fails the test if an error has another text than want. A second line is allowed: cleaning up can fail for the
// same reason, if the rest of the process takes the file descriptor that became free.
func plain(t *testing.T, err error, want unix.Errno) {
	t.Helper()
	if err == nil {
		return
	}
	for line := range strings.SplitSeq(err.Error(), "\n") {
		if !errors.Is(err, want) || !strings.HasSuffix(line, want.Error()) {
			t.Errorf("got error %q, want each line to end in %q", err, want)
		}
	}
}

// A resource of a disk can run out.
type resource struct {
	name  string
	slack int // needed for a moment, besides permanent use
	free  func(*unix.Statfs_t) int
	take  func(t *testing.T, dir string, n int) // uses n of it in an empty directory
}

var resources = []resource{
	{"bytes", 400 << 10, func(st *unix.Statfs_t) int { return int(st.Bavail) * int(st.Bsize) }, func(t *testing.T, dir string, n int) {
		t.Helper()
		f, err := os.Create(filepath.Join(dir, "ballast"))
		testenv.Must(t, err)
		testenv.Must(t, errors.Join(unix.Fallocate(int(f.Fd()), 0, 0, int64(n-16<<10)), f.Close()))
	}},
	{"inodes", 40, func(st *unix.Statfs_t) int { return int(st.Ffree) }, func(t *testing.T, dir string, n int) {
		t.Helper()
		for i := range n {
			testenv.Must(t, os.WriteFile(filepath.Join(dir, strconv.Itoa(i)), nil, 0o600))
		}
	}},
}

// TestFullDisk checks that on a disk that fills up at any point, operations fail with a plain error and the store stays
// whole. After space is freed, they work, and nothing was lost or is left over.
func TestFullDisk(t *testing.T) {
	testenv.NeedsOverlay(t)
	silence(t)
	img, want := bulkyImage(t, 40)
	for _, r := range resources {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			free := func(path string) int {
				var st unix.Statfs_t
				testenv.Must(t, unix.Statfs(path, &st))
				return r.free(&st)
			}
			need := 0 // total need
			const levels = 20
			failed := 0
			for level := -1; level <= levels; level++ { // the first level has room enough
				t.Run(fmt.Sprintf("%d", level), func(t *testing.T) {
					disk := testenv.NewDisk(t, "ext4", 12<<20, "-q", "-m", "0", "-b", "1024", "-N", "600")
					e := openSwept(t, disk.Dir, nil)
					checkRepo(t, e) // creates the lock file
					ballast := filepath.Join(disk.Dir, "ballast")
					testenv.Must(t, os.Mkdir(ballast, 0o700))
					before := free(disk.Dir)
					if level >= 0 {
						r.take(t, ballast, before-need*level/levels)
					}
					err := use(t.Context(), e, img)
					plain(t, err, unix.ENOSPC)
					checkRepo(t, e)
					if err != nil {
						t.Log(err)
						failed++
						if level%2 == 0 { // removing garbage from a full disk works or fails as plainly
							plain(t, e.Cleanup(t.Context()), unix.ENOSPC)
							checkRepo(t, e)
						}
						testenv.Must(t, os.RemoveAll(ballast))
						testenv.Must(t, use(t.Context(), e, img))
					}
					if level < 0 {
						need = before - free(disk.Dir) + r.slack
					}
					testenv.Must(t, e.Close())
					e = openSwept(t, disk.Dir, nil)
					wantFiles(t, view(t, e, img.unpacked(2)), want)
					empty(t, e, img)
					testenv.Must(t, e.Close())
				})
			}
			if failed < levels/2 || failed > levels {
				t.Errorf("the disk was full %d times of %d", failed, levels+1)
			}
		})
	}
}

const fewFilesEnv = "OSTREE_SNAPSHOTTER_TEST_FEW_FILES"

// TestFewFiles checks that with any limit of open files, operations fail with a plain error or work, and the store
// stays whole. A check that cannot do its work reports no damage. With more files the same operations work.
func TestFewFiles(t *testing.T) {
	testenv.NeedsOverlay(t)
	if os.Getenv(fewFilesEnv) == "" {
		faulttest.RunChild(t, t.Name(), fewFilesEnv+"=1")
		return
	}
	silence(t)
	img, want := bulkyImage(t, 5)
	dir, _ := faulttest.Dir(t)
	for spare, failed := 0, true; failed; spare++ {
		failed = false
		ok := t.Run(strconv.Itoa(spare), func(t *testing.T) {
			limited := func(f func() error) {
				t.Helper()
				err := faulttest.WithFiles(t, spare, f)
				failed = failed || err != nil
				plain(t, err, unix.EMFILE)
			}
			path := filepath.Join(dir, strconv.Itoa(spare))
			testenv.Must(t, os.Mkdir(path, 0o711))
			var e *snaptest.Env
			open := func() (err error) {
				e, err = snaptest.OpenWith(t.Context(), path, layer.Options{Journal: true, Workers: 2})
				return err
			}
			limited(open)
			if failed {
				testenv.Must(t, open())
			}
			limited(func() error { return use(t.Context(), e, img) })
			checkRepo(t, e)
			limited(func() error { return fsckAnew(t, e.Root) })
			testenv.Must(t, use(t.Context(), e, img))
			wantFiles(t, view(t, e, img.unpacked(2)), maps.Clone(want))
			limited(func() error {
				if err := e.Remove(t.Context(), img.unpacked(2)); err != nil && !errdefs.IsNotFound(err) {
					return err
				}
				return e.Cleanup(t.Context())
			})
			checkRepo(t, e)
			empty(t, e, img)
			testenv.Must(t, e.Close())
		})
		if !ok {
			return
		}
		if !failed && spare < 5 {
			t.Errorf("%d more files are enough: the limit does nothing", spare)
		}
	}
}

// fsckAnew opens the repository and checks it, as the command does. It must report no damage.
func fsckAnew(t *testing.T, root *atfs.Dir) (err error) {
	t.Helper()
	dir, err := root.OpenDir("repo")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	repo, err := objectstore.Open(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, repo.Close()) }()
	report, err := repo.Fsck(t.Context(), objectstore.FsckOptions{Workers: 16})
	if err == nil && len(report.Problems) > 0 {
		t.Errorf("fsck of a store that is whole: %d problems, first %v", len(report.Problems), report.Problems[0])
	}
	return err
}
