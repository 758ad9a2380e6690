package inspect

import (
	"slices"
	"testing"
	"time"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/go-digest"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
)

// sum is a checksum that is easy to tell from others.
func sum(n byte) objectstore.Checksum { return objectstore.Checksum{31: n} }

func file(n byte) objectstore.ObjectName {
	return objectstore.ObjectName{Type: objectstore.TypeFile, Checksum: sum(n)}
}

func committed(key, parent string, chain digest.Digest, layer byte) Snapshot {
	return Snapshot{Key: key, Parent: parent, Kind: snapshots.KindCommitted, Chain: chain, Layer: sum(layer)}
}

func TestAccountUnique(t *testing.T) {
	bytes := map[objectstore.ObjectName]int64{file(1): 100, file(2): 20, file(3): 3}
	layers := []layerUse{
		{Layer: layer.Layer{ID: sum(0xa)}, objects: []objectstore.ObjectName{file(1), file(2)}, own: 1000},
		{Layer: layer.Layer{ID: sum(0xb)}, objects: []objectstore.ObjectName{file(2), file(3)}, own: 2000},
	}
	tests := []struct {
		name     string
		claims   []claim
		n        int
		each     []int64
		unneeded int64

		elsewhere map[objectstore.ObjectName]struct{}
	}{
		{"two owners share one object", []claim{0, 1}, 2, []int64{1100, 2003}, 0, nil},
		{"one claim has all", []claim{0, 0}, 1, []int64{3123}, 0, nil},
		{"what an unneeded layer shares is needed", []claim{0, none}, 1, []int64{1120}, 2003, nil},
		{"nobody needs anything", []claim{none, none}, 0, nil, 3123, nil},
		{"a layer of many owners is none's alone", []claim{shared, 0}, 1, []int64{2003}, 0, nil},
		{"an unneeded layer beside one of many", []claim{shared, none}, 0, nil, 2003, nil},
		{"the host has one's own object", []claim{0, 1}, 2, []int64{1000, 2003}, 0, map[objectstore.ObjectName]struct{}{file(1): {}}},
		{"the host has an unneeded one", []claim{0, none}, 1, []int64{1120}, 2000, map[objectstore.ObjectName]struct{}{file(3): {}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := &account{layers: layers, disk: &diskUsage{objectBytes: bytes, elsewhere: tt.elsewhere}, claims: tt.claims}
			each, unneeded := a.unique(tt.n)
			if !slices.Equal(each, tt.each) || unneeded != tt.unneeded {
				t.Errorf("unique() = %v, %d; want %v, %d", each, unneeded, tt.each, tt.unneeded)
			}
		})
	}
}

func TestAccountStored(t *testing.T) {
	a := &account{
		disk: &diskUsage{
			objectBytes: map[objectstore.ObjectName]int64{file(1): 100, file(2): 20, file(3): 3},
			elsewhere:   map[objectstore.ObjectName]struct{}{file(2): {}},
		},
		layers: []layerUse{
			{objects: []objectstore.ObjectName{file(1), file(2)}, own: 1000},
			{objects: []objectstore.ObjectName{file(2), file(3)}, own: 2000},
		},
	}
	for _, tt := range []struct {
		layers          []int
		want, elsewhere int64
	}{
		{nil, 0, 0},
		{[]int{0}, 1120, 20},
		{[]int{1}, 2023, 20},
		{[]int{0, 1}, 3123, 20},
	} {
		if got, elsewhere := a.stored(tt.layers); got != tt.want || elsewhere != tt.elsewhere {
			t.Errorf("stored(%v) = %d, %d; want %d, %d", tt.layers, got, elsewhere, tt.want, tt.elsewhere)
		}
	}
}

func TestClaimWith(t *testing.T) {
	for _, tt := range []struct{ a, b, want claim }{
		{none, none, none},
		{none, 3, 3},
		{3, none, 3},
		{3, 3, 3},
		{3, 4, shared},
		{shared, 3, shared},
		{3, shared, shared},
		{shared, shared, shared},
		{none, shared, shared},
	} {
		if got := tt.a.with(tt.b); got != tt.want {
			t.Errorf("%d with %d = %d, want %d", tt.a, tt.b, got, tt.want)
		}
	}
}

// summary holds the parts of a group that a test compares.
type summary struct {
	Name   string
	Keys   []string
	Active int
}

