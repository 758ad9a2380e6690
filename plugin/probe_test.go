package plugin

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// faulty returns an opener of directories in which operations fail with the errors that fail returns. fail gets the
// base name of the file.
func faulty(fail func(op atfs.Op, name string) error) opener {
	return func(name string) (*atfs.Dir, error) {
		plain, err := atfs.Open(name)
		if err != nil {
			return nil, err
		}
		defer plain.Close()
		return plain.WithHook(func(op atfs.Op, name string) error { return fail(op, path.Base(name)) })
	}
}

// failed returns the errors of findings, by name of the check.
func failed(list []Finding) map[string]error {
	errs := make(map[string]error)
	for _, f := range list {
		if f.Err != nil && !errors.Is(f.Err, ErrNotChecked) {
			errs[f.Check] = f.Err
		}
	}
	return errs
}

// Each fault of a file system is found by Probe and refused by OpenStore, with the same text.
func TestProbeFindsWhatOpenStoreRefuses(t *testing.T) {
	ops := func(errno error, which ...atfs.Op) func(atfs.Op, string) error {
		return func(op atfs.Op, _ string) error {
			if slices.Contains(which, op) {
				return errno
			}
			return nil
		}
	}
	for _, tt := range []struct {
		name  string
		fault func(op atfs.Op, name string) error
		mount func(t *testing.T, c *Config)
		check string
		want  string
	}{
		{name: "no O_TMPFILE", fault: ops(unix.EOPNOTSUPP, atfs.OpTmpFile), check: "root", want: "file system does not support O_TMPFILE"},
		{name: "no extended attributes", fault: ops(unix.EOPNOTSUPP, atfs.OpSetxattr), check: "root", want: "file system does not support extended attributes"},
		{name: "no whiteouts", fault: ops(unix.EPERM, atfs.OpMknod), check: "root", want: "file system does not support whiteouts"},
		{
			name: "no links of unnamed files", check: "root", want: "file system does not support hard links of unnamed files",
			fault: func(op atfs.Op, name string) error {
				if op == atfs.OpLink && name == "a" {
					return unix.EOPNOTSUPP
				}
				return nil
			},
		},
		{
			name: "no links", check: "root", want: "file system does not support hard links:",
			fault: func(op atfs.Op, name string) error {
				if op == atfs.OpLink && name == "b" {
					return unix.EMLINK
				}
				return nil
			},
		},
		{
			// As between subvolumes of btrfs, which can have equal device numbers.
			name: "no links from the root to the repository", check: "repository", want: "not on the file system of root",
			fault: func(op atfs.Op, name string) error {
				if op == atfs.OpLink && strings.HasPrefix(name, "probe-") {
					return unix.EXDEV
				}
				return nil
			},
		},
		{
			name: "ramfs", check: "root", want: "extended attributes",
			mount: func(t *testing.T, c *Config) { t.Helper(); mountFS(t, "ramfs", c.Root) },
		},
		{
			name: "an overlay, as in a container", check: "root", want: "overlay",
			mount: func(t *testing.T, c *Config) { t.Helper(); mountOverlay(t, c.Root) },
		},
		{
			name: "repository on another file system", check: "repository", want: "not on the file system of root",
			mount: func(t *testing.T, c *Config) {
				t.Helper()
				c.Repo = filepath.Join(filepath.Dir(c.Root), "repo")
				mountFS(t, "tmpfs", c.Repo)
				makeRepo(t, c.Repo)
			},
		},
		{
			name: "lender on another file system", check: "repository", want: "not on the file system of root",
			mount: func(t *testing.T, c *Config) {
				t.Helper()
				c.DedupRepos = []string{filepath.Join(filepath.Dir(c.Root), "host")}
				mountFS(t, "tmpfs", c.DedupRepos[0])
				makeRepo(t, c.DedupRepos[0])
			},
		},
		{
			name: "something of another user's", check: "root", want: "it must be root's",
			mount: func(t *testing.T, c *Config) {
				t.Helper()
				dir := filepath.Join(c.Root, "snapshots")
				if err := errors.Join(os.Mkdir(dir, 0o700), os.Chown(dir, 12345, 12345)); err != nil {
					t.Fatal(err)
				}
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := testConfig(t)
			if err := os.MkdirAll(c.Root, 0o711); err != nil {
				t.Fatal(err)
			}
			if tt.mount != nil {
				tt.mount(t, c)
			}
			open := opener(atfs.Open)
			if tt.fault != nil {
				open = faulty(tt.fault)
			}
			before := entries(t, c.Root)
			found := failed(probe(c, open))
			err := found[tt.check]
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Probe finds %v, want an error of %s with %q", found, tt.check, tt.want)
			}
			if after := entries(t, c.Root); !slices.Equal(before, after) {
				t.Errorf("Probe has left %v, there was %v", after, before)
			}
			s, openErr := openStore(t.Context(), c, open)
			if openErr == nil {
				_ = s.Close()
				t.Fatal("OpenStore opens the store")
			}
			if err != nil && normal(openErr) != normal(err) {
				t.Errorf("OpenStore returns %q, Probe %q", normal(openErr), normal(err))
			}
		})
	}
}

