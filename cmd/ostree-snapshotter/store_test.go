package main

import (
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/google/go-cmp/cmp"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/plugin"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter"
)

// newFixture is makeFixture for a test, and the store as a command sees it.
func newFixture(t *testing.T) (*fixture, *store) {
	t.Helper()
	testenv.NeedsRoot(t)
	dir := t.TempDir()
	f, err := makeFixture(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.close(); err != nil {
			t.Error(err)
		}
	})
	return f, &store{cfg: &plugin.Config{Root: dir}, root: f.root, repo: f.repo, layers: f.layers}
}

// stopDaemon closes what only the daemon has open.
func (f *fixture) stopDaemon(t *testing.T) {
	t.Helper()
	if err := f.sn.Close(); err != nil {
		t.Fatal(err)
	}
}

func measure(t *testing.T, s *store) *diskUsage {
	t.Helper()
	use, err := s.diskUsage(t.Context(), func(int64) {})
	if err != nil {
		t.Fatal(err)
	}
	return use
}

func TestDiskUsageAgreesWithDu(t *testing.T) {
	_, s := newFixture(t)
	du := testenv.NeedsTool(t, "du")
	out, err := exec.CommandContext(t.Context(), du, "-s", "--block-size=1", s.root.Path()).Output()
	if err != nil {
		t.Fatal(err)
	}
	want, err := strconv.ParseInt(strings.Fields(string(out))[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	if got := measure(t, s).total(); got != want {
		t.Errorf("total is %d bytes, du says %d", got, want)
	}
}

func TestDiskUsageCountsLinksOnce(t *testing.T) {
	f, s := newFixture(t)
	use := measure(t, s)
	objects := int64(0)
	for _, n := range use.objectBytes {
		objects += n
	}
	if objects != use.objects {
		t.Errorf("objects take %d bytes each by itself and %d together", objects, use.objects)
	}
	// What checkouts take is directories, empty files, and the one copy: that of lib/sh, whose mtime is not the
	// object's. The base's 96 KiB, and a's 248 KiB, are links.
	for _, tt := range []struct {
		name       string
		id         objectstore.Checksum
		atLeast    int64
		atMost     int64
		wantCopies bool
	}{
		{name: "base", id: f.base, atMost: 64 << 10},
		{name: "a", id: f.a, atMost: 64 << 10},
		{name: "b", id: f.b, atLeast: 96 << 10, atMost: 160 << 10},
	} {
		got := use.checkoutBytes[checkoutDir(tt.id)]
		if got < tt.atLeast || got > tt.atMost {
			t.Errorf("checkout of %s takes %d bytes, want from %d to %d", tt.name, got, tt.atLeast, tt.atMost)
		}
	}
}

func TestDiskUsageOfRepositoryElsewhere(t *testing.T) {
	f, s := newFixture(t)
	inside := measure(t, s)
	f.stopDaemon(t)
	elsewhere := filepath.Join(t.TempDir(), "repo")
	if err := os.Rename(filepath.Join(s.root.Path(), "repo"), elsewhere); err != nil {
		t.Fatal(err)
	}
	outside := measure(t, s)
	if inside.objects != outside.objects || inside.checkouts != outside.checkouts {
		t.Errorf("objects and checkouts take %d and %d bytes with the repository elsewhere, want %d and %d",
			outside.objects, outside.checkouts, inside.objects, inside.checkouts)
	}
}

// TestAccountOnStore shares the fixture out among its images.
func TestAccountOnStore(t *testing.T) {
	f, s := newFixture(t)
	f.stopDaemon(t)
	use := measure(t, s)
	rows, err := s.rows(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	list, err := s.allLayers(t.Context(), rows)
	if err != nil {
		t.Fatal(err)
	}
	layers, err := s.layerUses(list, use)
	if err != nil {
		t.Fatal(err)
	}
	groups := groupRows(rows, nil)
	if len(groups) != 2 {
		t.Fatalf("got %d chains of snapshots, want 2", len(groups))
	}
	owners := place(groups, rows, layers)
	r := newDfReport(&account{layers: layers, bytes: use.objectBytes, elsewhere: use.elsewhere, owners: owners}, groups, use)
	r.addLogical(rows, layers)

	if want := int64((96 + 48 + 200 + 32 + 200 + 96) << 10); r.Logical != want {
		t.Errorf("logical bytes = %d, want %d", r.Logical, want)
	}
	if r.Snapshots != 3 || r.Unneeded != 0 || r.Unreferenced != 0 {
		t.Errorf("%d snapshots, %d bytes unneeded, %d unreferenced; want 3, 0, 0", r.Snapshots, r.Unneeded, r.Unreferenced)
	}
	if sum := r.Objects + r.Checkouts + r.Active + r.Metadata; sum != r.Stored {
		t.Errorf("parts add up to %d bytes, stored are %d", sum, r.Stored)
	}
	byChain := make(map[string]dfRow)
	var unique, shared int64
	for _, row := range r.Images {
		byChain[row.Chain.String()] = row
		unique += row.Unique
		shared = row.Shared
	}
	a, b := byChain[f.chainA.String()], byChain[f.chainB.String()]
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
	want := use.objects + use.checkouts
	refs, err := s.repo.Refs(layerRefs)
	if err != nil {
		t.Fatal(err)
	}
	for name := range refs {
		want += use.refBytes[name]
	}
	if got := unique + shared; got != want {
		t.Errorf("unique and shared bytes are %d together; objects, checkouts and refs %d", got, want)
	}
}

// TestUniqueIsFreed removes each image and looks at what that frees.
func TestUniqueIsFreed(t *testing.T) {
	for _, name := range []string{"a", "b"} {
		t.Run(name, func(t *testing.T) {
			f, s := newFixture(t)
			if err := f.sn.Remove(t.Context(), snapshotName("container")); err != nil {
				t.Fatal(err)
			}
			if err := f.sn.Cleanup(t.Context()); err != nil {
				t.Fatal(err)
			}
			chain, id := f.chainA, f.a
			if name == "b" {
				chain, id = f.chainB, f.b
			}
			before := measure(t, s)
			want := uniqueOfLayer(t, s, before, id)
			if err := f.sn.Remove(t.Context(), snapshotName(chain.String())); err != nil {
				t.Fatal(err)
			}
			if err := f.sn.Cleanup(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := before.total() - measure(t, s).total(); got != want {
				t.Errorf("%d bytes were freed, unique were %d", got, want)
			}
		})
	}
}

// uniqueOfLayer is what "layers" says that would be freed.
func uniqueOfLayer(t *testing.T, s *store, use *diskUsage, id objectstore.Checksum) int64 {
	t.Helper()
	list, err := s.allLayers(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	layers, err := s.layerUses(list, use)
	if err != nil {
		t.Fatal(err)
	}
	a := &account{layers: layers, bytes: use.objectBytes, elsewhere: use.elsewhere, owners: make([]owner, len(layers))}
	at := -1
	for i := range layers {
		a.owners[i] = owner(i)
		if layers[i].ID == id {
			at = i
		}
	}
	each, _ := a.unique(len(layers))
	return each[at]
}

func TestRowsFromFile(t *testing.T) {
	f, s := newFixture(t)
	f.stopDaemon(t)
	rows, err := s.rows(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	checkFixtureRows(t, f, rows)
}

// Without its metadata.db a store that had one is not a new one: a prune would take everything.
func TestRowsOfLostMetadata(t *testing.T) {
	f, s := newFixture(t)
	f.stopDaemon(t)
	if err := os.Remove(filepath.Join(s.root.Path(), metadataFile)); err != nil {
		t.Fatal(err)
	}
	var hint *hintError
	if rows, err := s.rows(t.Context(), ""); !errors.As(err, &hint) || len(rows) != 0 {
		t.Errorf("rows() = %v, %v; want an error with a hint", rows, err)
	}
	if _, err := s.layers.PlanPrune(t.Context(), s.live("")); err == nil {
		t.Error("a prune was planned")
	}
}

// A damaged metadata.db is an error with a hint, not the end of the process.
func TestRowsOfDamagedMetadata(t *testing.T) {
	f, s := newFixture(t)
	f.stopDaemon(t)
	name := filepath.Join(s.root.Path(), metadataFile)
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
		if _, err := s.rows(t.Context(), ""); statusOf(err) != exitCorrupt || hintFor(err) != restoreHint {
			t.Errorf("%s: got error %v with status %d and hint %q", what, err, statusOf(err), hintFor(err))
		}
	}
}

// What was kept of lost snapshots is counted with the snapshots.
func TestDiskUsageOfLost(t *testing.T) {
	_, s := newFixture(t)
	before := measure(t, s)
	dir := filepath.Join(s.root.Path(), lostDir, "7-x", "fs")
	if err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, "written"), make([]byte, 1<<20), 0o600)); err != nil {
		t.Fatal(err)
	}
	if after := measure(t, s); after.snapshots-before.snapshots < 1<<20 {
		t.Errorf("snapshots take %d bytes more, want at least %d", after.snapshots-before.snapshots, 1<<20)
	}
}

func TestRowsOfNewStore(t *testing.T) {
	f, s := newFixture(t)
	f.stopDaemon(t)
	for _, name := range []string{metadataFile, snapshotter.MetadataCopy} {
		if err := os.Remove(filepath.Join(s.root.Path(), name)); err != nil {
			t.Fatal(err)
		}
	}
	if rows, err := s.rows(t.Context(), ""); err != nil || len(rows) != 0 {
		t.Errorf("rows() = %v, %v; want none", rows, err)
	}
}

func checkFixtureRows(t *testing.T, f *fixture, rows []row) {
	t.Helper()
	type summary struct {
		Kind            snapshots.Kind
		Parent          string
		Chain           string
		Layer, Checkout string
	}
	got := make(map[string]summary)
	for _, r := range rows {
		got[r.key] = summary{r.kind, r.parent, r.chain.String(), r.layer.String(), r.checkout}
	}
	of := func(parent, chain string, id objectstore.Checksum) summary {
		return summary{snapshots.KindCommitted, parent, chain, id.String(), "layers/" + checkoutDir(id) + "/fs"}
	}
	base, a, b := snapshotName(f.chain.String()), snapshotName(f.chainA.String()), snapshotName(f.chainB.String())
	want := map[string]summary{
		base:                      of("", f.chain.String(), f.base),
		a:                         of(base, f.chainA.String(), f.a),
		b:                         of(base, f.chainB.String(), f.b),
		snapshotName("container"): {snapshots.KindActive, a, "", objectstore.Checksum{}.String(), ""},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("rows (-want +got):\n%s", diff)
	}
}

func TestRowsOfLockedStoreWithoutDaemon(t *testing.T) {
	_, s := newFixture(t)
	socket := filepath.Join(t.TempDir(), "none.sock")
	_, err := s.rows(t.Context(), socket)
	if statusOf(err) != exitLocked || hintFor(err) == "" {
		t.Errorf("rows() with nobody at the socket: %v, want an error with status %d and a hint", err, exitLocked)
	}
}

// TestDialDaemon makes sure that a daemon is asked about its own store only.
func TestDialDaemon(t *testing.T) {
	_, s := newFixture(t)
	socket := filepath.Join(t.TempDir(), "sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, conn)
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close() })

	conn, err := s.dialDaemon(t.Context(), socket) // this process has the store open
	if err != nil {
		t.Fatalf("daemon of this store: %v", err)
	}
	_ = conn.Close()

	other, err := os.Create(filepath.Join(t.TempDir(), metadataFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(other.Name())
	s2 := &store{cfg: s.cfg, root: openDir(t, dir)}
	if conn, err := s2.dialDaemon(t.Context(), socket); err == nil {
		_ = conn.Close()
		t.Error("a daemon that has another store open was accepted")
	}
}

func TestLive(t *testing.T) {
	f, s := newFixture(t)
	staged := objectstore.Checksum{1, 2, 3}
	file := filepath.Join(s.root.Path(), snapshotsDir, "999")
	if err := os.Mkdir(file, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(file, appliedFile), []byte(staged.String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f.stopDaemon(t)
	live, err := s.live("")(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := []objectstore.Checksum{f.base, f.a, f.b, staged}
	for _, id := range want {
		if _, ok := live[id]; !ok {
			t.Errorf("layer %s is not live", id)
		}
	}
	if len(live) != len(want) {
		t.Errorf("%d layers are live, want %d", len(live), len(want))
	}

	if err := os.WriteFile(filepath.Join(file, appliedFile), []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.live("")(t.Context()); err == nil {
		t.Error("a layer file that cannot be read names no layer, and was passed over")
	}
}
