package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/stack"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
)

// TestNamespacesShare pulls an image into two namespaces. It is unpacked once, and the second namespace takes no disk
// space.
func TestNamespacesShare(t *testing.T) {
	for _, mode := range []struct {
		name    string
		unpacks int
		flags   []string
	}{
		{"sequential", 1, nil},
		{"parallel", 3, nil},
		{"local", 1, []string{"--local"}},
	} {
		t.Run(mode.name, func(t *testing.T) {
			e := start(t, func(o *stack.Options) { o.ParallelUnpacks = mode.unpacks })
			full := e.pull("first", "layers:1", mode.flags...)
			before := allocated(t, filepath.Join(e.Root, "repo"))
			e.pull("second", "layers:1", mode.flags...)
			e.importedOnce("layers:1")
			if after := allocated(t, filepath.Join(e.Root, "repo")); after != before {
				t.Errorf("the repository grew from %d to %d bytes", before, after)
			}
			e.compare("layers:1", e.view("second", full))
			e.ctr("first", "images", "rm", "--sync", full)
			e.compare("layers:1", e.view("second", full))
			e.run("second", full, "/bin/true")
		})
	}
}

// TestMediaTypesShare pulls the same layers under other digests. The store does not grow.
func TestMediaTypesShare(t *testing.T) {
	e := start(t, nil)
	e.pull(defaultNS, "layers:1")
	before := allocated(t, filepath.Join(e.Root, "repo/objects"))
	for _, ref := range []string{"layers:zstd", "layers:tar", "layers:docker"} {
		full := e.pull(defaultNS, ref)
		e.compare(ref, e.view(defaultNS, full))
	}
	if after := allocated(t, filepath.Join(e.Root, "repo/objects")); after != before {
		t.Errorf("the objects grew from %d to %d bytes", before, after)
	}
}

// TestUpdateSharesFiles pulls an image and its rebuild. Only the changes of the second layer are stored. When the first
// image goes, the usage that containerd reports for the second one is all that the store has.
func TestUpdateSharesFiles(t *testing.T) {
	e := start(t, nil)
	e.pull(defaultNS, "base:1")
	one := allocated(t, filepath.Join(e.Root, "repo"))
	full := e.pull(defaultNS, "base:2")
	two := allocated(t, filepath.Join(e.Root, "repo"))
	e.compare("base:2", e.view(defaultNS, full))
	e.run(defaultNS, full, "/usr/bin/python3", "-c", "import numpy")
	t.Logf("repository after base:1: %d bytes, after base:2: %d bytes", one, two)
	if two-one > one*6/10 {
		t.Errorf("base:2 took %d bytes after base:1 took %d, want at most six tenths", two-one, one)
	}
	e.usage(defaultNS)
	e.ctr(defaultNS, "images", "rm", "--sync", strings.Replace(full, "base:2", "base:1", 1))
	e.prune() // waits for what the daemon removes in the background
	e.usage(defaultNS)
}

// usage adds up the usages of a namespace's snapshots, as CRI does for the kubelet, and fails the test unless the sum is
// the space of the store's files.
func (e *env) usage(namespace string) {
	e.t.Helper()
	ctx := namespaces.WithNamespace(e.t.Context(), namespace)
	sn := e.Client().SnapshotService(e.Snapshotter)
	var sum snapshots.Usage
	err := sn.Walk(ctx, func(ctx context.Context, info snapshots.Info) error {
		u, err := sn.Usage(ctx, info.Name)
		sum.Add(u)
		return err
	})
	e.must(err)
	most := allocated(e.t, filepath.Join(e.Root, "repo/objects"), filepath.Join(e.Root, "layers"))
	const directories = 3 << 20 // of the repository
	if sum.Size > most || sum.Size < most-directories {
		e.t.Errorf("the usages add up to %d bytes, and the store takes %d", sum.Size, most)
	}
}