// normal returns an error's text without random names.
func normal(err error) string {
	text := err.Error()
	if i := strings.Index(text, "probe-"); i >= 0 {
		if _, after, ok := strings.Cut(text[i:], ": "); ok {
			dir := strings.LastIndexAny(text[:i], " ")
			return text[:dir] + " …: " + after
		}
	}
	return text
}

func entries(t *testing.T, dir string) (names []string) {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

func mountOverlay(t *testing.T, at string) {
	t.Helper()
	base := t.TempDir()
	for _, name := range []string{"l", "u", "w"} {
		if err := os.Mkdir(filepath.Join(base, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	options := fmt.Sprintf("lowerdir=%s/l,upperdir=%s/u,workdir=%s/w", base, base, base)
	if err := unix.Mount("overlay", at, "overlay", 0, options); err != nil {
		testenv.Unsupported(t, "needs overlayfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// Probe finds no fault where OpenStore succeeds: without a root, with an empty root, and with an open or closed store.
func TestProbe(t *testing.T) {
	c := testConfig(t)
	host := filepath.Join(filepath.Dir(c.Root), "host")
	makeRepo(t, host)
	c.DedupRepos = []string{host}
	notChecked := func(want ...string) {
		t.Helper()
		var got []string
		for _, f := range Probe(c) {
			switch {
			case errors.Is(f.Err, ErrNotChecked):
				got = append(got, f.Check)
			case f.Err != nil:
				t.Errorf("%s: %v", f.Check, f.Err)
			case f.Detail == "":
				t.Errorf("%s: no detail", f.Check)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("not checked: %v, want %v", got, want)
		}
	}
	notChecked("root", "checkouts")
	if err := os.Mkdir(c.Root, 0o711); err != nil {
		t.Fatal(err)
	}
	notChecked()
	s, err := OpenStore(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	notChecked()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	notChecked()
	if names := entries(t, filepath.Join(c.Root, "tmp")); len(names) > 0 {
		t.Errorf("tmp has %v, want nothing", names)
	}
	c.DedupRepos = nil
	c.Root += "-absent"
	notChecked("root", "repository", "checkouts")
}

// TestProbeJournal has roots on ext4 with a journal and without.
func TestProbeJournal(t *testing.T) {
	for option, want := range map[string]bool{"-Jsize=4": false, "-O^has_journal": true} {
		c := testConfig(t)
		c.Root = testenv.NewDisk(t, "ext4", 64<<20, "-q", option).Dir
		for _, f := range Probe(c) {
			if f.Check == "root" && (f.Err != nil || strings.Contains(f.Detail, "ext4 without a journal") != want) {
				t.Errorf("%s: got %q (%v), want one about the journal: %t", option, f.Detail, f.Err, want)
			}
		}
	}
}

// TestProbeNamespaces checks that the report says what sharing between namespaces gives away.
func TestProbeNamespaces(t *testing.T) {
	for _, tt := range []struct {
		share, skip bool
		want        string
	}{
		{false, false, "each has the blobs of its images"},
		{true, false, "share_namespaces: images may lack blobs"},
		{false, true, "skip_download: images may lack blobs"},
		{true, true, "share_namespaces, skip_download: images may lack blobs"},
	} {
		c := DefaultConfig()
		c.Root = filepath.Join(t.TempDir(), "none")
		c.ShareNamespaces, c.SkipDownload = tt.share, tt.skip
		list := Probe(c)
		i := slices.IndexFunc(list, func(f Finding) bool { return f.Check == "namespaces" })
		if i < 0 || list[i].Err != nil || !strings.HasPrefix(list[i].Detail, tt.want) {
			t.Errorf("share_namespaces %v, skip_download %v: found %v, want %q", tt.share, tt.skip, list, tt.want)
		}
	}
}
