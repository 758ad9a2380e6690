package oscommit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/cfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/prepareroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/gvariant"
)

// An Image describes the image that a commit is made from. The OS commit is a function of it and of the tree alone: it
// is the same on every host.
type Image struct {
	ManifestDigest string
	Manifest       string // JSON, byte for byte
	Config         string // JSON, byte for byte
	Version        string // "" for none
	Created        time.Time
	Parent         *objectstore.Checksum // the commit that the image has inside; nil for none
}

// Names in the metadata of an OS commit. For the names that describe an image, ostree's own tools write the same.
const (
	// ManifestDigest is the digest of the image's manifest.
	ManifestDigest = "ostree.manifest-digest"
	// Manifest is the image's manifest, JSON.
	Manifest = "ostree.manifest"

	metaVersion  = "version"
	metaLinux    = "ostree.linux"
	metaBootable = "ostree.bootable"
)

// Stored is the result of [Tree.Store].
type Stored struct {
	Commit objectstore.Checksum
	Need   Need // what the repository lacked before
}

// Store writes the OS commit of an image with this tree. Content objects that the repository
// lacks come from another one by [objectstore.Txn.Import], which reads and writes no content if both are on one mount,
// except that of files that users other than root could change.
// Empty files and symbolic links, which no layer stores as objects, are created here. Without another repository (nil)
// all content objects must exist already, as they do after the import of the layers.
//
// An object in neither repository is an objectstore.ErrNotExist. An object with another size, owner or mode than the
// file, as after a power failure, is an objectstore.ErrCorrupt, unless the other repository has the right one. If there
// is no room for the files to copy, the error states the size, unwraps to ENOSPC, and nothing has been written.
//
// Nothing refers to the commit yet: call txn.SetRef before committing txn. The caller must keep the other repository
// from being pruned meanwhile. A tree whose configuration of ostree-prepare-root is invalid, or that has no composefs image
// although it asks for one, is an ErrInvalid. A failed Store leaves garbage, which the next prune removes or the next Store reuses.
func (t *Tree) Store(ctx context.Context, txn *objectstore.Txn, from *objectstore.Repo, img Image) (Stored, error) {
	s, err := t.store(ctx, txn, from, img)
	if err != nil {
		return Stored{}, fmt.Errorf("store OS commit: %w", err)
	}
	return s, nil
}

func (t *Tree) store(ctx context.Context, txn *objectstore.Txn, from *objectstore.Repo, img Image) (s Stored, err error) {
	o, err := compile(t, txn.Repo())
	if err != nil {
		return s, err
	}
	if s.Need, err = o.needAll(txn.Repo(), from); err != nil {
		return s, err
	}
	if err := s.Need.Room(txn.Repo()); err != nil {
		return s, err
	}
	progress := Progress{TotalObjects: len(o.files), TotalBytes: s.Need.Bytes}
	var mu sync.Mutex
	err = o.storeFiles(ctx, txn, from, func(stored objectstore.Stored) {
		mu.Lock()
		defer mu.Unlock()
		progress.Objects++
		progress.Bytes += stored.Blocks
		if t.Progress != nil {
			t.Progress(progress)
		}
	})
	if err != nil {
		return s, err
	}
	if err := o.complete(t.root, txn.Repo()); err != nil {
		return s, err
	}
	for i := range o.metadata {
		if _, err := txn.StoreMetadata(o.metadata[i].typ, o.metadata[i].data); err != nil {
			return s, err
		}
	}
	c := &objectstore.Commit{Metadata: t.metadata(img), Tree: o.tree, Meta: o.meta, Parent: img.Parent}
	if img.Created.Unix() > 0 {
		c.Timestamp = uint64(img.Created.Unix())
	}
	if err := t.addDigest(ctx, c, txn.Repo(), cmp.Or(from, txn.Repo())); err != nil {
		return s, err
	}
	data, err := c.Marshal()
	if err != nil {
		return s, err
	}
	stored, err := txn.StoreMetadata(objectstore.TypeCommit, data)
	s.Commit = stored.Checksum
	return s, err
}

