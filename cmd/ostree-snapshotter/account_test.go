package main

import (
	"slices"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/plugin/containerd"
)

// sum is a checksum that is easy to tell from others.
func sum(n byte) objectstore.Checksum { return objectstore.Checksum{31: n} }

func file(n byte) objectstore.ObjectName {
	return objectstore.ObjectName{Type: objectstore.TypeFile, Checksum: sum(n)}
}

func committed(key, parent string, chain digest.Digest, layer byte) row {
	return row{key: key, parent: parent, kind: snapshots.KindCommitted, chain: chain, layer: sum(layer)}
}

func TestAccountUnique(t *testing.T) {
	bytes := map[objectstore.ObjectName]int64{file(1): 100, file(2): 20, file(3): 3}
	layers := []layerUse{
		{Layer: layer.Layer{ID: sum(0xa)}, objects: []objectstore.ObjectName{file(1), file(2)}, own: 1000},
		{Layer: layer.Layer{ID: sum(0xb)}, objects: []objectstore.ObjectName{file(2), file(3)}, own: 2000},
	}
	tests := []struct {
		name     string
		owners   []owner
		n        int
		each     []int64
		unneeded int64

		elsewhere map[objectstore.ObjectName]struct{}
	}{
		{"two owners share one object", []owner{0, 1}, 2, []int64{1100, 2003}, 0, nil},
		{"one owner has all", []owner{0, 0}, 1, []int64{3123}, 0, nil},
		{"what an unneeded layer shares is needed", []owner{0, nobody}, 1, []int64{1120}, 2003, nil},
		{"nobody needs anything", []owner{nobody, nobody}, 0, nil, 3123, nil},
		{"a layer of many owners is nobody's alone", []owner{many, 0}, 1, []int64{2003}, 0, nil},
		{"an unneeded layer beside one of many", []owner{many, nobody}, 0, nil, 2003, nil},
		{"the host has one's own object", []owner{0, 1}, 2, []int64{1000, 2003}, 0, map[objectstore.ObjectName]struct{}{file(1): {}}},
		{"the host has an unneeded one", []owner{0, nobody}, 1, []int64{1120}, 2000, map[objectstore.ObjectName]struct{}{file(3): {}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := &account{layers: layers, bytes: bytes, elsewhere: tt.elsewhere, owners: tt.owners}
			each, unneeded := a.unique(tt.n)
			if !slices.Equal(each, tt.each) || unneeded != tt.unneeded {
				t.Errorf("unique() = %v, %d; want %v, %d", each, unneeded, tt.each, tt.unneeded)
			}
		})
	}
}

