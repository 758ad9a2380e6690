package plugin

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/fsck"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/inspect"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/snaptest"
)

// oldStore is a store made by revision 021a6dd: the images of a snaptest.Fixture and one more layer, a container, and
// the files of its daemon. It is the output of "tar --format=pax --numeric-owner --sort=name -cz" in the root.
const oldStore = "testdata/store-021a6dd.tar.gz"

// This version checks, lists, measures and serves a store of an older version, and finds nothing to remove.
func TestOldStore(t *testing.T) {
	c := testConfig(t)
	c.Checkout = CheckoutHardlink // as the older version did
	tar := testenv.NeedsTool(t, "tar")
	if err := os.Mkdir(c.Root, 0o711); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), tar, "-C", c.Root, "-xpzf", oldStore, "--numeric-owner").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	beside := func(f func(s *Store, i *inspect.Store)) {
		t.Helper()
		s, err := OpenShared(c, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		f(s, &inspect.Store{Root: s.Root, Repo: s.Repo, Layers: s.Layers, Daemon: c.Address})
	}
	check := func(_ *Store, i *inspect.Store) {
		t.Helper()
		r, err := fsck.Check(t.Context(), i, fsck.Options{Deep: true})
		if err != nil {
			t.Fatal(err)
		}
		if len(r.Problems) > 0 || r.Unread != nil || r.Layers != 4 || r.Snapshots != 5 || r.Deep.Proved != 4 {
			t.Errorf("report: %+v, %+v, want 4 layers, 5 snapshots and no problem", r, r.Deep)
		}
	}
	beside(func(s *Store, i *inspect.Store) {
		check(s, i)
		if got, err := ReadCheckout(s.Root); err != nil || got != (Chosen{CheckoutHardlink, "the configuration says so"}) {
			t.Errorf("checkouts: %v, %v", got, err)
		}
		u, err := i.Usage(t.Context(), nil, func(int64) {})
		if err != nil || len(u.Groups) != 3 || u.Unneeded != 0 || u.Unreferenced != 0 {
			t.Errorf("usage: %+v, %v, want 3 chains and nothing unneeded", u, err)
		}
		plan, err := s.Layers.PlanPrune(t.Context(), i.Live())
		if err != nil {
			t.Fatal(err)
		}
		if stats := plan.Stats(); stats.Layers+stats.Checkouts+stats.Objects != 0 {
			t.Errorf("a prune would remove %+v", stats)
		}
	})

	conn, stop := start(t, c)
	beside(check) // snapshots are now listed by the daemon
	sn := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "ostree")
	container, err := sn.Stat(t.Context(), snaptest.SnapshotName("container"))
	if err != nil {
		t.Fatal(err)
	}
	m, err := sn.View(t.Context(), "view", container.Parent)
	if err != nil {
		t.Fatal(err)
	}
	dir, unmount := snaptest.Mount(t, m)
	for _, f := range append(slices.Clone(snaptest.BaseFiles), snaptest.AFiles...) {
		b, err := os.ReadFile(filepath.Join(dir, f.Name))
		if want := f.Content; err != nil || f.Link == "" && string(b) != want {
			t.Errorf("%s has %d bytes, %v, want %d", f.Name, len(b), err, len(want))
		}
	}
	unmount()
	if err := sn.Remove(t.Context(), "view"); err != nil {
		t.Fatal(err)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	beside(check)
}
