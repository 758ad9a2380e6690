package layer

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/sha256x2"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/composefs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer/recipe"
)

// ImportOptions hold facts about a tar that are not in its bytes.
type ImportOptions struct {
	// Blob is the digest of the compressed blob, recorded so that AcquireBlob finds the layer. "" records none.
	Blob digest.Digest
	// Accept, if set, is called after the whole stream was read, before anything refers to the layer. An error drops
	// the layer. Callers check the digest of the blob and the end of the decompressor here.
	Accept func(diffID digest.Digest, tarSize int64) error
	// BlobFile is the file that the blob is read from, "" if it is not a file. The journal records it, so that the
	// layer can be rebuilt after a power failure.
	BlobFile string
	// Distrust names damaged objects: those that the layer contains replace the stored ones.
	Distrust map[objectstore.ObjectName]struct{}
}

// hashOnRead makes an import hash everything as it reads the tar, in one pass over the diff ID and the files. Where one
// pass is not faster than two, the digester and the workers hash at the same time instead.
var hashOnRead = sha256x2.Enabled()

// Import reads a plain tar to the end of the stream and returns its layer, held. Errors in the tar are ErrInvalid.
// After any error, nothing refers to the objects stored so far.
//
// Memory is bounded, whatever the tar claims: Options.MaxInFlight of the tar; up to 1.4 KB for each entry while
// the layer image is made, for at most MaxEntries entries; and 6 times the length of their names, link targets and
// extended attributes, for which at most 128 bytes for each of MaxEntries are allowed. With Options.TotalMemory, imports
// that would take more together wait for each other, until ctx is done. Nothing is fsynced but the entry in the journal,
// if there is one.
func (s *Store) Import(ctx context.Context, r io.Reader, o ImportOptions) (_ *Held, err error) {
	if o.Blob != "" {
		if _, err := digestRef(refBlob, o.Blob); err != nil {
			return nil, err
		}
	}
	in, err := s.begin(ctx)
	if err != nil {
		return nil, fmt.Errorf("import layer: %w", err)
	}
	defer in.finish(&err)
	in.txn.Distrust(o.Distrust)

	d := newDigester(in.pub.ctx, r, s.opts.blocks(), hashOnRead)
	defer d.Close()
	if err := in.beginRecipe(); err != nil {
		return nil, fmt.Errorf("import layer: %w", err)
	}
	in.entries = &tarEntries{src: d, record: in.record}
	if err := in.readTar(in.pub.ctx); err != nil {
		return nil, fmt.Errorf("import layer: %w", err)
	}
	if err := in.finishRecipe(); err != nil {
		return nil, fmt.Errorf("import layer: %w", invalidTar(err))
	}
	diffID, size, err := d.Finish()
	if err != nil {
		return nil, fmt.Errorf("import layer: %w", err)
	}
	if o.Accept != nil {
		if err := o.Accept(diffID, size); err != nil {
			return nil, fmt.Errorf("import layer: %w", err)
		}
	}
	ref, err := digestRef(refDiff, diffID)
	if err != nil {
		return nil, err
	}
	refs := []string{ref}
	if o.Blob != "" {
		if ref, err = digestRef(refBlob, o.Blob); err != nil {
			return nil, err
		}
		refs = append(refs, ref)
	}
	return in.commit(Layer{DiffID: diffID, TarSize: size}, journalRecord{blob: o.Blob, file: o.BlobFile, refs: refs})
}

// ingest is the state of storing one layer.
type ingest struct {
	s     *Store
	ctx   context.Context //nolint:containedctx // one call's state, not kept beyond it
	lock  *objectstore.Lock
	txn   *objectstore.Txn
	pub   *publisher
	share *share
	tarReader

	recipe     *recipe.Writer // nil for a layer that is not made from a tar
	recipeFile *objectstore.FileWriter
	contents   []*inode // files whose content the recipe leaves out, in order
}

func (s *Store) begin(ctx context.Context) (_ *ingest, err error) {
	// Before the lock: whoever waits for memory holds up nobody else.
	share, err := s.budget.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			share.release()
		}
	}()
	lock, err := s.repo.Lock(ctx, objectstore.LockShared)
	if err != nil {
		return nil, err
	}
	txn, err := s.repo.Begin(ctx)
	if err != nil {
		return nil, errors.Join(err, lock.Unlock())
	}
	txn.OnPublish(s.journal.published)
	txn.Distrust(s.stuckObjects())
	txn.Borrow(s.lenders)
	in := &ingest{s: s, ctx: ctx, lock: lock, txn: txn, share: share}
	in.tarReader = tarReader{tree: newTree(s.opts.MaxEntries), store: in.content}
	in.pub = newPublisher(ctx, txn, s.opts)
	if s.budget != nil {
		in.tree.reserve = func(need int64) error { return share.grow(in.pub.ctx, need) }
	}
	return in, nil
}

