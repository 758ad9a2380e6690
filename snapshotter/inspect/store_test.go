package inspect

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/snaptest"
)

// newFixture makes a fixture until the test ends, and the store to inspect.
func newFixture(t *testing.T) (*snaptest.Fixture, *Store) {
	t.Helper()
	testenv.NeedsRoot(t)
	f, err := snaptest.MakeFixture(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f, &Store{Root: f.Root, Repo: f.Repo, Layers: f.Store, Daemon: filepath.Join(t.TempDir(), "none")}
}

// stop closes the snapshotter, as when the daemon stops.
func stop(t *testing.T, f *snaptest.Fixture) {
	t.Helper()
	if err := f.Snapshotter.Close(); err != nil {
		t.Fatal(err)
	}
}

func measureDisk(t *testing.T, s *Store) *diskUsage {
	t.Helper()
	use, err := s.diskUsage(t.Context(), func(int64) {})
	if err != nil {
		t.Fatal(err)
	}
	return use
}

func usageOf(t *testing.T, s *Store) *Usage {
	t.Helper()
	u, err := s.Usage(t.Context(), nil, func(int64) {})
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestUsageAgreesWithDu(t *testing.T) {
	f, s := newFixture(t)
	stop(t, f)
	du := testenv.NeedsTool(t, "du")
	out, err := exec.CommandContext(t.Context(), du, "-s", "--block-size=1", s.Root.Path()).Output()
	if err != nil {
		t.Fatal(err)
	}
	want, err := strconv.ParseInt(strings.Fields(string(out))[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	if got := usageOf(t, s).Stored(); got != want {
		t.Errorf("stored %d bytes, du says %d", got, want)
	}
}

func TestDiskUsageCountsLinksOnce(t *testing.T) {
	f, s := newFixture(t)
	use := measureDisk(t, s)
	objects := int64(0)
	for _, n := range use.objectBytes {
		objects += n
	}
	if objects != use.objects {
		t.Errorf("objects take %d bytes each by itself and %d together", objects, use.objects)
	}
	// Checkouts take directories, empty files, and the one copy: that of lib/sh, whose mtime is not the object's. The
	// base's 96 KiB, and a's 248 KiB, are links.
	for _, tt := range []struct {
		name    string
		id      objectstore.Checksum
		atLeast int64
		atMost  int64
	}{
		{name: "base", id: f.Base, atMost: 64 << 10},
		{name: "a", id: f.A, atMost: 64 << 10},
		{name: "b", id: f.B, atLeast: 96 << 10, atMost: 160 << 10},
	} {
		got := use.checkoutBytes[layer.CheckoutDir(tt.id)]
		if got < tt.atLeast || got > tt.atMost {
			t.Errorf("checkout of %s takes %d bytes, want from %d to %d", tt.name, got, tt.atLeast, tt.atMost)
		}
	}
}

func TestDiskUsageOfRepositoryElsewhere(t *testing.T) {
	f, s := newFixture(t)
	inside := measureDisk(t, s)
	stop(t, f)
	elsewhere := filepath.Join(t.TempDir(), "repo")
	if err := os.Rename(filepath.Join(s.Root.Path(), "repo"), elsewhere); err != nil {
		t.Fatal(err)
	}
	outside := measureDisk(t, s)
	if inside.objects != outside.objects || inside.checkouts != outside.checkouts {
		t.Errorf("objects and checkouts take %d and %d bytes with the repository elsewhere, want %d and %d",
			outside.objects, outside.checkouts, inside.objects, inside.checkouts)
	}
}

// Directories that were kept of lost snapshots count with the snapshots.
func TestDiskUsageOfLost(t *testing.T) {
	_, s := newFixture(t)
	before := measureDisk(t, s)
	dir := filepath.Join(s.Root.Path(), snapshotter.LostDir, "7-x", "fs")
	if err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, "written"), make([]byte, 1<<20), 0o600)); err != nil {
		t.Fatal(err)
	}
	if after := measureDisk(t, s); after.snapshots-before.snapshots < 1<<20 {
		t.Errorf("snapshots take %d bytes more, want at least %d", after.snapshots-before.snapshots, 1<<20)
	}
}

// The fixture shared out among its images.
func TestUsage(t *testing.T) {
	f, s := newFixture(t)
	stop(t, f)
	u := usageOf(t, s)
	if len(u.Groups) != 2 {
		t.Fatalf("got %d chains of snapshots, want 2", len(u.Groups))
	}
	if want := int64((96 + 48 + 200 + 32 + 200 + 96) << 10); u.Logical != want {
		t.Errorf("logical bytes = %d, want %d", u.Logical, want)
	}
	if u.Snapshots != 3 || u.Unneeded != 0 || u.Unreferenced != 0 {
		t.Errorf("%d snapshots, %d bytes unneeded, %d unreferenced; want 3, 0, 0", u.Snapshots, u.Unneeded, u.Unreferenced)
	}
	byChain := make(map[digest.Digest]GroupUsage)
	var unique, shared int64
	for _, g := range u.Groups {
		byChain[g.Chain] = g
		unique += g.Unique
		shared = g.Shared
	}
	a, b := byChain[f.ChainA], byChain[f.ChainB]
	if a.Active != 1 || b.Active != 0 {
		t.Errorf("%d containers on a, %d on b; want 1, 0", a.Active, b.Active)
	}
	// a alone has its 48 KiB, b its 32 KiB and the copy of lib/sh. lib/common and the base are of both.
	const slack = 80 << 10 // layer image, commit, trees, directories
	for _, tt := range []struct {
		name string
		got  int64
		want int64
	}{
		{"a", a.Unique, 48 << 10},
		{"b", b.Unique, (32 + 96) << 10},
		{"shared", a.Shared, (96 + 200) << 10},
	} {
		if tt.got < tt.want || tt.got > tt.want+slack {
			t.Errorf("unique bytes of %s: %d, want %d and at most %d more", tt.name, tt.got, tt.want, slack)
		}
	}
	if a.Shared != b.Shared {
		t.Errorf("two images share %d bytes and %d bytes with each other", a.Shared, b.Shared)
	}
	want := u.Objects + u.Checkouts
	refs, err := s.Repo.Refs(layer.RefPrefix)
	if err != nil {
		t.Fatal(err)
	}
	disk := measureDisk(t, s)
	for name := range refs {
		want += disk.refBytes[name]
	}
	if got := unique + shared; got != want {
		t.Errorf("unique and shared bytes are %d together; objects, checkouts and refs %d", got, want)
	}
}

// Removing an image frees its unique bytes.
func TestUniqueIsFreed(t *testing.T) {
	for _, name := range []string{"a", "b"} {
		t.Run(name, func(t *testing.T) {
			f, s := newFixture(t)
			if err := f.Remove(t.Context(), snaptest.SnapshotName("container")); err != nil {
				t.Fatal(err)
			}
			if err := f.Cleanup(t.Context()); err != nil {
				t.Fatal(err)
			}
			chain, id := f.ChainA, f.A
			if name == "b" {
				chain, id = f.ChainB, f.B
			}
			serve(t, f, s)
			before := usageOf(t, s)
			layers, err := s.LayerUsage(t.Context(), func(int64) {})
			if err != nil {
				t.Fatal(err)
			}
			want := int64(-1)
			for _, l := range layers {
				if l.ID == id {
					want = l.Unique
				}
			}
			if err := f.Remove(t.Context(), snaptest.SnapshotName(chain.String())); err != nil {
				t.Fatal(err)
			}
			if got := usageOf(t, s).ToFree; got <= 0 || got > want {
				t.Errorf("%d bytes are to be freed, unique were %d", got, want)
			}
			if err := s.Cleanup(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := usageOf(t, s).ToFree; got != 0 {
				t.Errorf("%d bytes are to be freed after all were", got)
			}
			if got := before.Stored() - usageOf(t, s).Stored(); got != want {
				t.Errorf("%d bytes were freed, unique were %d", got, want)
			}
		})
	}
}

// serve serves the fixture's snapshotter, with the header of the daemon, where the store looks for it.
func serve(t *testing.T, f *snaptest.Fixture, s *Store) {
	t.Helper()
	identity, err := Identity(f.Root)
	if err != nil {
		t.Fatal(err)
	}
	s.Daemon = serveWith(t, f, metadata.Pairs(StoreHeader, identity))
}

// serveWith serves the fixture's snapshotter with a header, and returns the socket.
func serveWith(t *testing.T, f *snaptest.Fixture, header metadata.MD) string {
	t.Helper()
	address := filepath.Join(snaptest.SocketDir(t), "s %") // no URL
	l, err := net.Listen("unix", address)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(
		grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
			if err := grpc.SetHeader(ctx, header); err != nil {
				return nil, err
			}
			return handler(ctx, req)
		}))
	snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(f.Snapshotter))
	go server.Serve(l) //nolint:errcheck // Stop ends it
	t.Cleanup(server.Stop)
	return address
}

