package deploy

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/commitsig"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/oscommit"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/mounts"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
)

// PromoteOptions are those of [Promote].
type PromoteOptions struct {
	Source   Source                  // nil: Native; for other images Labelled, or Flatten with NoLabels
	NoLabels bool                    // give files no SELinux labels, although the image has a policy
	Epoch    oscommit.Epoch          // of the labels
	DryRun   bool                    // make the commit in a temporary repository, and leave the other one alone
	Progress func(oscommit.Progress) // called after each object, by one goroutine at a time; may be nil

	remote  *commitsig.Remote // whose keys must have signed the commit inside; nil: anybody's
	covered bool              // another signature covers the whole image
}

func (o *PromoteOptions) source(layers *layer.Store) Source {
	switch {
	case o.Source != nil:
		return o.Source
	case o.NoLabels:
		return Native(layers, Flatten(layers), nil)
	}
	return Native(layers, Labelled(layers, o.Epoch), func(tree *oscommit.Tree) error { return label(layers, tree, o.Epoch) })
}

// A Promoted image is the OS commit of an image.
type Promoted struct {
	Commit  objectstore.Checksum
	Repo    *objectstore.Repo  // with the commit
	Ref     string             // of the commit
	Dropped []oscommit.Dropped // files of the image that the commit does not have
	Signed  *commitsig.Verdict // signatures of the commit inside; nil if none were demanded
	Need    oscommit.Need      // what the sysroot's repository lacked

	close func() error
}

// Close releases Repo and Commit, and removes those of a dry run. Further calls do nothing.
func (p *Promoted) Close() error { return p.close() }

// Promote makes the OS commit of an image in a repository, the sysroot's. When it returns the commit is durable, and
// has the ref that ostree's tools give to images. Files become part of that repository by hard links if the kernel
// allows it and only root can change them, else they are copied. The image's layers are not pruned meanwhile. A failed
// Promote leaves garbage, which the next prune removes or the next Promote reuses.
//
// An image that cannot be booted is an ErrNotBootable, ErrArchitecture or oscommit.ErrInvalid, a missing layer is a
// layer.ErrNotExist, and a repository without enough room ENOSPC.
func Promote(ctx context.Context, layers *layer.Store, to *objectstore.Repo, img *Image, o PromoteOptions) (*Promoted, error) {
	p, err := promote(ctx, layers, to, img, o)
	if err != nil {
		return nil, fmt.Errorf("make OS commit of image %s: %w", img.Name, err)
	}
	return p, nil
}

func promote(ctx context.Context, layers *layer.Store, to *objectstore.Repo, img *Image, o PromoteOptions) (_ *Promoted, err error) {
	store := layers.Repo()
	// No layer may go before the commit is complete.
	lock, err := store.Lock(ctx, objectstore.LockShared)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, lock.Unlock()) }()
	found, err := bootableOS(ctx, o.source(layers), img)
	if err != nil {
		return nil, err
	}
	p := &Promoted{Repo: to, Dropped: found.Dropped(), close: func() error { return nil }}
	if o.remote != nil {
		if p.Signed, err = verifyCommit(found, o.remote, o.covered); err != nil {
			return nil, err
		}
	}
	if p.Ref, err = imageRef(img.Name); err != nil {
		return nil, err
	}
	from, closeFrom, err := linkSource(store, to)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, closeFrom()) }()
	if o.DryRun {
		if p.Need, err = found.Need(to, from); err != nil {
			return nil, err
		}
		if p.Repo, p.close, err = scratchRepo(layers); err != nil {
			return nil, err
		}
		from = store
		defer func() {
			if err != nil {
				err = errors.Join(err, p.close())
			}
		}()
	}
	txn, err := p.Repo.Begin(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, txn.Abort()) }()
	stored, err := found.Store(ctx, txn, from, o.Progress)
	if err != nil {
		return nil, err
	}
	p.Commit = stored.Commit
	if !o.DryRun {
		p.Need = stored.Need
	}
	txn.SetRef(p.Ref, p.Commit)
	return p, txn.Commit(ctx, objectstore.CommitOptions{Sync: !o.DryRun})
}

// linkSource returns the store's repository, opened via the mount of the other one if that lets its objects be linked.
// The caller calls closeIt when done.
func linkSource(from, to *objectstore.Repo) (_ *objectstore.Repo, closeIt func() error, err error) {
	asItIs := func() error { return nil }
	switch how, err := to.Transfers(from); {
	case err != nil:
		return nil, nil, err
	case how.Exclusive == objectstore.TransferLink:
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

// scratchRepo creates an empty repository to rehearse in on the store's mount, which closeIt removes.
func scratchRepo(layers *layer.Store) (_ *objectstore.Repo, closeIt func() error, err error) {
	dir, remove, err := layers.Scratch("repo")
	if err != nil {
		return nil, nil, err
	}
	repo, err := objectstore.Create(dir, objectstore.ModeBare)
	if err != nil {
		return nil, nil, errors.Join(err, remove())
	}
	repo.Rehearse()
	return repo, sync.OnceValue(func() error { return errors.Join(repo.Close(), remove()) }), nil
}
