// Package snaptest opens snapshotters over real stores for tests.
package snaptest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/process"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/composefsmount"
)

// Env is a snapshotter with its root, repository and layer store.
type Env struct {
	Path  string
	Root  *atfs.Dir
	Repo  *objectstore.Repo
	Store *layer.Store
	*snapshotter.Snapshotter

	Recovery *layer.Recovery // of the last process's leftovers
}

// Open opens the snapshotter below path and creates what is missing. Close closes all of it.
func Open(ctx context.Context, path string, opts ...snapshotter.Option) (*Env, error) {
	return OpenWith(ctx, path, layer.Options{}, opts...)
}

// OpenWith is Open with options for the layer store.
func OpenWith(ctx context.Context, path string, layers layer.Options, opts ...snapshotter.Option) (*Env, error) {
	root, err := atfs.Open(path)
	if err != nil {
		return nil, err
	}
	return OpenAt(ctx, root, layers, opts...)
}

// OpenAt is OpenWith below a directory, which Close closes too. The directory's hook sees all operations except those
// on metadata.db. Like the daemon's start, it recovers from the last process's leftovers; incomplete layers are lost.
func OpenAt(ctx context.Context, root *atfs.Dir, layers layer.Options, opts ...snapshotter.Option) (_ *Env, err error) {
	mode, err := checkoutMode(root)
	if err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return openAt(ctx, root, layers, append(mode, opts...)...)
}

// OpenBare is Open with hard links unless the options choose otherwise, whatever mode the tests run in.
func OpenBare(ctx context.Context, path string, opts ...snapshotter.Option) (*Env, error) {
	root, err := atfs.Open(path)
	if err != nil {
		return nil, err
	}
	return openAt(ctx, root, layer.Options{}, opts...)
}

func openAt(ctx context.Context, root *atfs.Dir, layers layer.Options, opts ...snapshotter.Option) (_ *Env, err error) {
	e := &Env{Path: root.Path(), Root: root}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.Close())
		}
	}()
	if err := e.Root.MkdirAll("repo", 0o700); err != nil {
		return nil, err
	}
	dir, err := e.Root.OpenDir("repo")
	if err != nil {
		return nil, err
	}
	e.Repo, err = objectstore.Open(dir)
	if errors.Is(err, objectstore.ErrNoRepo) {
		e.Repo, err = objectstore.Create(dir, objectstore.ModeBare)
	}
	if err := errors.Join(err, dir.Close()); err != nil {
		return nil, err
	}
	verity, err := verityOn(e.Root)
	if err != nil {
		return nil, err
	}
	if err := e.Repo.SetVerity(verity); err != nil {
		return nil, err
	}
	if e.Store, err = layer.Open(e.Root, e.Repo, layers); err != nil {
		return nil, err
	}
	if err := e.Store.SweepTmp(); err != nil && !errors.Is(err, objectstore.ErrNotRemoved) {
		return nil, err
	}
	if e.Recovery, err = e.Store.Recover(ctx, nil); err != nil {
		return nil, err
	}
	e.Snapshotter, err = snapshotter.New(ctx, e.Root, e.Store, opts...)
	return e, err
}

// composefsVerity is composefs, with fs-verity on file systems that support it.
const composefsVerity = "composefs-verity"

// Composefs reports whether the tests run in composefs mode.
func Composefs() bool {
	mode := testenv.Checkout()
	return mode == "composefs" || mode == composefsVerity
}

// checkoutMode returns the option for the tests' mode.
func checkoutMode(root *atfs.Dir) ([]snapshotter.Option, error) {
	if !Composefs() {
		return nil, nil
	}
	support, err := supportOf(root)
	return []snapshotter.Option{snapshotter.WithComposefs(support)}, err
}

// verityOn reports whether objects below a directory have fs-verity.
func verityOn(root *atfs.Dir) (bool, error) {
	if testenv.Checkout() != composefsVerity {
		return false, nil
	}
	support, err := supportOf(root)
	return support.Verity, err
}

func supportOf(root *atfs.Dir) (composefsmount.Support, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(root.FD(), &st); err != nil {
		return composefsmount.Support{}, err
	}
	return probe(st.Type)
}

var probed struct {
	mu      sync.Mutex
	support map[int64]composefsmount.Support
}

// probe probes the kernel once per type of file system, since one in memory needs loop devices. It does so in a
// directory of its own: the disk of a test may be full.
func probe(fsType int64) (s composefsmount.Support, err error) {
	probed.mu.Lock()
	defer probed.mu.Unlock()
	if s, ok := probed.support[fsType]; ok {
		return s, nil
	}
	where := ""
	if fsType == unix.TMPFS_MAGIC {
		where = "/dev/shm"
	}
	name, err := os.MkdirTemp(where, "probe-")
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, os.Remove(name)) }()
	dir, err := atfs.Open(name)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	if s, err = composefsmount.Probe(dir); err != nil {
		return s, err
	}
	if testenv.Checkout() == composefsVerity {
		verity, err := s.ProbeVerity(dir)
		switch {
		case err == nil:
			s = verity
		case !errors.Is(err, composefsmount.ErrUnsupported):
			return s, err
		}
	}
	if probed.support == nil {
		probed.support = make(map[int64]composefsmount.Support)
	}
	probed.support[fsType] = s
	return s, nil
}