func TestSnapshots(t *testing.T) {
	for _, daemon := range []bool{false, true} {
		t.Run("daemon: "+strconv.FormatBool(daemon), func(t *testing.T) {
			f, s := newFixture(t)
			if daemon {
				serve(t, f, s)
			} else {
				stop(t, f)
			}
			list, err := s.Snapshots(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			type summary struct {
				Kind            snapshots.Kind
				Parent          string
				Chain           string
				Layer, Checkout string
			}
			got := make(map[string]summary)
			for _, sn := range list {
				got[sn.Key] = summary{sn.Kind, sn.Parent, sn.Chain.String(), sn.Layer.String(), sn.Checkout}
				if (sn.ID == "") != daemon {
					t.Errorf("snapshot %s has ID %q", sn.Key, sn.ID)
				}
			}
			of := func(parent, chain string, id objectstore.Checksum) summary {
				return summary{snapshots.KindCommitted, parent, chain, id.String(), "layers/" + layer.CheckoutDir(id) + "/fs"}
			}
			key := func(name digest.Digest) string { return snaptest.SnapshotName(name.String()) }
			want := map[string]summary{
				key(f.Chain):                       of("", f.Chain.String(), f.Base),
				key(f.ChainA):                      of(key(f.Chain), f.ChainA.String(), f.A),
				key(f.ChainB):                      of(key(f.Chain), f.ChainB.String(), f.B),
				snaptest.SnapshotName("container"): {snapshots.KindActive, key(f.ChainA), "", objectstore.Checksum{}.String(), ""},
			}
			if diff := testenv.Diff(want, got); diff != "" {
				t.Errorf("snapshots (-want +got):\n%s", diff)
			}
		})
	}
}

// Without its metadata.db a store that had one is not a new one: a prune would take everything.
func TestSnapshotsOfLostMetadata(t *testing.T) {
	f, s := newFixture(t)
	stop(t, f)
	if err := os.Remove(filepath.Join(s.Root.Path(), snapshotter.MetadataFile)); err != nil {
		t.Fatal(err)
	}
	var lost *LostMetadataError
	if list, err := s.Snapshots(t.Context()); !errors.As(err, &lost) || len(list) != 0 {
		t.Errorf("got %v, %v; want a LostMetadataError", list, err)
	}
	if _, err := s.Layers.PlanPrune(t.Context(), s.Live()); err == nil {
		t.Error("a prune was planned")
	}
}

// A damaged metadata.db is an error, not the end of the process.
func TestSnapshotsOfDamagedMetadata(t *testing.T) {
	f, s := newFixture(t)
	stop(t, f)
	name := filepath.Join(s.Root.Path(), snapshotter.MetadataFile)
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for i := 2 * os.Getpagesize(); i < len(b); i++ {
		b[i] ^= 0x5a
	}
	for what, content := range map[string][]byte{"pages": b, "length": b[:5000], "nothing": nil} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
		var damaged *snapshotter.DamagedMetadataError
		if _, err := s.Snapshots(t.Context()); !errors.As(err, &damaged) {
			t.Errorf("%s: got %v, want a DamagedMetadataError", what, err)
		}
	}
}

