// Package builtin registers the snapshotter "ostree" and the differ "ostree-diff" with containerd's plugin registry,
// for custom builds of containerd:
//
//	import _ "github.com/ostree-snapshotter/ostree-snapshotter/plugin/builtin"
//
// Their configuration is a subset of the daemon's.
package builtin

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/platforms"
	containerdplugin "github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/plugin"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/blob"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/differ"
)

const (
	snapshotterID = "ostree"
	differID      = "ostree-diff"
)

// SnapshotterConfig is the section [plugins."io.containerd.snapshotter.v1.ostree"].
type SnapshotterConfig struct {
	// RootPath is the directory of the store; containerd's choice if empty.
	RootPath string `toml:"root_path"`
	// Repo is the directory of the ostree repository; "repo" below the root if empty.
	Repo string `toml:"repo"`
	// Mtime is "exact" or "canonical".
	Mtime string `toml:"mtime"`
	// ShareNamespaces lets a namespace use the snapshots of others.
	ShareNamespaces bool `toml:"share_namespaces"`
	// SkipDownload skips the download of layers that the store already has.
	SkipDownload bool `toml:"skip_download"`
}

func init() {
	defaults := plugin.DefaultConfig()
	registry.Register(&containerdplugin.Registration{
		Type:   plugins.SnapshotPlugin,
		ID:     snapshotterID,
		Config: &SnapshotterConfig{Mtime: string(defaults.Mtime)},
		InitFn: newSnapshotter,
	})
	registry.Register(&containerdplugin.Registration{
		Type:     plugins.DiffPlugin,
		ID:       differID,
		Requires: []containerdplugin.Type{plugins.SnapshotPlugin, plugins.MetadataPlugin},
		InitFn:   newDiffer,
	})
}

// owned is a snapshotter that owns its store and closes it.
type owned struct {
	*snapshotter.Snapshotter
	store *plugin.Store
}

func (o owned) Close() error { return errors.Join(o.Snapshotter.Close(), o.store.Close()) }

func newSnapshotter(ic *containerdplugin.InitContext) (any, error) {
	config, ok := ic.Config.(*SnapshotterConfig)
	if !ok {
		return nil, errors.New("invalid ostree snapshotter configuration")
	}
	c := plugin.DefaultConfig()
	c.Root = ic.Properties[plugins.PropertyRootDir]
	if config.RootPath != "" {
		c.Root = config.RootPath
	}
	c.Repo = config.Repo
	c.Mtime = layer.Mtime(config.Mtime)
	if err := c.Validate(); err != nil {
		return nil, err
	}
	store, err := plugin.OpenStore(ic.Context, c)
	if err != nil {
		return nil, err
	}
	// The content store is not open yet, so blobs can only be read from the files that the journal names.
	if err := store.Recover(ic.Context, nil); err != nil {
		return nil, errors.Join(err, store.Close())
	}
	var opts []snapshotter.Option
	if config.SkipDownload {
		// This containerd is at least as new as the version that this module requires.
		opts = append(opts, snapshotter.WithStaging(func(context.Context) bool { return true }))
	}
	if config.ShareNamespaces {
		opts = append(opts, snapshotter.WithSharedNamespaces())
	}
	s, err := snapshotter.New(ic.Context, store.Root, store.Layers, opts...)
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	ic.Meta.Platforms = append(ic.Meta.Platforms, platforms.DefaultSpec())
	ic.Meta.Capabilities = append(ic.Meta.Capabilities, snapshots.RebaseCap)
	ic.Meta.Exports[plugins.SnapshotterRootDir] = c.Root
	return owned{s, store}, nil
}

func newDiffer(ic *containerdplugin.InitContext) (any, error) {
	sn, err := ic.GetByID(plugins.SnapshotPlugin, snapshotterID)
	if err != nil {
		return nil, fmt.Errorf("differ %s needs snapshotter %s: %w", differID, snapshotterID, err)
	}
	s, ok := sn.(owned)
	if !ok {
		return nil, fmt.Errorf("snapshotter %s is a %T: %w", snapshotterID, sn, containerdplugin.ErrSkipPlugin)
	}
	m, err := ic.GetSingle(plugins.MetadataPlugin)
	if err != nil {
		return nil, err
	}
	db, ok := m.(*metadata.DB)
	if !ok {
		return nil, fmt.Errorf("metadata store is a %T", m)
	}
	ic.Meta.Platforms = append(ic.Meta.Platforms, platforms.DefaultSpec())
	target := differ.Target{Store: db.ContentStore(), Leases: metadata.NewLeaseManager(db)}
	return differ.New(s.Snapshotter, s.Layers(), source(ic, db.ContentStore()), target), nil
}

// localContent is a content store whose blobs may be read from files.
type localContent struct {
	content.Provider
	content.InfoProvider
}

// source reads blobs from the directory of the local content store if it has one, else through the store.
func source(ic *containerdplugin.InitContext, store content.Store) localContent {
	sources := blob.First{store}
	if p := ic.Plugins().Get(plugins.ContentPlugin, "content"); p != nil {
		if root := p.Meta.Exports["root"]; root != "" {
			sources = blob.First{blob.Files(root), store}
		}
	}
	return localContent{sources, store}
}