func TestAccountStored(t *testing.T) {
	a := &account{
		bytes:     map[objectstore.ObjectName]int64{file(1): 100, file(2): 20, file(3): 3},
		elsewhere: map[objectstore.ObjectName]struct{}{file(2): {}},
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

func TestOwnerWith(t *testing.T) {
	for _, tt := range []struct{ a, b, want owner }{
		{nobody, nobody, nobody},
		{nobody, 3, 3},
		{3, nobody, 3},
		{3, 3, 3},
		{3, 4, many},
		{many, 3, many},
		{3, many, many},
		{many, many, many},
		{nobody, many, many},
	} {
		if got := tt.a.with(tt.b); got != tt.want {
			t.Errorf("%d with %d = %d, want %d", tt.a, tt.b, got, tt.want)
		}
	}
}

// summary is what a test compares of a group.
type summary struct {
	Name   string
	Keys   []string
	Active int
}

func TestGroupRows(t *testing.T) {
	const c1, c2, c3 digest.Digest = "sha256:c1", "sha256:c2", "sha256:c3"
	named := func(name string, chains ...digest.Digest) containerd.Image {
		return containerd.Image{Target: digest.Digest("sha256:" + name), Names: []containerd.ImageName{{Namespace: "default", Name: name}}, Chains: chains}
	}
	active := func(key, parent string) row { return row{key: key, parent: parent, kind: snapshots.KindActive} }
	tests := []struct {
		name   string
		rows   []row
		images []containerd.Image
		want   []summary
	}{
		{
			name: "no snapshots",
			want: nil,
		},
		{
			name:   "an image that is not unpacked here",
			images: []containerd.Image{named("other", c3)},
			want:   nil,
		},
		{
			name:   "two images on one base",
			rows:   []row{committed("base", "", c1, 1), committed("a", "base", c2, 2), committed("b", "base", c3, 3)},
			images: []containerd.Image{named("a", c1, c2), named("b", c1, c3)},
			want: []summary{
				{Name: "a", Keys: []string{"a", "base"}},
				{Name: "b", Keys: []string{"b", "base"}},
			},
		},
		{
			name: "one chain in two namespaces",
			rows: []row{
				committed("default/1/x", "", c1, 1),
				committed("k8s.io/2/x", "", c1, 1),
			},
			images: []containerd.Image{named("a", c1)},
			want:   []summary{{Name: "a", Keys: []string{"default/1/x", "k8s.io/2/x"}}},
		},
		{
			name: "without images, one group for each end of a chain",
			rows: []row{committed("base", "", c1, 1), committed("a", "base", c2, 2), committed("b", "base", c3, 3)},
			want: []summary{
				{Keys: []string{"a", "base"}},
				{Keys: []string{"b", "base"}},
			},
		},
		{
			name:   "what was committed on an image is not part of it",
			rows:   []row{committed("base", "", c1, 1), committed("mine", "base", "", 2)},
			images: []containerd.Image{named("a", c1)},
			want: []summary{
				{Name: "a", Keys: []string{"base"}},
				{Keys: []string{"base", "mine"}},
			},
		},
		{
			name: "containers are counted, and own nothing",
			rows: []row{
				committed("base", "", c1, 1), committed("a", "base", c2, 2),
				active("container-1", "a"), active("container-2", "a"), active("unpacking", ""), active("on-base", "base"),
			},
			images: []containerd.Image{named("a", c1, c2)},
			want:   []summary{{Name: "a", Keys: []string{"a", "base"}, Active: 3}},
		},
		{
			name: "a parent that is missing ends a chain",
			rows: []row{committed("a", "lost", c2, 2)},
			want: []summary{{Keys: []string{"a"}}},
		},
		{
			name: "parents in a circle end",
			rows: []row{committed("a", "b", c1, 1), committed("b", "a", c2, 2), committed("c", "a", c3, 3)},
			want: []summary{{Keys: []string{"a", "b", "c"}}},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []summary
			for _, g := range groupRows(tt.rows, tt.images) {
				s := summary{Active: g.active}
				if len(g.names) > 0 {
					s.Name = g.names[0].Name
				}
				for key := range g.keys {
					s.Keys = append(s.Keys, key)
				}
				slices.Sort(s.Keys)
				got = append(got, s)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("groups (-want +got):\n%s", diff)
			}
		})
	}
}

func TestReport(t *testing.T) {
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
	rows := []row{
		committed("base", "", c1, 1),
		committed("a", "base", c2, 2),
		committed("b", "base", c2, 2),
		committed("lost", "", c3, 7), // its layer is not in the store
	}
	images := []containerd.Image{{
		Target: "sha256:a",
		Names:  []containerd.ImageName{{Namespace: "default", Name: "a"}, {Namespace: "k8s.io", Name: "a:1"}},
		Chains: []digest.Digest{c1, c2},
	}}
	groups := groupRows(rows, images)
	owners := place(groups, rows, layers)
	r := newDfReport(&account{layers: layers, bytes: use.objectBytes, owners: owners}, groups, use)
	r.addLogical(rows, layers)
	want := &dfReport{
		Snapshots:    4,
		Logical:      90 + 190 + 190,
		Stored:       1600,
		Objects:      1000,
		Checkouts:    30,
		Active:       500,
		Metadata:     70,
		Ratio:        470.0 / 1100.0,
		Unneeded:     310,
		Unreferenced: 400,
		Images: []dfRow{
			{
				Digest: "sha256:a", Names: images[0].Names, Chain: c2,
				Layers: 2, Size: 280, Unique: 320, Shared: 0,
			},
			{Chain: c3, Layers: 0},
		},
	}
	if diff := cmp.Diff(want, r); diff != "" {
		t.Errorf("report (-want +got):\n%s", diff)
	}
	r.keepNamespace("k8s.io")
	if len(r.Images) != 1 || r.Images[0].Digest != "sha256:a" {
		t.Errorf("images of namespace k8s.io: %v, want the one called a:1", r.Images)
	}
	r.keepNamespace("moby")
	if len(r.Images) != 0 {
		t.Errorf("images of namespace moby: %v, want none", r.Images)
	}
}