func TestSnapshotsOfNewStore(t *testing.T) {
	f, s := newFixture(t)
	stop(t, f)
	for _, name := range []string{snapshotter.MetadataFile, snapshotter.MetadataCopy} {
		if err := os.Remove(filepath.Join(s.Root.Path(), name)); err != nil {
			t.Fatal(err)
		}
	}
	if list, err := s.Snapshots(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("got %v, %v; want none", list, err)
	}
}

// A daemon is asked about its own store only.
func TestSnapshotsOfLockedStore(t *testing.T) {
	f, s := newFixture(t)
	other, _ := newFixture(t)
	identity, err := Identity(other.Root)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, address, want string
	}{
		{"nobody at the socket", s.Daemon, "connection error"},
		{"another store", serveWith(t, other, metadata.Pairs(StoreHeader, identity)), "it has another store open"},
		{"another program", serveWith(t, other, nil), "it does not tell which store it has open"},
	} {
		s.Daemon = tt.address
		var locked *LockedError
		if _, err := s.Snapshots(t.Context()); !errors.As(err, &locked) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want a LockedError with %q", tt.name, err, tt.want)
		}
		if err := s.Cleanup(t.Context()); !errors.As(err, &locked) {
			t.Errorf("%s: cleanup: got %v, want a LockedError", tt.name, err)
		}
	}
	serve(t, f, s)
	if _, err := s.Snapshots(t.Context()); err != nil {
		t.Errorf("the store's own daemon: %v", err)
	}
}

