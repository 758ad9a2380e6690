package main

import (
	"cmp"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/ostree-snapshotter/ostree-snapshotter/plugin"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/inspect"
)

const defaultConfigFile = plugin.DefaultConfigFile

// loadConfig reads the configuration and applies the flags that override it. The default file need not exist; a file
// named by --config must.
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

// store is the store that a command works on.
type store struct {
	*inspect.Store
	cfg   *plugin.Config
	close func() error
}

// openStore opens the configured store. If no store exists it changes nothing on the disk.
func (c *cli) openStore(f *daemonFlags) (*store, error) {
	cfg, err := c.loadConfig()
	if err != nil {
		return nil, err
	}
	s, err := plugin.OpenShared(cfg, c.openDir)
	if err != nil {
		return nil, err
	}
	return newStore(cfg, s, cmp.Or(f.daemon, cfg.Address)), nil
}

func newStore(cfg *plugin.Config, s *plugin.Store, daemon string) *store {
	return &store{
		Store: &inspect.Store{Root: s.Root, Repo: s.Repo, Layers: s.Layers, Daemon: daemon},
		cfg:   cfg,
		close: s.Close,
	}
}

// checkout returns the daemon's choice of checkouts at its last start. It is the zero value if the daemon never
// started, or if its record is damaged.
func (s *store) checkout() plugin.Chosen {
	c, err := plugin.ReadCheckout(s.Root)
	if err != nil {
		return plugin.Chosen{}
	}
	return c
}