// ownMeta is the metadata of objects that are not files of a layer.
var ownMeta = objectstore.FileMeta{Mode: unix.S_IFREG | 0o600}

func (in *ingest) beginRecipe() (err error) {
	if in.recipeFile, err = in.txn.NewFile(&ownMeta, unix.Timespec{}); err != nil {
		return err
	}
	in.recipe = recipe.NewWriter(in.recipeFile)
	return nil
}

// record adds bytes of the tar to the recipe.
func (in *ingest) record(b []byte) error {
	if err := in.recipe.Record(b); err != nil {
		return &storeError{err}
	}
	return nil
}

// finishRecipe reads the rest of the tar, while the workers store the last files.
func (in *ingest) finishRecipe() error {
	if err := in.pub.flush(); err != nil {
		return err
	}
	if err := in.entries.rest(); err != nil {
		return err
	}
	if err := in.recipe.Finish(); err != nil {
		return &storeError{err}
	}
	return nil
}

// finish cleans up unless commit has. It waits for the workers: none of them outlives the call.
func (in *ingest) finish(err *error) {
	defer in.share.release()
	in.pub.stop()
	if in.recipeFile != nil {
		*err = errors.Join(*err, in.recipeFile.Abort())
	}
	*err = errors.Join(*err, in.txn.Abort())
	if in.lock != nil {
		*err = errors.Join(*err, in.lock.Unlock())
	}
}

// commit waits for the objects, writes layer image and layer commit, and then journal and refs.
func (in *ingest) commit(l Layer, r journalRecord) (*Held, error) {
	if err := in.pub.wait(); err != nil {
		return nil, fmt.Errorf("import layer: %w", err)
	}
	if err := in.restat(); err != nil {
		return nil, fmt.Errorf("import layer: %w", err)
	}
	added := in.pub.added
	if err := in.storeLayer(&l, in.tree.seal(), &added); err != nil {
		return nil, fmt.Errorf("import layer: %w", err)
	}
	if err := in.s.trust(l.ID); err != nil {
		return nil, fmt.Errorf("import layer: %w", err)
	}
	r.layer = l.ID
	if err := in.s.publishRefs(in.ctx, in.txn, r); err != nil {
		return nil, fmt.Errorf("import layer: %w", err)
	}
	h := &Held{Layer: l, Blob: r.blob, Added: added, lock: in.lock}
	in.lock = nil
	return h, nil
}

// restat stores files again whose attributes changed by a later entry of the tar, a hard link.
func (in *ingest) restat() error {
	for _, n := range in.stale {
		if err := in.pub.restore(in.s.repo, n); err != nil {
			return err
		}
	}
	return nil
}

// A tarReader puts the entries of a tar into a tree.
type tarReader struct {
	entries *tarEntries
	tree    *tree
	store   func(n *inode, hdr *tar.Header) error // reads the content of each file that is not empty
	stale   []*inode                              // attributes changed after the content was passed to store
}

// readTar reads the entries of the tar, or until ctx is done.
func (in *tarReader) readTar(ctx context.Context) error {
	for {
		hdr, err := in.entries.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return invalidTar(err)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := in.entry(hdr); err != nil {
			var re *readError
			if errors.As(err, &re) {
				return invalidTar(re.err)
			}
			return entryError(hdr.Name, err)
		}
	}
}

// readError is an error of the stream inside an entry's content.
type readError struct{ err error }

func (e *readError) Error() string { return e.err.Error() }

// storeError is an error of the store, not of the layer.
type storeError struct{ err error }

func (e *storeError) Error() string { return e.err.Error() }
func (e *storeError) Unwrap() error { return e.err }

// entryError returns an error met at an entry: an EntryError, unless it is an error of the store.
func entryError(name string, err error) error {
	var se *storeError
	if errors.As(err, &se) {
		return se.err
	}
	return &EntryError{Name: name, Err: err}
}

// invalidTar tells a bad tar from an error of the underlying reader, which keeps its own class.
func invalidTar(err error) error {
	var se *storeError
	if errors.As(err, &se) {
		return se.err
	}
	// Not every error of archive/tar is exported.
	if errors.Is(err, io.ErrUnexpectedEOF) || strings.HasPrefix(err.Error(), "archive/tar: ") {
		return fmt.Errorf("read tar: %w: %w", ErrInvalid, err)
	}
	return fmt.Errorf("read tar: %w", err)
}