func TestLive(t *testing.T) {
	f, s := newFixture(t)
	staged := objectstore.Checksum{1, 2, 3}
	dir := filepath.Join(s.Root.Path(), snapshotter.SnapshotsDir, "999")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, snapshotter.AppliedFile)
	if err := os.WriteFile(file, []byte(staged.String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	stop(t, f)
	check := func(want []objectstore.Checksum, orphans ...string) {
		t.Helper()
		live, err := s.Live(orphans...)(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range want {
			if _, ok := live[id]; !ok {
				t.Errorf("layer %s is not live", id)
			}
		}
		if len(live) != len(want) {
			t.Errorf("%d layers are live, want %d", len(live), len(want))
		}
	}
	committed := []objectstore.Checksum{f.Base, f.A, f.B}
	check(append(committed, staged))
	check(committed, "999")

	// As to the daemon: nothing can use a snapshot whose layer is unknown, and fsck reports it.
	if err := os.WriteFile(file, []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	check(committed)
}

// A committed snapshot that does not tell its layer may need any: nothing is removed, by the daemon or beside it.
func TestLiveOfUnknownLayer(t *testing.T) {
	for _, label := range []string{"", "no checksum"} {
		f, s := newFixture(t)
		stop(t, f)
		setLayerLabel(t, filepath.Join(s.Root.Path(), snapshotter.MetadataFile), f.A.String(), label)
		list, err := s.Snapshots(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		damaged := 0
		for _, sn := range list {
			if sn.Damage != nil {
				damaged++
			}
		}
		if damaged != 1 {
			t.Errorf("label %q: %d snapshots are damaged, want 1", label, damaged)
		}
		if live, err := s.Live()(t.Context()); err == nil {
			t.Errorf("label %q: %d layers are live, want an error", label, len(live))
		}
	}
}

// setLayerLabel changes the label of the snapshot that has a layer, "" to remove it.
func setLayerLabel(t *testing.T, file, layer, label string) {
	t.Helper()
	db, err := bolt.Open(file, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	found := 0
	var visit func(b *bolt.Bucket) error
	visit = func(b *bolt.Bucket) error {
		if string(b.Get([]byte(snapshotter.LabelLayer))) == layer {
			found++
			if label == "" {
				return b.Delete([]byte(snapshotter.LabelLayer))
			}
			return b.Put([]byte(snapshotter.LabelLayer), []byte(label))
		}
		return b.ForEachBucket(func(k []byte) error { return visit(b.Bucket(k)) })
	}
	err = db.Update(func(tx *bolt.Tx) error {
		return tx.ForEach(func(_ []byte, b *bolt.Bucket) error { return visit(b) })
	})
	if err != nil || found != 1 {
		t.Fatalf("%d labels found, %v, want one", found, err)
	}
}

func TestUnpacked(t *testing.T) {
	f, s := newFixture(t)
	stop(t, f)
	var diffIDs []digest.Digest
	for _, id := range []objectstore.Checksum{f.Base, f.A} {
		l, err := s.Layers.Layer(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		diffIDs = append(diffIDs, l.DiffID)
	}
	want := []objectstore.Checksum{f.Base, f.A}
	if got, err := s.Unpacked(t.Context(), diffIDs); err != nil || !slices.Equal(got, want) {
		t.Errorf("by diff IDs: got %v, %v, want %v", got, err, want)
	}
	// As layers that were built here: only the snapshot's chain is known.
	refs, err := s.Repo.Refs(layer.RefPrefix)
	if err != nil {
		t.Fatal(err)
	}
	for ref := range refs {
		if diffID, _ := layer.ParseRef(ref); diffID == diffIDs[1] {
			if err := s.Repo.DeleteRefs(t.Context(), ref); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got, err := s.Unpacked(t.Context(), diffIDs); err != nil || !slices.Equal(got, want) {
		t.Errorf("by the chain: got %v, %v, want %v", got, err, want)
	}
	if got, err := s.Unpacked(t.Context(), append(diffIDs, digest.FromString("other"))); !errors.Is(err, ErrNotUnpacked) {
		t.Errorf("another image: got %v, %v, want ErrNotUnpacked", got, err)
	}
}

// Prune removes the layer of a removed snapshot and the directory of a killed daemon, beside a daemon or without one.
func TestPrune(t *testing.T) {
	for _, daemon := range []bool{false, true} {
		t.Run("daemon: "+strconv.FormatBool(daemon), func(t *testing.T) {
			f, s := newFixture(t)
			if err := f.Remove(t.Context(), snaptest.SnapshotName(f.ChainB.String())); err != nil {
				t.Fatal(err)
			}
			if daemon {
				serve(t, f, s)
			} else {
				stop(t, f)
			}
			for _, tt := range []struct {
				dryRun bool
				layers int
			}{{true, 1}, {false, 1}, {false, 0}} {
				stats, err := s.Prune(t.Context(), tt.dryRun)
				if err != nil {
					t.Fatal(err)
				}
				if stats.Layers != tt.layers || (stats.Objects > 0) != (tt.layers > 0) {
					t.Errorf("dry run: %t: got %+v, want %d layers", tt.dryRun, stats, tt.layers)
				}
			}
			for id, want := range map[objectstore.Checksum]bool{f.A: true, f.B: false} {
				if ok, err := s.Repo.Has(objectstore.TypeCommit, id); err != nil || ok != want {
					t.Errorf("layer %s exists: %t, %v, want %t", id, ok, err, want)
				}
			}
		})
	}
}
