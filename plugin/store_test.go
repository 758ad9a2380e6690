package plugin

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/objecttest"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/snaptest"
)

// testConfig returns a configuration with all paths in a temporary directory, short enough for a socket.
func testConfig(tb testing.TB) *Config {
	tb.Helper()
	testenv.NeedsRoot(tb)
	dir := snaptest.SocketDir(tb)
	c := DefaultConfig()
	c.Root = filepath.Join(dir, "root")
	c.Address = filepath.Join(dir, "run", "s")
	c.Containerd.Address = filepath.Join(dir, "containerd")
	return c
}

// mountFS mounts an empty file system on dir until the test ends.
func mountFS(tb testing.TB, fstype, dir string) {
	tb.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		tb.Fatal(err)
	}
	if err := unix.Mount(fstype, dir, fstype, 0, ""); err != nil {
		testenv.Unsupported(tb, "needs a kernel with %s: %v", fstype, err)
	}
	tb.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			tb.Error(err)
		}
	})
}

func TestOpenStore(t *testing.T) {
	c := testConfig(t)
	for i := range 2 { // creates the store, then finds it
		s, err := OpenStore(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := OpenStore(t.Context(), c); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("in use by process %d", os.Getpid())) {
			t.Errorf("second instance: got %v, want an error that names this process", err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]fs.FileMode{".": 0o711, "repo": 0o700, "layers": 0o700, "tmp": 0o700, "lock": 0o600} {
			fi, err := os.Stat(filepath.Join(c.Root, name))
			if err != nil || fi.Mode().Perm() != want {
				t.Errorf("run %d: %s is %v, %v, want %o", i, name, fi.Mode(), err, want)
			}
		}
		if ents, err := os.ReadDir(filepath.Join(c.Root, "tmp")); err != nil || len(ents) != 0 {
			t.Errorf("tmp has %v, %v, want nothing", ents, err)
		}
	}
}

func TestOpenStoreSweepsTmp(t *testing.T) {
	c := testConfig(t)
	left := filepath.Join(c.Root, "tmp", "checkout-X", "fs")
	if err := os.MkdirAll(left, 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := OpenStore(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := os.Stat(left); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the unfinished checkout of a dead process still exists: %v", err)
	}
}

// An unsuitable host is found at start, with an error that names the missing feature.
func TestOpenStoreOnAnUnsuitableFileSystem(t *testing.T) {
	for _, c := range []struct{ fstype, want string }{
		{"ramfs", "extended attributes"},
		{"proc", ""},
	} {
		t.Run(c.fstype, func(t *testing.T) {
			config := testConfig(t)
			mountFS(t, c.fstype, config.Root)
			_, err := OpenStore(t.Context(), config)
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), config.Root) {
				t.Errorf("got %v, want an error about %s that has %q", err, config.Root, c.want)
			}
			if err != nil && strings.Contains(err.Error(), "\n") {
				t.Errorf("error has several lines: %q", err)
			}
		})
	}
	t.Run("overlay", func(t *testing.T) {
		config := testConfig(t)
		base := filepath.Dir(config.Root)
		for _, name := range []string{"root", "l", "u", "w"} {
			if err := os.Mkdir(filepath.Join(base, name), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		options := fmt.Sprintf("lowerdir=%s/l,upperdir=%s/u,workdir=%s/w", base, base, base)
		if err := unix.Mount("overlay", config.Root, "overlay", 0, options); err != nil {
			testenv.Unsupported(t, "needs overlayfs: %v", err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(config.Root, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
		if _, err := OpenStore(t.Context(), config); err == nil {
			t.Error("a root inside a container's own file system was accepted")
		}
	})
}

// makeRepo creates a repository in a directory that need not exist.
func makeRepo(t *testing.T, dir string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(dir, 0o700), os.Chmod(dir, 0o700)); err != nil { // it may be the root of a file system
		t.Fatal(err)
	}
	d, err := atfs.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	r, err := objectstore.Create(d, objectstore.ModeBare)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
}

// bind mounts a directory a second time, until the test ends.
func bind(t *testing.T, dir, at string, flags uintptr) {
	t.Helper()
	if err := os.MkdirAll(at, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(dir, at, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	if err := unix.Mount("", at, "", unix.MS_REMOUNT|unix.MS_BIND|flags, ""); err != nil {
		t.Fatal(err)
	}
}

func TestRepositoryElsewhere(t *testing.T) {
	for _, c := range []struct {
		name    string
		prepare func(t *testing.T, repo string)
		want    string // in the error; "" for none
	}{
		{"same file system", makeRepo, ""},
		{"not there", func(*testing.T, string) {}, "open repository"},
		{"empty directory", func(t *testing.T, repo string) {
			t.Helper()
			if err := os.Mkdir(repo, 0o700); err != nil {
				t.Fatal(err)
			}
		}, "open repository"},
		{"another file system", func(t *testing.T, repo string) {
			t.Helper()
			mountFS(t, "tmpfs", repo)
			makeRepo(t, repo)
		}, "not on the file system of root"},
		{"bind mount of the same file system", func(t *testing.T, repo string) {
			t.Helper()
			makeRepo(t, repo+".real")
			bind(t, repo+".real", repo, 0)
		}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := testConfig(t)
			config.Repo = filepath.Join(filepath.Dir(config.Root), "repo")
			c.prepare(t, config.Repo)
			s, err := OpenStore(t.Context(), config)
			if c.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				checkLinked(t, s)
				if err := s.Close(); err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), config.Repo) {
				t.Errorf("got %v, want an error about %s with %q", err, config.Repo, c.want)
			}
		})
	}
}

// TestReachableRepo has repositories outside the root that users of the host can reach or change. They are refused, by serve
// and by config check alike, unless shared_repo accepts that they can be reached.
func TestReachableRepo(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(repo string) error
		shared bool
		lender bool
		want   string // "" if it is accepted
	}{
		{name: "private", change: func(string) error { return nil }},
		{name: "reachable", change: func(repo string) error { return os.Chmod(repo, 0o755) }, want: "users of the host can reach the objects"},
		{name: "reachable and accepted", change: func(repo string) error { return os.Chmod(repo, 0o755) }, shared: true},
		{name: "objects private", change: func(repo string) error {
			return errors.Join(os.Chmod(repo, 0o755), os.Chmod(repo+"/objects", 0o700))
		}},
		{name: "below a private directory", change: func(repo string) error {
			return errors.Join(os.Chmod(repo, 0o755), os.Chmod(filepath.Dir(repo), 0o700))
		}},
		{name: "another user's", change: func(repo string) error { return os.Chown(repo, 12345, 0) }, shared: true, want: "it must be root's"},
		{name: "another user's objects", change: func(repo string) error { return os.Chown(repo+"/objects", 12345, 0) }, shared: true, want: "it must be root's"},
		{name: "writable for a group", change: func(repo string) error { return os.Chmod(repo+"/objects", 0o770) }, shared: true, want: "only root may write"},
		{name: "lender reachable", change: func(repo string) error { return os.Chmod(repo, 0o755) }, lender: true},
		{name: "lender another user's", change: func(repo string) error { return os.Chown(repo, 12345, 0) }, lender: true, want: "it must be root's"},
		{name: "lender writable for all", change: func(repo string) error { return os.Chmod(repo+"/objects", 0o777) }, lender: true, want: "only root may write"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			config := testConfig(t)
			testenv.Must(t, os.MkdirAll(config.Root, 0o711))
			for dir := filepath.Dir(config.Root); dir != os.TempDir(); dir = filepath.Dir(dir) {
				testenv.Must(t, os.Chmod(dir, 0o755)) // t.TempDir is private
			}
			repo := filepath.Join(filepath.Dir(config.Root), "outside")
			makeRepo(t, repo)
			testenv.Must(t, os.Chmod(repo+"/objects", 0o755))
			testenv.Must(t, tt.change(repo))
			if tt.lender {
				config.DedupRepos = []string{repo}
			} else {
				config.Repo, config.SharedRepo = repo, tt.shared
			}
			found := ""
			for _, f := range Probe(config) {
				if f.Check == "repository" && f.Err != nil {
					found = f.Err.Error()
				}
			}
			s, err := OpenStore(t.Context(), config)
			if err == nil {
				testenv.Must(t, s.Close())
			}
			got := ""
			if err != nil {
				got = err.Error()
			}
			if found != got || (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
				t.Errorf("open: %q, config check: %q, want both with %q", got, found, tt.want)
			}
			if !tt.lender {
				return
			}
			shared, err := OpenShared(config, nil)
			testenv.Must(t, err)
			if lends := len(shared.lenders) > 0; lends != (tt.want == "") {
				t.Errorf("a command borrows from it: %t, want %t", lends, tt.want == "")
			}
			testenv.Must(t, shared.Close())
		})
	}
}

// checkLinked checks that a checkout has the inodes of the repository.
func checkLinked(t *testing.T, s *Store) {
	t.Helper()
	id, sum := importInto(t, s, "linked")
	if _, _, err := s.Layers.Checkout(t.Context(), []objectstore.Checksum{id}); err != nil {
		t.Fatal(err)
	}
	if st, err := s.Repo.Stat(sum); err != nil || st.Nlink != 2 {
		t.Errorf("the object has %d names, %v, want one in the checkout too", st.Nlink, err)
	}
}

// importInto imports a layer with one file, owned by root, and returns the layer and the object of the file.
func importInto(t *testing.T, s *Store, content string) (id, object objectstore.Checksum) {
	t.Helper()
	h, err := s.Layers.Import(t.Context(), bytes.NewReader(snaptest.Tar(t, snaptest.File("f", content))), layer.ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := h.Release(); err != nil {
			t.Error(err)
		}
	}()
	objects, err := s.Layers.Objects(t.Context(), h.ID)
	if err != nil || len(objects) != 1 {
		t.Fatalf("objects of the layer: %v, %v, want one", objects, err)
	}
	return h.ID, objects[0]
}

// TestDedupRepos imports a file that a repository of dedup_repos has. The repository is on the mount of the root or, as
// on a host booted from ostree, on another, read-only one.
func TestDedupRepos(t *testing.T) {
	for _, mounted := range []bool{false, true} {
		t.Run(fmt.Sprintf("other mount: %t", mounted), func(t *testing.T) {
			config := testConfig(t)
			dir := filepath.Dir(config.Root)
			host := dir + "/fs/ostree/repo"
			makeRepo(t, host)
			config.DedupRepos = []string{host}
			if mounted {
				bind(t, dir+"/fs", dir+"/sysroot", unix.MS_RDONLY)
				if err := os.MkdirAll(dir+"/fs/ostree/deploy/os/var", 0o755); err != nil {
					t.Fatal(err)
				}
				bind(t, dir+"/fs/ostree/deploy/os/var", dir+"/var", 0)
				config.DedupRepos = []string{dir + "/sysroot/ostree/repo"}
				config.Root = dir + "/var/lib/root"
			}
			// The host's repository has a file of a layer, imported there as a deployment does.
			other := testConfig(t)
			first, err := OpenStore(t.Context(), other)
			if err != nil {
				t.Fatal(err)
			}
			defer first.Close()
			_, sum := importInto(t, first, "shared")
			hostRepo, err := objectstore.Open(objecttest.OpenDir(t, host))
			if err != nil {
				t.Fatal(err)
			}
			defer hostRepo.Close()
			txn, err := hostRepo.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := txn.Import(first.Repo, sum); err != nil {
				t.Fatal(err)
			}
			if err := txn.Abort(); err != nil {
				t.Fatal(err)
			}

			s, err := OpenStore(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if s.Root.Path() != config.Root || s.Repo.Dir().Path() != config.RepoPath() {
				t.Errorf("paths %s and %s, want %s and %s", s.Root.Path(), s.Repo.Dir().Path(), config.Root, config.RepoPath())
			}
			importInto(t, s, "shared")
			want, err := hostRepo.Stat(sum)
			if err != nil {
				t.Fatal(err)
			}
			got, err := s.Repo.Stat(sum)
			if err != nil || got.Ino != want.Ino || got.Dev != want.Dev {
				t.Errorf("inode %d, %v, want %d", got.Ino, err, want.Ino)
			}
		})
	}
}

func TestDedupReposErrors(t *testing.T) {
	for _, c := range []struct {
		name    string
		prepare func(t *testing.T, repo string)
		want    []string
	}{
		{"not there", func(*testing.T, string) {}, []string{"no such file or directory"}},
		{"no repository", func(t *testing.T, repo string) {
			t.Helper()
			if err := os.Mkdir(repo, 0o755); err != nil {
				t.Fatal(err)
			}
		}, []string{"dedup_repos", "not an ostree repository"}},
		{"archive", func(t *testing.T, repo string) {
			t.Helper()
			makeRepo(t, repo)
			text := "[core]\nrepo_version=1\nmode=archive-z2\n"
			if err := os.WriteFile(repo+"/config", []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}, []string{"dedup_repos", `mode "archive-z2"`}},
		{"another file system", func(t *testing.T, repo string) {
			t.Helper()
			mountFS(t, "tmpfs", repo)
			makeRepo(t, repo)
		}, []string{"dedup_repos", "not on the file system of root"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := testConfig(t)
			repo := filepath.Join(filepath.Dir(config.Root), "host")
			config.DedupRepos = []string{repo}
			c.prepare(t, repo)
			_, err := OpenStore(t.Context(), config)
			for _, want := range append(c.want, repo) {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("got %v, want an error with %q", err, want)
				}
			}
		})
	}
}

// The lock names its owner only if the file does: a power failure may leave anything in it.
func TestDamagedLock(t *testing.T) {
	c := testConfig(t)
	s, err := OpenStore(t.Context(), c)
	testenv.Must(t, err)
	defer s.Close()
	for _, content := range []string{"", "\x00\x00\x00", "\x1b[31mforged\n", strings.Repeat("1", 65)} {
		testenv.Must(t, os.WriteFile(filepath.Join(c.Root, "lock"), []byte(content), 0o600))
		if _, err := OpenStore(t.Context(), c); err == nil || !strings.HasSuffix(err.Error(), "in use by process unknown") {
			t.Errorf("lock %q: got %v, want an unknown process", content, err)
		}
	}
}