// Progress is the progress of a [Tree.Store].
type Progress struct {
	Objects, TotalObjects int   // content objects, new and existing
	Bytes, TotalBytes     int64 // copied to the disk; 0 if nothing has to be copied
}

// Need is the part of an OS commit that a repository lacks.
type Need struct {
	Transfers objectstore.Transfers // how content is transferred
	Objects   int                   // content objects to copy
	Bytes     int64                 // that the copies take on the disk, in whole blocks
	Shared    int                   // content objects that take no space, since they can be linked or reflinked
	Metadata  int64                 // bytes that new directories take on the disk, without symbolic links
}

// Need returns what Store would transfer from one repository to another, and changes neither. Store needs room for
// Bytes and Metadata.
func (t *Tree) Need(to, from *objectstore.Repo) (Need, error) {
	n, err := t.need(to, from)
	if err != nil {
		return Need{}, fmt.Errorf("compare OS commit with %s: %w", to.Dir().Path(), err)
	}
	return n, nil
}

func (t *Tree) need(to, from *objectstore.Repo) (Need, error) {
	o, err := compile(t, to)
	if err != nil {
		return Need{}, err
	}
	return o.needAll(to, from)
}

// needAll returns what a repository lacks, and how it gets it from the other.
func (o *objects) needAll(to, from *objectstore.Repo) (Need, error) {
	how, err := o.transfers(to, from)
	if err != nil {
		return Need{}, err
	}
	return o.need(to, from, how)
}

// Room returns an error that unwraps to ENOSPC if a repository has no room for what it needs.
func (n *Need) Room(to *objectstore.Repo) error {
	space, known, err := to.Dir().Space()
	if err == nil && known && uint64(n.Bytes+n.Metadata) > space.Free {
		err = fmt.Errorf("%d files that cannot be linked, and directories, take %s in %s, where %s are free: %w",
			n.Objects, humanize.IBytes(uint64(n.Bytes+n.Metadata)), to.Dir().Path(), humanize.IBytes(space.Free), unix.ENOSPC)
	}
	return err
}

// transfers returns how content gets from one repository to another. A nil from stands for the same repository.
func (o *objects) transfers(to, from *objectstore.Repo) (objectstore.Transfers, error) {
	switch {
	case from != nil:
		return to.Transfers(from)
	case slices.ContainsFunc(o.files, isRelabelled):
		return to.Transfers(to)
	}
	return objectstore.Transfers{}, nil
}

func (t *Tree) metadata(img Image) (entries []objectstore.MetaEntry) {
	add := func(key, value string) {
		if value != "" {
			entries = append(entries, objectstore.MetaEntry{Key: key, Value: gvariant.String(value)})
		}
	}
	add(metaVersion, img.Version)
	if kernel := t.Kernel(); kernel != "" {
		add(metaLinux, kernel)
		entries = append(entries, objectstore.MetaEntry{Key: metaBootable, Value: gvariant.Bool(true)})
	}
	add(ManifestDigest, img.ManifestDigest)
	add(Manifest, img.Manifest)
	add(prepareroot.ImageConfig, img.Config)
	return entries
}

// maxConfigLen is the size of the largest configuration of ostree-prepare-root.
const maxConfigLen = 1 << 20

// addDigest adds the digest of the tree's composefs image to the commit, as ostree commit --generate-composefs-metadata
// does, if the tree asks for an image. The tree is complete in repo, and from has the objects of the layers.
func (t *Tree) addDigest(ctx context.Context, c *objectstore.Commit, repo, from *objectstore.Repo) error {
	config, err := prepareroot.Load(func(name string) ([]byte, error) { return t.ReadFile(from, name, maxConfigLen) })
	if errors.Is(err, prepareroot.ErrInvalid) {
		err = fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if err != nil || config.Composefs != prepareroot.Yes && config.Composefs != prepareroot.Maybe {
		return err
	}
	digest, err := cfs.Digest(ctx, repo, c.Root())
	if errors.Is(err, cfs.ErrInvalid) {
		err = fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	c.Metadata = append(c.Metadata, objectstore.MetaEntry{Key: cfs.DigestKey, Value: gvariant.Bytes(digest[:])})
	return err
}
