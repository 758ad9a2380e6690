package compat

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/tree"
)

// A snapshot is a snapshot with the files that a container sees on it.
type snapshot struct {
	Parent string            `json:"parent,omitempty"`
	Kind   string            `json:"kind"`
	Labels map[string]string `json:"labels,omitempty"`
	Files  []string          `json:"files"`           // a line each, sorted by path
	Links  [][]string        `json:"links,omitempty"` // quoted names of one inode each
}

// listSnapshots returns all snapshots by their keys. A committed snapshot is seen through a view.
func listSnapshots(ctx context.Context, sn snapshots.Snapshotter) (map[string]snapshot, error) {
	infos := make(map[string]snapshots.Info)
	err := sn.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		infos[info.Name] = info
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	all := make(map[string]snapshot)
	for _, key := range slices.Sorted(maps.Keys(infos)) {
		info := infos[key]
		s := snapshot{Parent: info.Parent, Kind: info.Kind.String(), Labels: info.Labels}
		if err := s.read(ctx, sn, info); err != nil {
			return nil, fmt.Errorf("read snapshot %s: %w", key, err)
		}
		all[key] = s
	}
	return all, nil
}

// viewKey is the key of the snapshot that a committed one is seen through.
const viewKey = "compat/view"

func (s *snapshot) read(ctx context.Context, sn snapshots.Snapshotter, info snapshots.Info) (err error) {
	var mounts []mount.Mount
	if info.Kind == snapshots.KindCommitted {
		if mounts, err = sn.View(ctx, viewKey, info.Name); err != nil {
			return err
		}
		defer func() {
			if rerr := sn.Remove(ctx, viewKey); err == nil {
				err = rerr
			}
		}()
	} else if mounts, err = sn.Mounts(ctx, info.Name); err != nil {
		return err
	}
	return mount.WithTempMount(ctx, mounts, func(root string) error {
		t, err := tree.Read(ctx, root)
		if err != nil {
			return err
		}
		s.Files, s.Links = describe(t)
		return nil
	})
}

// describe writes a tree as text, in which names and attributes of any bytes are quoted.
func describe(t tree.Tree) (files []string, links [][]string) {
	for _, path := range slices.Sorted(maps.Keys(t)) {
		e := t[path]
		files = append(files, fmt.Sprintf("%q %v device %d mtime %d.%09d target %q content %q xattrs %q",
			path, e, e.Rdev, e.Mtime.Sec, e.Mtime.Nsec, e.Target, e.SHA256, e.Xattrs))
	}
	for _, names := range t.Links() {
		var quoted []string
		for _, name := range names {
			quoted = append(quoted, fmt.Sprintf("%q", name))
		}
		links = append(links, quoted)
	}
	return files, links
}