func TestGroups(t *testing.T) {
	const c1, c2, c3 digest.Digest = "sha256:c1", "sha256:c2", "sha256:c3"
	named := func(name string, chains ...digest.Digest) Image {
		return Image{Names: []string{name}, Chains: chains}
	}
	active := func(key, parent string) Snapshot {
		return Snapshot{Key: key, Parent: parent, Kind: snapshots.KindActive}
	}
	tests := []struct {
		name   string
		rows   []Snapshot
		images []Image
		want   []summary
	}{
		{
			name: "no snapshots",
			want: nil,
		},
		{
			name:   "an image that is not unpacked here",
			images: []Image{named("other", c3)},
			want:   nil,
		},
		{
			name:   "two images on one base",
			rows:   []Snapshot{committed("base", "", c1, 1), committed("a", "base", c2, 2), committed("b", "base", c3, 3)},
			images: []Image{named("a", c1, c2), named("b", c1, c3)},
			want: []summary{
				{Name: "a", Keys: []string{"a", "base"}},
				{Name: "b", Keys: []string{"b", "base"}},
			},
		},
		{
			name: "one chain in two namespaces",
			rows: []Snapshot{
				committed("default/1/x", "", c1, 1),
				committed("k8s.io/2/x", "", c1, 1),
			},
			images: []Image{named("a", c1)},
			want:   []summary{{Name: "a", Keys: []string{"default/1/x", "k8s.io/2/x"}}},
		},
		{
			name: "without images, one group for each end of a chain",
			rows: []Snapshot{committed("base", "", c1, 1), committed("a", "base", c2, 2), committed("b", "base", c3, 3)},
			want: []summary{
				{Keys: []string{"a", "base"}},
				{Keys: []string{"b", "base"}},
			},
		},
		{
			name:   "what was committed on an image is not part of it",
			rows:   []Snapshot{committed("base", "", c1, 1), committed("mine", "base", "", 2)},
			images: []Image{named("a", c1)},
			want: []summary{
				{Name: "a", Keys: []string{"base"}},
				{Keys: []string{"base", "mine"}},
			},
		},
		{
			name: "containers are counted, and own nothing",
			rows: []Snapshot{
				committed("base", "", c1, 1), committed("a", "base", c2, 2),
				active("container-1", "a"), active("container-2", "a"), active("unpacking", ""), active("on-base", "base"),
			},
			images: []Image{named("a", c1, c2)},
			want:   []summary{{Name: "a", Keys: []string{"a", "base"}, Active: 3}},
		},
		{
			name: "a parent that is missing ends a chain",
			rows: []Snapshot{committed("a", "lost", c2, 2)},
			want: []summary{{Keys: []string{"a"}}},
		},
		{
			name: "parents in a circle end",
			rows: []Snapshot{committed("a", "b", c1, 1), committed("b", "a", c2, 2), committed("c", "a", c3, 3)},
			want: []summary{{Keys: []string{"a", "b", "c"}}},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []summary
			for _, g := range Groups(tt.rows, tt.images) {
				s := summary{Active: g.Active}
				if g.Image >= 0 {
					s.Name = tt.images[g.Image].Names[0]
				}
				for key := range g.Keys {
					s.Keys = append(s.Keys, key)
				}
				slices.Sort(s.Keys)
				got = append(got, s)
			}
			if diff := testenv.Diff(tt.want, got); diff != "" {
				t.Errorf("groups (-want +got):\n%s", diff)
			}
		})
	}
}

func TestNewUsage(t *testing.T) {
	const c1, c2, c3 digest.Digest = "sha256:c1", "sha256:c2", "sha256:c3"
	use := &diskUsage{
		objects:     1000,
		checkouts:   30,
		snapshots:   500,
		metadata:    70,
		objectBytes: map[objectstore.ObjectName]int64{file(1): 100, file(2): 200, file(3): 300, file(9): 400},
	}
	layers := []layerUse{
		{Layer: layer.Layer{ID: sum(1), Size: 90}, objects: []objectstore.ObjectName{file(1)}, own: 10},
		{Layer: layer.Layer{ID: sum(2), Size: 190}, objects: []objectstore.ObjectName{file(1), file(2)}, own: 10},
		{Layer: layer.Layer{ID: sum(3), Size: 290}, objects: []objectstore.ObjectName{file(3)}, own: 10},
	}
	list := []Snapshot{
		committed("base", "", c1, 1),
		committed("a", "base", c2, 2),
		committed("b", "base", c2, 2),
		committed("lost", "", c3, 7), // its layer is not in the store
	}
	groups := Groups(list, []Image{{Chains: []digest.Digest{c1, c2}}})
	m := &measurement{snapshots: list, disk: use, layers: layers}
	got := newUsage(newAccount(groups, m), groups, m)
	want := &Usage{
		Snapshots:    4,
		Logical:      90 + 190 + 190,
		Objects:      1000,
		Checkouts:    30,
		Active:       500,
		Metadata:     70,
		Unneeded:     310,
		Unreferenced: 400,
		Groups: []GroupUsage{
			{Group: groups[0], Layers: 2, Size: 280, Unique: 320, Shared: 0},
			{Group: groups[1], Layers: 0},
		},
	}
	if diff := testenv.Diff(want, got); diff != "" {
		t.Errorf("usage (-want +got):\n%s", diff)
	}
	if groups[0].Image != 0 || groups[1].Image != -1 {
		t.Errorf("images of the groups are %d and %d, want 0 and none", groups[0].Image, groups[1].Image)
	}
	if got.Stored() != 1600 || got.Ratio() != 470.0/1100.0 {
		t.Errorf("stored %d bytes, ratio %f", got.Stored(), got.Ratio())
	}
}

// Sharing out takes time that grows with the snapshots of a store, and not with their square.
func TestUsageOfManySnapshots(t *testing.T) {
	const n = 20_000
	m := &measurement{disk: &diskUsage{}}
	var images []Image
	for i := range n {
		id := objectstore.Checksum{byte(i >> 16), byte(i >> 8), byte(i), 1}
		chain := digest.FromBytes(id[:])
		m.layers = append(m.layers, layerUse{Layer: layer.Layer{ID: id, Size: 1}})
		m.snapshots = append(m.snapshots, Snapshot{Key: chain.String(), Kind: snapshots.KindCommitted, Chain: chain, Layer: id})
		images = append(images, Image{Chains: []digest.Digest{chain}})
	}
	start := time.Now()
	groups := Groups(m.snapshots, images)
	u := newUsage(newAccount(groups, m), groups, m)
	if len(u.Groups) != n || u.Logical != n {
		t.Errorf("%d groups, %d logical bytes, want %d of each", len(u.Groups), u.Logical, n)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("%d snapshots took %v", n, took)
	}
}
