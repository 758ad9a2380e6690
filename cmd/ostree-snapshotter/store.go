package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/plugin"
)

const defaultConfigFile = plugin.DefaultConfigFile

// loadConfig reads the configuration and applies the flags that go before it. The default file need not exist; one
// that --config names must.
func (c *cli) loadConfig() (*plugin.Config, error) {
	name := c.configFile
	if name == "" {
		name = defaultConfigFile
		if _, err := os.Stat(name); errors.Is(err, fs.ErrNotExist) {
			name = ""
		}
	}
	cfg, err := plugin.LoadConfig(name)
	if err != nil {
		return nil, err
	}
	if c.root != "" {
		if cfg.Root, err = filepath.Abs(c.root); err != nil {
			return nil, err
		}
	}
	return cfg, nil
}

// store is what the commands that look at a store share.
type store struct {
	cfg    *plugin.Config
	root   *atfs.Dir
	repo   *objectstore.Repo
	layers *layer.Store
	close  func() error
}

// openStore opens the store that the configuration names. It changes nothing on the disk when there is none.
func (c *cli) openStore() (*store, error) {
	cfg, err := c.loadConfig()
	if err != nil {
		return nil, err
	}
	s, err := plugin.OpenShared(cfg, c.openDir)
	if err != nil {
		return nil, err
	}
	return &store{cfg: cfg, root: s.Root, repo: s.Repo, layers: s.Layers, close: s.Close}, nil
}
