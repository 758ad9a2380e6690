package integration

import (
	"context"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/stack"
)

// TestEqualFilesStaySeparate writes to one of several files that may share an inode in the store. The others, other
// containers and the image must not change.
func TestEqualFilesStaySeparate(t *testing.T) {
	e := start(t, nil)
	full := e.pull(defaultNS, "odd:1")
	const script = `set -e
cd /odd
sum=$(sha256sum < same-b)
echo more >> same-a
chmod 600 same-other-time
test "$(sha256sum < same-b)" = "$sum"
test "$(sha256sum < same-other-time)" = "$sum"
test "$(stat -c %a same-b)" = 644
echo more >> empty-a
test ! -s empty-b
test ! -s empty-c
mv linked-a moved
cat moved linked-b | wc -l
`
	for range 2 {
		if got := strings.TrimSpace(e.run(defaultNS, full, "/bin/sh", "-c", script)); got != "2" {
			t.Errorf("the container printed %q, want 2", got)
		}
	}
	e.compare("odd:1", e.view(defaultNS, full))
}

// TestImport exports an image to an archive and imports it into another namespace.
func TestImport(t *testing.T) {
	for _, mode := range []struct {
		name  string
		flags []string
	}{{"transfer", nil}, {"local", []string{"--local"}}} {
		t.Run(mode.name, func(t *testing.T) {
			e := start(t, nil)
			full := e.pull(defaultNS, "layers:1")
			archive := filepath.Join(e.Dir, "image.tar")
			// Do not use the transfer API: with it, ctr may exit before it has written everything from containerd.
			e.ctr(defaultNS, "images", "export", "--local", archive, full)
			e.ctr(defaultNS, "images", "rm", "--sync", full)
			e.empty()
			args := append([]string{"images", "import", "--snapshotter", e.Snapshotter}, mode.flags...)
			e.ctr("imported", append(args, archive)...)
			e.compare("layers:1", e.view("imported", full))
			e.run("imported", full, "/bin/true")
		})
	}
}

// TestUserNamespace runs containers with a mapped root user. With labels for the mapping, no file of the image is
// changed or copied. Without them, containerd changes the owner of every file in an additional snapshot, and commits
// it.
func TestUserNamespace(t *testing.T) {
	e := start(t, nil)
	full := e.pull(defaultNS, "layers:1")
	before := e.committed(defaultNS)
	e.remapped(defaultNS, full, "--remap-labels")
	e.remapped(defaultNS, full, "--remap-labels")
	if after := e.committed(defaultNS); after != before {
		t.Errorf("%d snapshots are committed, want %d as before: the image was copied", after, before)
	}
	// Without the labels, containerd's client copies the image with other owners once.
	e.remapped(defaultNS, full)
	e.remapped(defaultNS, full)
	e.compare("layers:1", e.view(defaultNS, full))
	e.ctr(defaultNS, "images", "rm", "--sync", full)
}

// remapped runs a container of layers:1 with a mapped root user, and checks the owners it sees.
func (e *env) remapped(namespace, full string, flags ...string) {
	e.t.Helper()
	out, err := e.runRemapped(namespace, full, flags...)
	e.must(err)
	want := "0 0 0 1000 1001 0 100000 65536 content of data/kept 0 0 0 0"
	if got := strings.Join(strings.Fields(out), " "); got != want {
		e.t.Errorf("%s: the container printed %q, want %q", flags, got, want)
	}
}

// runRemapped runs a container of layers:1 with a mapped root user, and returns its output.
func (e *env) runRemapped(namespace, full string, flags ...string) (string, error) {
	flags = append(flags, "--uidmap", "0:100000:65536", "--gidmap", "0:200000:65536")
	return e.RunContainerWith(e.t.Context(), namespace, flags, full, containerID(), "/bin/sh", "-c",
		"id -u; stat -c '%u %g' /bin/busybox /data/modes/owner; cat /proc/self/uid_map; cat /data/kept; echo > /data/new; chmod 600 /data/kept; stat -c '%u %g' /data/new /data/kept")
}

// committed counts the committed snapshots of a namespace.
func (e *env) committed(namespace string) (n int) {
	e.t.Helper()
	err := e.Client().SnapshotService(e.Snapshotter).Walk(namespaces.WithNamespace(e.t.Context(), namespace),
		func(context.Context, snapshots.Info) error { n++; return nil }, "kind==committed")
	e.must(err)
	return n
}

// TestDurabilitySync pulls with everything synced before a snapshot is committed.
func TestDurabilitySync(t *testing.T) {
	e := start(t, func(o *stack.Options) {
		o.Config = "durability = \"sync\"\n"
		o.ParallelUnpacks = 3
	})
	full := e.pull(defaultNS, "layers:1")
	e.compare("layers:1", e.view(defaultNS, full))
	e.run(defaultNS, full, "/bin/true")
}

// TestContentService pulls with blobs read through containerd.
func TestContentService(t *testing.T) {
	e := start(t, func(o *stack.Options) { o.Config = "[containerd]\ncontent_root = \"/no/such/directory\"\n" })
	full := e.pull(defaultNS, "odd:1")
	e.compare("odd:1", e.view(defaultNS, full))
}
