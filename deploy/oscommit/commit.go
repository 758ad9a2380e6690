package oscommit

import (
	"context"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/gvariant"
)

// An Image is what an image says of itself. The OS commit is a function of it and of the tree alone: it is the same on every
// host.
type Image struct {
	ManifestDigest string
	Manifest       string // JSON, byte for byte
	Config         string // JSON, byte for byte
	Version        string // "" for none
	Created        time.Time
}

// Names in the metadata of an OS commit; those of an image are what ostree's own tools write for images that they have
// deployed.
const (
	// ManifestDigest is the digest of the image's manifest.
	ManifestDigest = "ostree.manifest-digest"

	metaVersion  = "version"
	metaLinux    = "ostree.linux"
	metaBootable = "ostree.bootable"
	metaManifest = "ostree.manifest"
	metaConfig   = "ostree.container.image-config"
)

// Store writes the OS commit of an image with this tree, and returns its checksum. Content objects that the repository
// has not come from another one, as [objectstore.Txn.Import] brings them: where both are on one mount that reads and
// writes no content. Empty files and symbolic links, which are objects of no layer, are made here. Without another
// repository (nil) all content objects must be there already, where the import of the layers has put them.
//
// One that is in neither is an objectstore.ErrNotExist. One whose size, owner or mode is not that of the file, as after
// a power failure, is an objectstore.ErrCorrupt, unless the other repository has the right one. If there is not enough
// room for what has to be copied, the error says how much it is, unwraps to ENOSPC, and nothing has been written.
//
// Nothing refers to the commit yet: that is for txn.SetRef to do, before txn is committed. The caller sees to it that
// what the other repository has is not pruned meanwhile. What a Store that failed has written is garbage for the next
// prune, and is found by the next Store.
func (t *Tree) Store(ctx context.Context, txn *objectstore.Txn, from *objectstore.Repo, img Image) (objectstore.Checksum, error) {
	sum, err := t.store(ctx, txn, from, img)
	if err != nil {
		return objectstore.Checksum{}, fmt.Errorf("store OS commit: %w", err)
	}
	return sum, nil
}

func (t *Tree) store(ctx context.Context, txn *objectstore.Txn, from *objectstore.Repo, img Image) (sum objectstore.Checksum, err error) {
	o, err := compile(t.root)
	if err != nil {
		return sum, err
	}
	progress := Progress{TotalObjects: len(o.files)}
	if progress.TotalBytes, err = o.room(txn.Repo(), from); err != nil {
		return sum, err
	}
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
		return sum, err
	}
	for i := range o.metadata {
		if _, err := txn.StoreMetadata(o.metadata[i].typ, o.metadata[i].data); err != nil {
			return sum, err
		}
	}
	c := &objectstore.Commit{Metadata: t.metadata(img), Tree: o.tree, Meta: o.meta}
	if img.Created.Unix() > 0 {
		c.Timestamp = uint64(img.Created.Unix())
	}
	data, err := c.Marshal()
	if err != nil {
		return sum, err
	}
	stored, err := txn.StoreMetadata(objectstore.TypeCommit, data)
	return stored.Checksum, err
}

// Progress is how far a [Tree.Store] is.
type Progress struct {
	Objects, TotalObjects int   // content objects, new ones and those that were there
	Bytes, TotalBytes     int64 // of these, what is copied on the disk; 0 where nothing has to be
}

// Need is what a repository lacks of an OS commit.
type Need struct {
	Transfer objectstore.Transfer // how content gets there
	Objects  int                  // content objects that have to be copied
	Bytes    int64                // that these take on the disk: whole blocks, not sizes
	Shared   int                  // content objects that take no space, because they can be linked or reflinked
	Metadata int64                // bytes that new directories, symbolic links not among them, take on the disk
}

// Need returns what Store would have to bring from a repository to another one, and changes neither. The room that there
// must be is Bytes and Metadata.
func (t *Tree) Need(to, from *objectstore.Repo) (Need, error) {
	o, err := compile(t.root)
	var n Need
	if err == nil {
		n, err = o.need(to, from)
	}
	if err != nil {
		return Need{}, fmt.Errorf("compare OS commit with %s: %w", to.Dir().Path(), err)
	}
	return n, nil
}

// room returns an error if a repository has no room for what it lacks, else how many bytes have to be copied into it.
func (o *objects) room(to, from *objectstore.Repo) (int64, error) {
	space, known, err := to.Dir().Space()
	if err != nil {
		return 0, err
	}
	if !known {
		space.Free = math.MaxInt64
	}
	// Where all is linked, what there is room for in any case need not be looked for.
	how, err := transfer(to, from)
	if err != nil || how != objectstore.TransferCopy && uint64(o.metadataSize(to)) <= space.Free {
		return 0, err
	}
	n, err := o.need(to, from)
	if err == nil && uint64(n.Bytes+n.Metadata) > space.Free {
		err = fmt.Errorf("%d files, which cannot be linked, and directories take %s in %s, where %s are free: %w",
			n.Objects, humanize.IBytes(uint64(n.Bytes+n.Metadata)), to.Dir().Path(), humanize.IBytes(space.Free), unix.ENOSPC)
	}
	return n.Bytes, err
}

// transfer returns how content gets from one repository to another; nil is the same.
func transfer(to, from *objectstore.Repo) (objectstore.Transfer, error) {
	if from == nil {
		return objectstore.TransferLink, nil
	}
	return to.Transfer(from)
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
	add(metaManifest, img.Manifest)
	add(metaConfig, img.Config)
	return entries
}