const (
	whiteoutPrefix = ".wh."
	whiteoutMeta   = ".wh..wh."
	whiteoutOpaque = ".wh..wh..opq"

	paxXattr  = "SCHILY.xattr."
	paxSparse = "GNU.sparse."
)

// entry adds one entry of the tar to the tree, as containerd's applier adds it to a directory.
func (in *tarReader) entry(hdr *tar.Header) error {
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	parent, base, err := splitName(hdr.Name)
	if err != nil {
		return err
	}
	if base == "" { // a layer may not set attributes of the root
		return nil
	}
	dir, err := in.tree.dir(parent, base)
	if err != nil {
		return err
	}
	if strings.HasPrefix(base, whiteoutPrefix) {
		return in.whiteout(dir, base)
	}
	if err := in.tree.count(base); err != nil {
		return err
	}
	if hdr.Typeflag == tar.TypeLink {
		return in.link(hdr, dir, base)
	}
	n := new(inode)
	if old := dir.children[base]; old != nil && old.IsDir() && hdr.Typeflag == tar.TypeDir {
		n.UID, n.GID = old.UID, old.GID
	}
	if err := attributes(n, hdr); err != nil {
		return err
	}
	switch hdr.Typeflag {
	case tar.TypeDir:
		n.Mode |= unix.S_IFDIR
		n.children = make(map[string]*inode)
	case tar.TypeReg, tar.TypeGNUSparse:
		n.Mode |= unix.S_IFREG
		n.Size = hdr.Size
	case tar.TypeSymlink:
		n.Mode = unix.S_IFLNK | 0o777
		n.Target = hdr.Linkname
		if n.Target == "" || len(n.Target) > maxPath || strings.ContainsRune(n.Target, 0) {
			return errSymlink
		}
	case tar.TypeFifo:
		n.Mode |= unix.S_IFIFO
	case tar.TypeChar, tar.TypeBlock:
		if hdr.Devmajor < 0 || hdr.Devminor < 0 || hdr.Devmajor >= 1<<12 || hdr.Devminor >= 1<<20 {
			return errDevice
		}
		n.Rdev = unix.Mkdev(uint32(hdr.Devmajor), uint32(hdr.Devminor))
		n.Mode |= unix.S_IFCHR
		if hdr.Typeflag == tar.TypeBlock {
			n.Mode = n.Mode&^unix.S_IFMT | unix.S_IFBLK
		}
	default:
		return fmt.Errorf("%w: %q", errType, hdr.Typeflag)
	}
	if err := xattrs(n, hdr.PAXRecords); err != nil {
		return err
	}
	if err := in.put(dir, base, n); err != nil {
		return err
	}
	if n.Size > 0 {
		return in.store(n, hdr)
	}
	return nil
}

// content stores the content of a file. A sparse file's content is not in the tar in that form, so the recipe keeps what
// is.
func (in *ingest) content(n *inode, hdr *tar.Header) error {
	if isSparse(hdr) {
		return in.pub.sparse(n, in.entries.content())
	}
	if err := in.pub.file(n, in.entries); err != nil {
		return err
	}
	in.contents = append(in.contents, n)
	if err := in.recipe.Content(n.Size); err != nil {
		return &storeError{err}
	}
	return nil
}

// put gives a new inode its name, if it fits.
func (in *tarReader) put(dir *inode, base string, n *inode) error {
	if err := in.tree.hold(n); err != nil {
		return err
	}
	return in.tree.put(dir, base, n)
}

func (in *tarReader) whiteout(dir *inode, base string) error {
	if base == whiteoutOpaque {
		dir.opaque = true
		return nil
	}
	if strings.HasPrefix(base, whiteoutMeta) { // bookkeeping of aufs, which containerd and Docker ignore or never see
		return nil
	}
	name := strings.TrimPrefix(base, whiteoutPrefix)
	if name == "" || name == "." || name == ".." {
		return errWhiteout
	}
	if err := in.tree.count(name); err != nil {
		return err
	}
	in.tree.whiteOut(dir, name)
	return nil
}

// link gives the target another name. As in containerd, the file takes the attributes of the link's own header. A
// target that this layer lacks is in a lower layer, where a checkout looks for it.
func (in *tarReader) link(hdr *tar.Header, dir *inode, base string) error {
	tdir, tbase, err := splitLink(hdr.Linkname)
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", hdr.Linkname, err)
	}
	switch {
	case tbase == "":
		return errLinkDir
	case len(tbase) > maxName: // no whiteout, whatever its name
		return fmt.Errorf("hard link to %q: %w", hdr.Linkname, errNameLong)
	}
	target, name, err := in.tree.find(tdir, tbase)
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", hdr.Linkname, err)
	}
	switch {
	case target == nil:
		n := &inode{external: name}
		n.Mode = unix.S_IFREG
		return in.put(dir, base, n)
	case target.IsDir():
		return errLinkDir
	case target.whiteout:
		return errLinkWhiteout
	}
	if err := in.relabel(target, hdr); err != nil {
		return err
	}
	if dir.children[base] != target {
		return in.tree.put(dir, base, target)
	}
	return nil
}

