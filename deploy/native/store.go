package native

import (
	"context"
	"errors"
	"sync"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/oscommit"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/panics"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
)

// Need returns what Store would transfer from one repository to another, and changes neither.
func (b *Base) Need(to, from *objectstore.Repo) (n oscommit.Need, err error) {
	if n.Transfers, err = to.Transfers(from); err != nil {
		return n, err
	}
	for _, f := range b.files {
		have, err := f.storedIn(to)
		if err != nil {
			return n, err
		}
		how := n.Transfers.Others
		if f.linkable() {
			how = n.Transfers.Of(&f.meta)
		}
		switch {
		case have, f.inode.Payload == "":
		case how == objectstore.TransferCopy:
			n.Objects++
			n.Bytes += to.Allocated(f.inode.Size)
		default:
			n.Shared++
		}
	}
	for i := range b.metadata {
		m := &b.metadata[i]
		have, err := to.Has(m.name.Type, m.name.Checksum)
		if err != nil {
			return n, err
		}
		if !have {
			n.Metadata += to.Allocated(int64(len(m.data)))
		}
	}
	return n, nil
}

// storedIn reports whether a repository has an inode that can be the object.
func (f *file) storedIn(repo *objectstore.Repo) (bool, error) {
	st, err := repo.Stat(f.sum)
	if errors.Is(err, objectstore.ErrNotExist) {
		return false, nil
	}
	return err == nil && st.Mode == f.meta.Mode && st.Uid == f.meta.UID && st.Gid == f.meta.GID &&
		(f.isSymlink() || st.Size == f.inode.Size), err
}

// filesPerWorker is the number of files per goroutine that stores them.
const filesPerWorker = 1024

// Store writes the commit, with the signatures that came with it, and calls progress, which may be nil, after each content
// object, by one goroutine at a time. It returns what the repository lacked before. An object that is its layer's inode is
// linked or copied from the repository of the layers, as by [objectstore.Txn.ImportFile]; any other is a copy, or a reflink,
// of the layer's content, which is read and verified. An object that exists stays.
//
// The commit itself is stored last: it exists only if everything below it does. Nothing refers to it yet. An object that
// does not have the checksum that its name is is a [LayerError], and too little room ENOSPC. A failed Store leaves garbage,
// which the next prune removes or the next Store reuses.
func (b *Base) Store(
	ctx context.Context, txn *objectstore.Txn, from *objectstore.Repo, progress func(oscommit.Progress),
) (need oscommit.Need, err error) {
	if need, err = b.Need(txn.Repo(), from); err != nil {
		return need, err
	}
	if err := need.Room(txn.Repo()); err != nil {
		return need, err
	}
	p := oscommit.Progress{TotalObjects: len(b.files), TotalBytes: need.Bytes}
	var mu sync.Mutex
	err = b.storeFiles(ctx, txn, from, func(stored objectstore.Stored) {
		mu.Lock()
		defer mu.Unlock()
		p.Objects++
		p.Bytes += stored.Blocks
		if progress != nil {
			progress(p)
		}
	})
	if err != nil {
		return need, err
	}
	return need, b.storeMetadata(txn)
}

// Object returns the bytes of the commit object, which signatures are of.
func (b *Base) Object() []byte { return b.metadata[len(b.metadata)-1].data }

// CommitMeta returns the detached metadata that came with the commit, which is unchecked; nil if there is none.
func (b *Base) CommitMeta() []byte { return b.commitMeta }

func (b *Base) storeMetadata(txn *objectstore.Txn) error {
	last := len(b.metadata) - 1
	for i := range b.metadata {
		if i == last && b.commitMeta != nil {
			if err := txn.StoreCommitMeta(b.Sum, b.commitMeta); err != nil {
				return b.place.storeError(0, err)
			}
		}
		if _, err := txn.StoreMetadata(b.metadata[i].name.Type, b.metadata[i].data); err != nil {
			return b.place.storeError(0, err)
		}
	}
	return nil
}

// storeError names the layer of an error in what was to be stored.
func (p *Place) storeError(at int, err error) error {
	if errors.Is(err, objectstore.ErrInvalid) || errors.Is(err, errChecksum) {
		return p.layerError(at, err)
	}
	return err
}

func (b *Base) storeFiles(ctx context.Context, txn *objectstore.Txn, from *objectstore.Repo, done func(objectstore.Stored)) error {
	return panics.Each(ctx, len(b.files), filesPerWorker, func(i int) error {
		stored, err := b.files[i].store(txn, from)
		if err != nil {
			return b.place.storeError(b.files[i].layer, err)
		}
		done(stored)
		return nil
	})
}

// store puts the object into the repository unless it exists.
func (f *file) store(txn *objectstore.Txn, from *objectstore.Repo) (objectstore.Stored, error) {
	switch {
	case f.isSymlink():
		return txn.StoreSymlink(&f.meta)
	case f.inode.Payload == "":
		return txn.StoreFile(&f.meta, f.inode.Mtime, f.inode.Content)
	case f.linkable():
		return txn.ImportFile(from, f.sum, &f.meta, f.inode.Size)
	}
	if have, err := f.storedIn(txn.Repo()); have || err != nil {
		return objectstore.Stored{Checksum: f.sum}, err
	}
	return f.relabel(txn, from)
}

// relabel makes an object of the layer's content and the attributes of the commit.
func (f *file) relabel(txn *objectstore.Txn, from *objectstore.Repo) (objectstore.Stored, error) {
	sum, err := layer.PayloadSum(f.inode.Payload)
	if err != nil {
		return objectstore.Stored{}, err
	}
	stored, err := txn.ImportContent(from, sum, &f.own, &f.meta, f.inode.Size)
	if err == nil && stored.Checksum != f.sum {
		err = &objectstore.ObjectError{Type: objectstore.TypeFile, Checksum: f.sum, Err: errChecksum}
	}
	return stored, err
}
