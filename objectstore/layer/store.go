package layer

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/composefs"
)

// Mtime selects how a checkout treats a file whose modification time differs from that of its object's inode.
type Mtime string

const (
	// MtimeExact gives such a file its own inode, a reflink if the file system can, else a copy.
	MtimeExact Mtime = "exact"
	// MtimeCanonical links it all the same: it shows the time of the file stored first.
	MtimeCanonical Mtime = "canonical"
)

// Options configure a [Store]. Zero values stand for the defaults named in the comments.
type Options struct {
	Mtime       Mtime // default: MtimeExact
	Workers     int   // goroutines that hash and publish files of one layer; default: the number of processors
	MaxInFlight int64 // bytes of a tar in memory for one layer, between its decompressor and the disk; default: 4 MiB, least: 2 MiB, most: TotalMemory/8
	TotalMemory int64 // bytes of memory for all layers being imported together; default: no limit
	MaxEntries  int   // entries of a layer, with 128 bytes of names, targets and attributes each on average; default: 1 Mi
	MaxLinks    int   // hard links made to one object; default: the file system's limit

	// Borrow lists repositories on the same mount: a file that one of them has is linked instead of written. With
	// MtimeExact, it must have the file's time too if a checkout could otherwise only copy it. They must outlive the
	// store.
	Borrow []*objectstore.Repo

	// Journal lists layers that may not be on the disk yet in journal/, and syncs them in the background, so that
	// Recover finds what a power failure has damaged. Without it, only Sync makes anything durable.
	Journal    bool
	SyncFailed func(error) // called when syncing in the background fails; may be nil
	Boot       string      // identifies this run of the kernel; default: its boot ID

	maxObjects int // maxObjects, for tests
}

func (o *Options) setDefaults() {
	if o.Mtime == "" {
		o.Mtime = MtimeExact
	}
	if o.Workers <= 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	if o.MaxInFlight <= 0 {
		o.MaxInFlight = 4 << 20
	}
	if o.TotalMemory > 0 {
		o.MaxInFlight = min(o.MaxInFlight, o.TotalMemory/8)
	}
	if o.maxObjects <= 0 {
		o.maxObjects = maxObjects
	}
	if o.MaxEntries <= 0 {
		o.MaxEntries = 1 << 20
	}
}

// blocks returns the number of blocks of a tar that may be in memory.
func (o *Options) blocks() int { return max(int(o.MaxInFlight/blockSize), minBlocks) }

// A Store holds layers. Its methods are safe for concurrent use, also by several processes.
type Store struct {
	root   *atfs.Dir
	layers *atfs.Dir
	tmp    *atfs.Dir
	repo   *objectstore.Repo
	opts   Options

	lenders objectstore.Lenders
	budget  *budget // nil without TotalMemory

	journal journal

	mu        sync.Mutex
	checkouts map[string]*checkoutCall      // in progress, by name
	whiteouts map[objectstore.Checksum]bool // by layer seen so far: whether it has any

	stuck map[objectstore.ObjectName]struct{} // damaged objects that a recovery could not remove
}

// Open opens the layers below root, whose objects are in repo. It makes missing layers/, journal/ and tmp/ with mode
// 0700. The store opens its own handle of root; the caller keeps repo, which must outlive the store.
func Open(root *atfs.Dir, repo *objectstore.Repo, opts Options) (_ *Store, err error) {
	opts.setDefaults()
	if opts.Mtime != MtimeExact && opts.Mtime != MtimeCanonical {
		return nil, fmt.Errorf("open layer store: mtime %q is neither %q nor %q", opts.Mtime, MtimeExact, MtimeCanonical)
	}
	s := &Store{
		repo: repo, opts: opts, budget: newBudget(opts.TotalMemory, int64(opts.blocks())*blockSize),
		checkouts: make(map[string]*checkoutCall), whiteouts: make(map[objectstore.Checksum]bool),
		stuck: make(map[objectstore.ObjectName]struct{}),
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("open layer store: %w", err), s.Close())
		}
	}()
	if s.root, err = root.OpenDir("."); err != nil {
		return nil, err
	}
	for _, d := range []struct {
		name string
		dir  **atfs.Dir
	}{{LayersDir, &s.layers}, {TmpDir, &s.tmp}} {
		if err := s.root.MkdirAll(d.name, dirMode); err != nil {
			return nil, err
		}
		if *d.dir, err = s.root.OpenDir(d.name); err != nil {
			return nil, err
		}
	}
	if s.lenders, err = s.borrowFrom(opts.Borrow); err != nil {
		return nil, err
	}
	return s, s.journal.open(s.root, opts)
}

func (s *Store) borrowFrom(repos []*objectstore.Repo) (_ objectstore.Lenders, err error) {
	l := objectstore.Lenders{Repos: repos}
	if len(repos) == 0 || s.opts.Mtime != MtimeExact {
		return l, nil
	}
	var f [2]*atfs.File
	for i := range f {
		if f[i], err = s.tmp.TmpFile(0o600); err != nil {
			return l, err
		}
		defer func() { err = errors.Join(err, f[i].Close()) }()
	}
	reflink, err := f[0].TryCloneFrom(f[1])
	l.SameMtime = !reflink
	return l, err
}