// Close closes everything, and unmounts the snapshotter's mounts, as a restart of the host does.
func (e *Env) Close() error {
	var err error
	if e.Snapshotter != nil {
		err = e.Snapshotter.Close()
		err = errors.Join(err, e.Unmount())
	}
	if e.Store != nil {
		err = errors.Join(err, e.Store.Close())
	}
	if e.Repo != nil {
		err = errors.Join(err, e.Repo.Close())
	}
	if e.Root != nil {
		err = errors.Join(err, e.Root.Close())
	}
	return err
}

// Kernel returns how this kernel mounts composefs images. It skips the test where it cannot.
func Kernel(tb testing.TB) composefsmount.Support {
	tb.Helper()
	testenv.NeedsRoot(tb)
	s, err := probe(0)
	if errors.Is(err, composefsmount.ErrUnsupported) {
		testenv.Unsupported(tb, "%v", err)
	}
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// Unmount unmounts all mounts of the snapshotter.
func (e *Env) Unmount() error {
	var errs []error
	for _, dir := range []string{snapshotter.MountsDir, layer.RootfsDir} {
		errs = append(errs, process.UnmountBelow(filepath.Join(e.Path, dir)))
	}
	return errors.Join(errs...)
}

// New opens a snapshotter in a temporary directory. When the test ends, it checks the repository and closes everything.
func New(tb testing.TB, opts ...snapshotter.Option) *Env {
	tb.Helper()
	testenv.NeedsRoot(tb)
	e, err := Open(tb.Context(), tb.TempDir(), opts...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		ctx := context.WithoutCancel(tb.Context())
		if err := errors.Join(e.Check(ctx), e.checkLive(ctx)); err != nil {
			tb.Error(err)
		}
		if err := e.Close(); err != nil {
			tb.Error(err)
		}
	})
	return e
}

// Reopen closes and opens everything, as a restart of the daemon does.
func (e *Env) Reopen(tb testing.TB, opts ...snapshotter.Option) {
	tb.Helper()
	if err := e.Close(); err != nil {
		tb.Fatal(err)
	}
	again, err := Open(tb.Context(), e.Path, opts...)
	if err != nil {
		tb.Fatal(err)
	}
	*e = *again
}

// Check verifies the repository with our fsck, and with ostree(1) if it is installed.
func (e *Env) Check(ctx context.Context) error {
	report, err := e.Repo.Fsck(ctx, objectstore.FsckOptions{})
	if err == nil {
		err = report.Err()
	}
	if _, lerr := exec.LookPath("ostree"); lerr != nil {
		return err
	}
	out, ferr := exec.CommandContext(ctx, "ostree", "fsck", "--repo="+filepath.Join(e.Path, "repo")).CombinedOutput()
	if ferr != nil {
		err = errors.Join(err, ferr, errors.New(string(out)))
	}
	return err
}

// checkLive verifies that the layers of all committed snapshots are live.
func (e *Env) checkLive(ctx context.Context) error {
	live, err := e.Live(ctx)
	if err != nil {
		return err
	}
	return e.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		if info.Kind != snapshots.KindCommitted {
			return nil
		}
		sum, err := objectstore.ParseChecksum(info.Labels[snapshotter.LabelLayer])
		if err != nil {
			return err
		}
		if _, ok := live[sum]; !ok {
			return fmt.Errorf("layer %s of snapshot %q does not count as needed", sum, info.Name)
		}
		return nil
	})
}

// SocketDir returns a directory with a short path for a unix socket.
func SocketDir(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("", "s-")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := errors.Join(process.UnmountBelow(dir), os.RemoveAll(dir)); err != nil {
			tb.Error(err)
		}
	})
	return dir
}

// Mount mounts in a temporary directory until the test ends, and returns the directory and a function that unmounts it
// earlier.
func Mount(tb testing.TB, mounts []mount.Mount) (target string, unmount func()) {
	tb.Helper()
	target = tb.TempDir()
	if err := mount.All(mounts, target); err != nil {
		tb.Fatalf("mount %v: %v", mounts, err)
	}
	mounted := true
	unmount = func() {
		if !mounted {
			return
		}
		mounted = false
		if err := mount.UnmountAll(target, unix.UMOUNT_NOFOLLOW); err != nil {
			tb.Error(err)
		}
	}
	tb.Cleanup(unmount)
	return target, unmount
}
