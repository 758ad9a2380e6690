package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/oscommit"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/mounts"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// promoted is the OS commit of an image.
type promoted struct {
	commit  objectstore.Checksum
	repo    *objectstore.Repo  // that has it
	ref     string             // that names it there
	dropped []oscommit.Dropped // what the image has and the commit has not
	need    oscommit.Need      // what the sysroot's repository lacked of it

	release func() error // to be called when repo and commit are needed no more
}

// promote makes an OS commit of an image in the repository of a sysroot, durable and named by the ref that ostree's tools
// give to images. Files become part of that repository by hard links if the kernel allows it, else they are copied.
//
// With dryRun the commit is made in a repository of its own, which release removes, and that of the sysroot stays as it
// is. An image that cannot be booted is an error that names all it lacks.
func (c *cli) promote(ctx context.Context, s *store, to *objectstore.Repo, img *resolved, dryRun bool) (*promoted, error) {
	p, err := c.promoteImage(ctx, s, to, img, dryRun)
	if err != nil {
		return nil, fmt.Errorf("make OS commit of image %s: %w", img.Name, err)
	}
	return p, nil
}

func (c *cli) promoteImage(ctx context.Context, s *store, to *objectstore.Repo, img *resolved, dryRun bool) (_ *promoted, err error) {
	// No layer goes before the commit is complete.
	lock, err := s.repo.Lock(ctx, objectstore.LockShared)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, lock.Unlock()) }()
	tree, err := s.osTree(ctx, img)
	if err != nil {
		return nil, err
	}
	p := &promoted{repo: to, dropped: tree.Dropped, release: func() error { return nil }}
	if p.ref, err = oscommit.ImageRef("docker://" + img.Name); err != nil {
		return nil, err
	}
	from, closeFrom, err := linkSource(s.repo, to)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, closeFrom()) }()
	if p.need, err = tree.Need(to, from); err != nil {
		return nil, err
	}
	if dryRun {
		if p.repo, p.release, err = s.scratchRepo(); err != nil {
			return nil, err
		}
		from = s.repo
		defer func() {
			if err != nil {
				err = errors.Join(err, p.release())
			}
		}()
	}
	bar := c.newProgress("storing files")
	defer bar.stop()
	tree.Progress = func(n oscommit.Progress) { bar.update(int64(n.Objects), int64(n.TotalObjects)) }
	txn, err := p.repo.Begin(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, txn.Abort()) }()
	p.commit, err = tree.Store(ctx, txn, from, oscommit.Image{
		ManifestDigest: img.Manifest.String(),
		Manifest:       string(img.ManifestJSON),
		Config:         string(img.ConfigJSON),
		Version:        img.Version,
		Created:        img.Created,
	})
	if err != nil {
		return nil, err
	}
	txn.SetRef(p.ref, p.commit)
	return p, txn.Commit(ctx, objectstore.CommitOptions{Sync: !dryRun})
}

// osTree returns the tree of an image's OS commit, which can be booted.
func (s *store) osTree(ctx context.Context, img *resolved) (*oscommit.Tree, error) {
	root, err := s.layers.Flatten(ctx, img.Layers)
	if err != nil {
		return nil, err
	}
	tree, err := oscommit.NewTree(root)
	if err != nil {
		return nil, withStatus(exitNotBootable, err)
	}
	if missing := tree.Missing(); len(missing) > 0 {
		return nil, withHint(withStatus(exitNotBootable, fmt.Errorf("it cannot be booted, for want of: %s", strings.Join(missing, "; "))),
			"an image that boots has kernel and initramfs in /usr/lib/modules/<version>, and the directories of an ostree system")
	}
	return tree, nil
}

// linkSource returns the repository of the store so that objects of it can be linked into another one, if the kernel can
// be made to do that: opened by way of the mount that the other one is on. It is to be closed by the function returned.
func linkSource(from, to *objectstore.Repo) (_ *objectstore.Repo, closeIt func() error, err error) {
	asItIs := func() error { return nil }
	switch how, err := to.Transfer(from); {
	case err != nil:
		return nil, nil, err
	case how == objectstore.TransferLink:
		return from, asItIs, nil
	}
	dir, err := mounts.ReopenVia(from.Dir(), to.Dir())
	if errors.Is(err, mounts.ErrUnreachable) {
		return from, asItIs, nil
	}
	if err != nil {
		return nil, nil, err
	}
	repo, err := objectstore.Open(dir)
	if err = errors.Join(err, dir.Close()); err != nil {
		return nil, nil, err
	}
	return repo, repo.Close, nil
}

// scratchRepo makes an empty repository on the store's mount, which the function returned removes.
func (s *store) scratchRepo() (_ *objectstore.Repo, release func() error, err error) {
	dir, remove, err := s.layers.Scratch("repo")
	if err != nil {
		return nil, nil, err
	}
	repo, err := objectstore.Create(dir, objectstore.ModeBare)
	if err != nil {
		return nil, nil, errors.Join(err, remove())
	}
	return repo, func() error { return errors.Join(repo.Close(), remove()) }, nil
}