// Close syncs the layers in the journal and closes the store's directories. Held layers stay held.
func (s *Store) Close() error {
	err := s.journal.close()
	for _, d := range []*atfs.Dir{s.root, s.layers, s.tmp} {
		if d != nil {
			err = errors.Join(err, d.Close())
		}
	}
	return err
}

// Repo returns the repository the store was opened with.
func (s *Store) Repo() *objectstore.Repo { return s.repo }

// SweepTmp removes unfinished checkouts of dead processes. Nothing else may use the store meanwhile. If some cannot be
// removed, all others are, and the error is an objectstore.ErrNotRemoved; the next prune tries again.
func (s *Store) SweepTmp() error {
	names, err := s.tmp.ReadNames()
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		if strings.HasPrefix(name, checkoutTmpPrefix) {
			errs = append(errs, s.tmp.RemoveAll(name))
		}
	}
	return objectstore.NotRemoved(errs...)
}

// A Layer describes a layer of the store.
type Layer struct {
	ID         objectstore.Checksum // of the layer commit
	DiffID     digest.Digest        // of the tar; "" for a layer made of a directory
	Image      objectstore.Checksum // object that holds the layer image
	Recipe     objectstore.Checksum // object that holds the recipe of the tar; zero if there is none
	Entries    int64                // files, directories, links and whiteouts
	Size       int64                // bytes of all regular files
	TarSize    int64                // bytes of the tar; 0 for a layer made of a directory
	Unresolved int64                // entries that a checkout must resolve against the layers below
}

// Usage is allocated disk space.
type Usage struct{ Bytes, Inodes int64 }

func (u *Usage) add(s objectstore.Stored) {
	if s.Added && !s.Linked {
		u.Bytes += s.Blocks
		u.Inodes++
	}
}

// A Held layer cannot be pruned until it is released.
type Held struct {
	Layer
	Blob  digest.Digest // from which the layer was unpacked, now or earlier; "" if it was not found by one
	Added Usage         // added to the store by the call that returned it
	Known bool          // the store had the layer already; nothing was unpacked

	lock *objectstore.Lock
}

// Release releases the layer. Further calls do nothing.
func (h *Held) Release() error {
	if h.lock == nil {
		return nil
	}
	err := h.lock.Unlock()
	h.lock = nil
	return err
}

// Names of a layer commit's metadata and of the entries of its tree.
const (
	metaDiffID     = "oci.diff-id"
	metaEntries    = "oci.entries"
	metaBytes      = "oci.bytes"
	metaTarBytes   = "oci.tar-bytes"
	metaUnresolved = "oci.unresolved"

	imageName   = "image"
	recipeName  = "tar"
	objectsName = "objects"
)

// Acquire returns, held, the layer whose tar has the digest diffID. If the store lacks it the error is ErrNotExist.
func (s *Store) Acquire(ctx context.Context, diffID digest.Digest) (*Held, error) {
	return s.acquire(ctx, refDiff, diffID)
}

// AcquireBlob returns, held, the layer that the compressed blob unpacks to. A blob never imported here is ErrNotExist.
func (s *Store) AcquireBlob(ctx context.Context, blob digest.Digest) (*Held, error) {
	held, err := s.acquire(ctx, refBlob, blob)
	if err == nil {
		held.Blob = blob
	}
	return held, err
}

func (s *Store) acquire(ctx context.Context, prefix string, d digest.Digest) (_ *Held, err error) {
	ref, err := digestRef(prefix, d)
	if err != nil {
		return nil, err
	}
	lock, err := s.repo.Lock(ctx, objectstore.LockShared)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, lock.Unlock())
		}
	}()
	id, err := s.repo.Ref(ref)
	if errors.Is(err, objectstore.ErrNotExist) {
		return nil, fmt.Errorf("layer %s: %w", d, ErrNotExist)
	}
	if err != nil {
		return nil, err
	}
	l, err := s.Layer(ctx, id)
	if err != nil {
		return nil, err
	}
	return &Held{Layer: *l, Known: true, lock: lock}, nil
}

// digestRef returns the ref for a digest. Digests come from manifests: only a well-formed SHA-256 becomes a name.
func digestRef(prefix string, d digest.Digest) (string, error) {
	if err := d.Validate(); err != nil {
		return "", fmt.Errorf("digest %q: %w", d, errors.Join(err, ErrInvalid))
	}
	if d.Algorithm() != digest.SHA256 {
		return "", fmt.Errorf("digest %q: %w: only sha256 is supported", d, ErrInvalid)
	}
	return prefix + d.Encoded(), nil
}