// relabel gives a file that was already read the attributes of a hard link's header.
func (in *tarReader) relabel(n *inode, hdr *tar.Header) error {
	if n.external != "" {
		return nil
	}
	var a inode
	a.UID, a.GID = n.UID, n.GID
	if err := attributes(&a, hdr); err != nil {
		return err
	}
	a.Mode |= n.Mode & unix.S_IFMT
	if n.isSymlink() {
		a.Mode = n.Mode
	}
	if err := xattrs(&a, hdr.PAXRecords); err != nil {
		return err
	}
	if n.Mode == a.Mode && n.UID == a.UID && n.GID == a.GID && n.Mtime == a.Mtime && len(a.Xattrs) == 0 {
		return nil
	}
	if err := in.tree.hold(&a); err != nil {
		return err
	}
	if err := n.setAttributes(&a); err != nil {
		return err
	}
	if n.hasObject() && !n.stale {
		n.stale = true
		in.stale = append(in.stale, n)
	}
	return nil
}

// noOwner is the user or group that chown(2) does not set.
const noOwner = math.MaxUint32

// attributes sets owner, permissions and time from a header. As in containerd, times that a file system cannot hold become
// the epoch, and noOwner leaves the owner as it is: root in a new file.
func attributes(n *inode, hdr *tar.Header) error {
	if hdr.Uid < 0 || hdr.Gid < 0 || int64(hdr.Uid) > math.MaxUint32 || int64(hdr.Gid) > math.MaxUint32 {
		return errOwner
	}
	if hdr.Uid != noOwner {
		n.UID = uint32(hdr.Uid)
	}
	if hdr.Gid != noOwner {
		n.GID = uint32(hdr.Gid)
	}
	n.Mode = uint32(hdr.Mode) & 0o7777
	n.Mtime = timespec(hdr.ModTime)
	return nil
}

var (
	minTime = time.Unix(0, 0)
	maxTime = time.Unix(0, math.MaxInt64)
)

func timespec(t time.Time) unix.Timespec {
	if t.Before(minTime) || t.After(maxTime) {
		t = minTime
	}
	return unix.Timespec{Sec: t.Unix(), Nsec: int64(t.Nanosecond())}
}

const (
	maxXattrName  = 255   // XATTR_NAME_MAX
	maxXattrValue = 65535 // maximum in the layer image; one byte less than XATTR_SIZE_MAX
	maxXattrs     = 65535 // names and values of one file; names alone may not be longer (XATTR_LIST_MAX)
)

// xattrs sets the extended attributes that a tar may set. It drops trusted.*, which only the host's own administrator
// sets; user.overlay.*, which a nested overlay would obey; security.selinux, which the host's policy decides; user.* on
// files that cannot carry it; and system.* other than POSIX ACLs, which no file system stores.
func xattrs(n *inode, records map[string]string) error {
	total := 0
	for key, value := range records {
		name, ok := strings.CutPrefix(key, paxXattr)
		if !ok {
			continue
		}
		keep, err := keepXattr(n, name, value)
		if err != nil {
			return err
		}
		if !keep {
			continue
		}
		if total += len(name) + len(value); total > maxXattrs {
			return errXattr
		}
		v := []byte(value)
		switch {
		case isACL(name):
			v, err = normalACL(name, v, n.Mode)
		case name == xattrCaps:
			v, err = normalCaps(v)
		}
		if err != nil {
			return err
		}
		if v == nil {
			continue
		}
		n.Xattrs = append(n.Xattrs, composefs.Xattr{Name: name, Value: v})
	}
	sortXattrs(n.Xattrs)
	return nil
}

func keepXattr(n *inode, name, value string) (bool, error) {
	if len(name) > maxXattrName || len(value) > maxXattrValue {
		return false, errXattr
	}
	ns, rest, ok := strings.Cut(name, ".")
	switch {
	case !ok, rest == "", strings.ContainsRune(name, 0):
		return false, nil
	case ns == "security":
		return name != atfs.XattrSELinux, nil
	case ns == "user":
		return !strings.HasPrefix(rest, "overlay.") && (n.isRegular() || n.IsDir()), nil
	case isACL(name):
		return !n.isSymlink(), nil
	}
	return false, nil
}