// allocated returns the disk space of trees, with each inode counted once.
func allocated(t *testing.T, roots ...string) int64 {
	t.Helper()
	seen := make(map[uint64]bool)
	var sum int64
	for _, root := range roots {
		err := filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			var st unix.Stat_t
			if err := unix.Lstat(path, &st); err != nil {
				return err
			}
			if !seen[st.Ino] {
				seen[st.Ino] = true
				sum += atfs.Allocated(&st)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return sum
}

// TestConcurrentPulls pulls one image ten times at once, into five namespaces. Each layer is unpacked once.
func TestConcurrentPulls(t *testing.T) {
	for _, mode := range []struct {
		name    string
		unpacks int
		ref     string
		flags   []string
	}{
		{"sequential", 1, "layers:1", nil},
		{"parallel", 3, "layers:1", nil},
		{"local", 1, "layers:1", []string{"--local"}},
		{"large", 3, "app:1", nil},
	} {
		t.Run(mode.name, func(t *testing.T) {
			e := start(t, func(o *stack.Options) { o.ParallelUnpacks = mode.unpacks })
			full := push(t, mode.ref)
			var group errgroup.Group
			for i := range 10 {
				group.Go(func() error {
					return e.Pull(t.Context(), fmt.Sprintf("ns%d", i%5), full, mode.flags...)
				})
			}
			e.must(group.Wait())
			e.importedOnce(mode.ref)
			for i := range 5 {
				ns := fmt.Sprintf("ns%d", i)
				if i == 0 || mode.ref != "app:1" {
					e.compare(mode.ref, e.view(ns, full))
				}
				e.run(ns, full, "/bin/sh", "-c", "true")
			}
		})
	}
}

// TestDifferentPullsAtOnce pulls several images that share layers and files at the same time.
func TestDifferentPullsAtOnce(t *testing.T) {
	e := start(t, func(o *stack.Options) { o.ParallelUnpacks = 3 })
	refs := []string{"tiny:1", "layers:1", "layers:zstd", "odd:1", "base:1", "base:2", "app:1"}
	fulls := make([]string, len(refs))
	for i, ref := range refs {
		fulls[i] = push(t, ref)
	}
	var group errgroup.Group
	for _, full := range fulls {
		group.Go(func() error { return e.Pull(t.Context(), defaultNS, full) })
	}
	e.must(group.Wait())
	for i, ref := range refs {
		e.compare(ref, e.view(defaultNS, fulls[i]))
	}
}

// TestSkipDownload pulls an image whose blobs are gone into a second namespace. With skip_download, no layer is
// fetched.
func TestSkipDownload(t *testing.T) {
	for _, mode := range []struct {
		name    string
		unpacks int
	}{{"sequential", 1}, {"parallel", 3}} {
		t.Run(mode.name, func(t *testing.T) {
			e := start(t, func(o *stack.Options) {
				o.Config = "skip_download = true\n"
				o.ParallelUnpacks = mode.unpacks
			})
			full := e.pull("first", "layers:1")
			layers := make(map[string]bool)
			for _, l := range image(t, "layers:1").Manifest.Layers {
				layers[l.Digest.String()] = true
				e.ctr("first", "content", "rm", l.Digest.String())
			}
			// Any removal with --sync collects the blobs that nothing refers to.
			e.ctr("first", "images", "tag", full, "for-gc:1")
			e.ctr("first", "images", "rm", "--sync", "for-gc:1")

			before, err := shared.registry.BlobRequests()
			e.must(err)
			e.pull("second", "layers:1")
			after, err := shared.registry.BlobRequests()
			e.must(err)
			for _, digest := range after[len(before):] {
				if layers[digest] {
					t.Errorf("layer %s was downloaded again", digest)
				}
			}
			if e.ctr("second", "content", "ls", "-q") == "" {
				t.Error("the second namespace has no content, want manifest and configuration")
			}
			e.importedOnce("layers:1")
			e.compare("layers:1", e.view("second", full))
			if got := e.run("second", full, "/bin/sh", "-c", "echo $((40+2))"); strings.TrimSpace(got) != "42" {
				t.Errorf("the container printed %q, want 42", got)
			}
		})
	}
}
