package plugin

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/diff"
	diffproxy "github.com/containerd/containerd/v2/core/diff/proxy"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/log"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/plugin/containerd/containerdtest"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/fsck"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/inspect"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/snaptest"
)

// After a power failure the daemon rebuilds damaged layers from their blobs before it serves, or names the snapshots
// that are lost.
func TestPowerLossOfTheDaemon(t *testing.T) {
	for _, tt := range []struct {
		name string
		blob func(t *testing.T, c *Config, file string) // moves or damages the blob before the next start
		ok   bool
	}{
		{"blob where it was", func(*testing.T, *Config, string) {}, true},
		{"blob in the content root", func(t *testing.T, c *Config, file string) {
			t.Helper()
			c.Containerd.ContentRoot = t.TempDir()
			to := filepath.Join(c.Containerd.ContentRoot, "blobs/sha256", filepath.Base(file))
			if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(file, to); err != nil {
				t.Fatal(err)
			}
		}, true},
		{"blob is another", func(t *testing.T, _ *Config, file string) {
			t.Helper()
			if err := os.WriteFile(file, []byte("something else"), 0o644); err != nil {
				t.Fatal(err)
			}
		}, false},
		{"blob is gone", func(t *testing.T, _ *Config, file string) {
			t.Helper()
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
		}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := testConfig(t)
			c.Checkout = CheckoutHardlink // nothing is created in the background while the store is copied
			f := containerdtest.NewAt(t, c.Containerd.Address)
			f.ContentRoot = f.Dir
			desc := f.Blob(ocispec.MediaTypeImageLayer, snaptest.Tar(t, snaptest.File("file", "content")))
			conn, _ := start(t, c)
			sn := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "ostree")
			ctx := namespaces.WithNamespace(t.Context(), "default")
			m, err := sn.Prepare(ctx, "default/1/extract-1 x", "")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := diffproxy.NewDiffApplier(diffapi.NewDiffClient(conn)).(diff.Applier).Apply(ctx, desc, m); err != nil {
				t.Fatal(err)
			}
			if err := sn.Commit(ctx, "default/2/x", "default/1/extract-1 x"); err != nil {
				t.Fatal(err)
			}

			after := powerLoss(t, c)
			tt.blob(t, after, filepath.Join(f.Dir, "blobs/sha256", desc.Digest.Encoded()))
			var logged bytes.Buffer
			logger := logrus.New()
			logger.SetOutput(&logged)
			s, err := Assemble(log.WithLogger(t.Context(), logrus.NewEntry(logger)), after)
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			}()
			names, err := filepath.Glob(filepath.Join(after.Root, "journal/*"))
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range names { // a checkout that was rebuilt may have one
				if b, err := os.ReadFile(name); err != nil || bytes.Contains(b, []byte(bootBefore)) {
					t.Errorf("journal: entry is left, or %v:\n%s", err, b)
				}
			}
			if out, err := exec.CommandContext(ctx, "ostree", "fsck", "--repo="+after.RepoPath()).CombinedOutput(); err != nil {
				t.Errorf("ostree fsck: %v\n%s", err, out)
			}
			if tt.ok {
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				checkClean(t, after)
				if s, err = Assemble(t.Context(), after); err != nil {
					t.Fatal(err)
				}
			}
			m, err = s.Snapshotter().View(ctx, "view", "default/2/x")
			if !tt.ok {
				if err == nil || !strings.Contains(err.Error(), "is lost") {
					t.Errorf("got %v, want a lost layer", err)
				}
				if !strings.Contains(logged.String(), "default/2/x") {
					t.Errorf("log does not name the snapshot:\n%s", logged.String())
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			dir, unmount := snaptest.Mount(t, m)
			defer unmount()
			if b, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || string(b) != "content" {
				t.Errorf("got %q, %v", b, err)
			}
		})
	}
}

// checkClean checks a store that no daemon uses.
func checkClean(t *testing.T, c *Config) {
	t.Helper()
	s, err := OpenShared(c, nil)
	if err != nil {
		t.Fatal(err)
	}
	r, err := fsck.Check(t.Context(), &inspect.Store{Root: s.Root, Repo: s.Repo, Layers: s.Layers, Daemon: c.Address}, fsck.Options{})
	if err = errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	if len(r.Problems) > 0 || r.Unread != nil {
		t.Errorf("fsck: got problems %+v, snapshots unread: %v, want none", r.Problems, r.Unread)
	}
}

// However many objects are damaged and layers lost, the log has one line about each kind, with counts and three names.
func TestRecoveryLog(t *testing.T) {
	r := &layer.Recovery{Entries: 2, Objects: 3000}
	for i := range 2742 {
		sum := objectstore.Checksum{byte(i), byte(i >> 8)}
		r.Damaged = append(r.Damaged, objectstore.ObjectName{Type: objectstore.TypeFile, Checksum: sum})
	}
	for i := range 5 {
		r.Lost = append(r.Lost, layer.LostLayer{ID: objectstore.Checksum{0xff, byte(i)}, Cause: layer.ErrNotExist})
	}
	var logged bytes.Buffer
	logger := logrus.New()
	logger.SetOutput(&logged)
	logRecovery(logrus.NewEntry(logger), r)
	lines := strings.Split(strings.TrimSpace(logged.String()), "\n")
	if len(lines) != 2 {
		t.Fatalf("got %d lines, want 2:\n%s", len(lines), logged.String())
	}
	for i, want := range [][]string{
		{"damaged=2742", "lost=5", r.Damaged[0].String(), r.Damaged[2].String(), "and 2739 more"},
		{"lost=5", r.Lost[0].ID.String(), r.Lost[2].ID.String(), "and 2 more", "fsck"},
	} {
		for _, text := range want {
			if !strings.Contains(lines[i], text) {
				t.Errorf("line %q lacks %q", lines[i], text)
			}
		}
	}
	if strings.Contains(logged.String(), r.Damaged[3].String()) || strings.Contains(logged.String(), r.Lost[3].ID.String()) {
		t.Errorf("log names more than three:\n%s", logged.String())
	}
}

// bootBefore is the boot of a journal after powerLoss.
const bootBefore = "boot before the power failure"

// powerLoss returns the configuration of a daemon for a copy of the store in which no object was written back.
func powerLoss(t *testing.T, c *Config) *Config {
	t.Helper()
	after := testConfig(t)
	after.Containerd, after.Checkout = c.Containerd, c.Checkout
	if err := os.Remove(after.Root); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "cp", "-a", c.Root, after.Root).CombinedOutput(); err != nil {
		t.Fatalf("copy: %v\n%s", err, out)
	}
	entries, err := filepath.Glob(filepath.Join(after.Root, "journal", "*"))
	if err != nil || len(entries) == 0 {
		t.Fatalf("journal: got %v, %v, want entries", entries, err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range entries {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, bytes.ReplaceAll(b, bytes.TrimSpace(boot), []byte(bootBefore)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	objects, err := filepath.Glob(filepath.Join(after.Root, "repo/objects/*/*"))
	if err != nil || len(objects) == 0 {
		t.Fatalf("objects: got %v, %v, want some", objects, err)
	}
	for _, name := range objects {
		if err := os.Truncate(name, 0); err != nil {
			t.Fatal(err)
		}
	}
	return after
}
