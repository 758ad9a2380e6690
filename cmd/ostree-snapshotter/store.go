package main

import (
	"errors"
	"fmt"
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
		return nil, withHint(err, "\"ostree-snapshotter config default\" prints every key with its default")
	}
	if c.root != "" {
		if cfg.Root, err = filepath.Abs(c.root); err != nil {
			return nil, err
		}
	}
	return cfg, nil
}

// openRepo makes sure that there is a repository at a path, and one that this program works on.
func openRepo(name string) error {
	dir, err := atfs.Open(name)
	if err != nil {
		return err
	}
	repo, err := objectstore.Open(dir)
	if err == nil {
		err = repo.Close()
	}
	return errors.Join(err, dir.Close())
}

// store is what the commands that look at a store share.
type store struct {
	cfg    *plugin.Config
	root   *atfs.Dir
	repo   *objectstore.Repo
	layers *layer.Store
}

// openStore opens the store that the configuration names. It changes nothing on the disk when there is none.
func (c *cli) openStore() (_ *store, err error) {
	cfg, err := c.loadConfig()
	if err != nil {
		return nil, err
	}
	s := &store{cfg: cfg}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if s.root, err = c.openDir(cfg.Root); err != nil {
		return nil, noStore(cfg.Root, err)
	}
	repoDir, err := c.openDir(cfg.RepoPath())
	if err != nil {
		return nil, noStore(cfg.Root, err)
	}
	s.repo, err = objectstore.Open(repoDir)
	if err = errors.Join(err, repoDir.Close()); err != nil {
		return nil, noStore(cfg.Root, err)
	}
	s.layers, err = layer.Open(s.root, s.repo, layer.Options{Mtime: cfg.Mtime})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// noStore says what it means that part of a store could not be opened.
func noStore(root string, err error) error {
	if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, objectstore.ErrNoRepo) {
		return err
	}
	return withHint(withStatus(exitNoRepo, fmt.Errorf("open store %s: %w", root, err)),
		"\"ostree-snapshotter serve\" makes the store when it first starts; --root or --config say where it is")
}

func (s *store) close() error {
	var err error
	if s.layers != nil {
		err = errors.Join(err, s.layers.Close())
	}
	if s.repo != nil {
		err = errors.Join(err, s.repo.Close())
	}
	if s.root != nil {
		err = errors.Join(err, s.root.Close())
	}
	return err
}