// Layer describes the layer with an ID. If the store lacks it the error is ErrNotExist.
func (s *Store) Layer(_ context.Context, id objectstore.Checksum) (*Layer, error) {
	c, err := s.repo.Commit(id)
	if errors.Is(err, objectstore.ErrNotExist) {
		return nil, fmt.Errorf("layer %s: %w", id, ErrNotExist)
	}
	if err != nil {
		return nil, err
	}
	return s.describe(id, c)
}

func (s *Store) describe(id objectstore.Checksum, c *objectstore.Commit) (*Layer, error) {
	l := &Layer{ID: id}
	if d, ok := c.MetaString(metaDiffID); ok {
		l.DiffID = digest.Digest(d)
	}
	for key, dst := range map[string]*int64{
		metaEntries: &l.Entries, metaBytes: &l.Size, metaTarBytes: &l.TarSize, metaUnresolved: &l.Unresolved,
	} {
		v, ok := c.MetaUint64(key)
		if !ok {
			return nil, fmt.Errorf("layer %s: commit has no %s: %w", id, key, objectstore.ErrCorrupt)
		}
		*dst = int64(v)
	}
	top, err := s.repo.DirTree(c.Tree)
	if err != nil {
		return nil, err
	}
	for _, f := range top.Files {
		switch f.Name {
		case imageName:
			l.Image = f.Checksum
		case recipeName:
			l.Recipe = f.Checksum
		}
	}
	if l.Image.IsZero() {
		return nil, fmt.Errorf("layer %s: commit has no %s: %w", id, imageName, objectstore.ErrCorrupt)
	}
	return l, nil
}

// Layers describes every layer that a ref of this package names, by ID. Damaged layers are skipped and reported in the
// error, beside the others. Unreadable refs name no layer.
func (s *Store) Layers(ctx context.Context) ([]Layer, error) {
	refs, _, err := s.repo.ReadableRefs(RefPrefix)
	if err != nil {
		return nil, err
	}
	ids := make(map[objectstore.Checksum]struct{})
	for _, id := range refs {
		ids[id] = struct{}{}
	}
	var layers []Layer
	var errs []error
	for id := range ids {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		l, err := s.Layer(ctx, id)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		layers = append(layers, *l)
	}
	slices.SortFunc(layers, func(a, b Layer) int { return strings.Compare(a.ID.String(), b.ID.String()) })
	return layers, errors.Join(errs...)
}

// Objects returns the checksums, sorted, of a layer's content objects, without image and recipe.
func (s *Store) Objects(_ context.Context, id objectstore.Checksum) ([]objectstore.Checksum, error) {
	c, err := s.repo.Commit(id)
	if err != nil {
		return nil, err
	}
	top, err := s.repo.DirTree(c.Tree)
	if err != nil {
		return nil, err
	}
	var sums []objectstore.Checksum
	for _, d := range top.Dirs {
		if d.Name != objectsName {
			continue
		}
		t, err := s.repo.DirTree(d.Tree)
		if err != nil {
			return nil, err
		}
		for _, f := range t.Files {
			sums = append(sums, f.Checksum)
		}
	}
	return sums, nil
}

// RootOwner returns the owner of the root directory of a layer.
func (s *Store) RootOwner(ctx context.Context, id objectstore.Checksum) (uid, gid uint32, err error) {
	l, err := s.Layer(ctx, id)
	if err != nil {
		return 0, 0, err
	}
	if l.DiffID != "" {
		return 0, 0, nil // a tar's own entry for its root is ignored
	}
	root, err := s.readImage(l)
	if err != nil {
		return 0, 0, err
	}
	return root.UID, root.GID, nil
}

// Image returns the tree of a layer's image.
func (s *Store) Image(ctx context.Context, id objectstore.Checksum) (*composefs.Inode, error) {
	l, err := s.Layer(ctx, id)
	if err != nil {
		return nil, err
	}
	return s.readImage(l)
}

func (s *Store) readImage(l *Layer) (*composefs.Inode, error) {
	f, err := s.repo.OpenFile(l.Image)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.Size > maxImage {
		return nil, fmt.Errorf("read image of layer %s: %d bytes: %w", l.ID, st.Size, objectstore.ErrCorrupt)
	}
	b := make([]byte, st.Size)
	if _, err := f.ReadAt(b, 0); err != nil {
		return nil, fmt.Errorf("read image of layer %s: %w", l.ID, err)
	}
	root, err := readImage(b)
	if err != nil {
		return nil, fmt.Errorf("read image of layer %s: %w", l.ID, err)
	}
	return root, nil
}

// PayloadSum returns the object named by the payload of a regular file in a layer image; anything else is an
// ErrCorrupt.
func PayloadSum(payload string) (objectstore.Checksum, error) {
	name, err := objectstore.ParseLoosePath(payload)
	if err != nil || name.Type != objectstore.TypeFile {
		return objectstore.Checksum{}, fmt.Errorf("payload %q names no content object: %w", payload, objectstore.ErrCorrupt)
	}
	return name.Checksum, nil
}
