package objectstore

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
)

// Import brings a content object of another repository into this one, with the guarantees of [Txn.StoreFile]. It does
// the first of these that the kernel allows:
//
//   - The inode gets another name. This requires a single mount, not only a single file system, and an inode that only
//     the process's own user can change ([FileMeta.Exclusive]): the two repositories need not be within reach of the same
//     users. Content is not read: both repositories have the same bytes, good or bad, and a repair of one repairs the
//     other.
//   - A new inode shares the blocks of the other (reflink). Content is not read either: both sides share the same
//     blocks, and reading them all would cost half a copy. Fsck of either repository finds damage.
//   - The content is copied, and hashed on the way: wrong content is not taken over, and is an ErrCorrupt.
//
// A new inode gets owner, mode, extended attributes and mtime of the other. A symbolic link gets no mtime, and is
// always compared with its checksum.
//
// An object that exists here is success, whether from has it or not. If the metadata of the two inodes differ, the one
// here is read, and replaced unless it is the object. One that is [Repo.Tied] is replaced by a copy. The other
// repository need not be locked: an object removed from it meanwhile is ErrNotExist, as if it had never been there.
// Stored.Blocks is 0 unless content was copied.
func (t *Txn) Import(from *Repo, sum Checksum) (Stored, error) {
	return t.importAs(from, sum, nil, 0)
}

// ImportFile is [Txn.Import] of a regular file whose metadata and size are known. An inode with another size, owner or
// mode, as a power failure may leave it, is not used: one here is replaced, one there is an ErrCorrupt.
func (t *Txn) ImportFile(from *Repo, sum Checksum, m *FileMeta, size int64) (Stored, error) {
	return t.importAs(from, sum, m, size)
}

func (t *Txn) importAs(from *Repo, sum Checksum, m *FileMeta, size int64) (Stored, error) {
	stored, err := t.importFile(from, sum, m, size)
	if err != nil {
		return Stored{}, fmt.Errorf("import from %s: %w", from.dir.Path(), objectError(TypeFile, sum, err))
	}
	return stored, nil
}

// importFile imports an object. Unless m is nil, the object is known to be a file with metadata m and the given size.
func (t *Txn) importFile(from *Repo, sum Checksum, m *FileMeta, size int64) (Stored, error) {
	var state presence
	var err error
	if m == nil {
		state, err = t.findAlike(from, sum)
	} else {
		state, err = t.find(sum, m, size)
	}
	if err == nil && state == present && t.repo.rehearsal == nil && (m == nil || !m.Exclusive()) {
		tied := false
		if tied, err = t.repo.Tied(from, sum); tied {
			state = wrong
		}
	}
	if err != nil || state == present {
		return Stored{Checksum: sum}, err
	}
	src, err := from.subdir(sum[0], false)
	if err != nil {
		return Stored{}, err
	}
	if state == absent {
		added, err := t.link(src, sum, m, size)
		if !cannotLink(err) {
			return Stored{Checksum: sum, Added: added, Linked: added}, err
		}
	}
	return t.copyObject(src, sum, state == wrong)
}

// findAlike looks for a content object as find does, but knows of it only the other repository's inode.
func (t *Txn) findAlike(from *Repo, sum Checksum) (presence, error) {
	st, err := t.repo.stat(&sum, TypeFile)
	if errors.Is(err, fs.ErrNotExist) {
		return absent, nil
	}
	if err != nil {
		return absent, err
	}
	if !t.distrusts(TypeFile, sum) {
		other, err := from.stat(&sum, TypeFile)
		if errors.Is(err, fs.ErrNotExist) || err == nil && alike(&st, &other) {
			return present, nil
		}
		if err != nil {
			return absent, err
		}
	}
	switch err := t.repo.verifyFile(sum); {
	case errors.Is(err, ErrCorrupt):
		return wrong, nil
	case err != nil:
		return absent, err
	}
	return present, nil
}

// Tied reports whether r and another repository have the same inode for a file that other users can change
// ([FileMeta.Exclusive]). [Txn.Import] of earlier versions left such.
func (r *Repo) Tied(other *Repo, sum Checksum) (bool, error) {
	here, err := r.stat(&sum, TypeFile)
	if err != nil || exclusive(&here) {
		return false, err
	}
	there, err := other.stat(&sum, TypeFile)
	if errors.Is(err, fs.ErrNotExist) || err == nil && atfs.InodeOf(&here) != atfs.InodeOf(&there) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	ours, err := r.objects.Lstat(".")
	if err != nil {
		return false, err
	}
	theirs, err := other.objects.Lstat(".")
	return atfs.InodeOf(&ours) != atfs.InodeOf(&theirs), err // not one repository, opened twice
}

func alike(a, b *unix.Stat_t) bool {
	return atfs.InodeOf(a) == atfs.InodeOf(b) || a.Mode == b.Mode && a.Uid == b.Uid && a.Gid == b.Gid && a.Size == b.Size
}

// link links an object's inode from another repository's directory to its name here, if it can be a file with metadata
// m and the given size, or any object if m is nil.
func (t *Txn) link(src *atfs.Dir, sum Checksum, m *FileMeta, size int64) (added bool, err error) {
	name := looseName(&sum, TypeFile)
	st, err := src.Lstat(name)
	if err != nil {
		return false, err
	}
	typ := st.Mode & unix.S_IFMT
	switch {
	case m != nil && !m.fits(&st, size):
		return false, corruptf("mode %o, owner %d:%d, size %d, the file has %o, %d:%d, %d",
			st.Mode, st.Uid, st.Gid, st.Size, m.Mode, m.UID, m.GID, size)
	case typ != unix.S_IFREG && typ != unix.S_IFLNK:
		return false, corruptf("mode %o: neither a regular file nor a symbolic link", st.Mode)
	case !exclusive(&st) && t.repo.rehearsal == nil:
		return false, errNotExclusive
	}
	return t.inSubdir(TypeFile, sum, func(d *atfs.Dir) error { return src.Link(name, d, name) })
}

var errNotExclusive = errors.New("other users can change the file")

// cannotLink reports whether a link failed because of the inode or its location, so that a new inode is needed: it is
// on another file system or mount, has the maximum of names, or may not get more (within reach of other users,
// immutable, or owned by another user under protected_hardlinks).
func cannotLink(err error) bool {
	return errors.Is(err, errNotExclusive) || errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EMLINK) || errors.Is(err, unix.EPERM)
}

// copyObject copies an object from another repository's directory into a new inode.
func (t *Txn) copyObject(src *atfs.Dir, sum Checksum, replace bool) (_ Stored, err error) {
	name := looseName(&sum, TypeFile)
	m, st, err := statFile(src, name)
	if err == nil {
		err = m.Validate()
	}
	if errors.Is(err, ErrInvalid) {
		return Stored{}, corruptf("%v", err)
	}
	if err != nil {
		return Stored{}, err
	}
	if m.IsSymlink() {
		if err := verifySymlink(m, sum); err != nil {
			return Stored{}, err
		}
		return t.storeSymlink(m, sum)
	}
	in, err := src.Open(name)
	if err != nil {
		return Stored{}, err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	out, err := t.repo.tmp.TmpFile(m.Mode & 0o777)
	if err != nil {
		return Stored{}, err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	cloned := false
	if !replace { // a replacement is verified
		if cloned, err = out.TryCloneFrom(in); err != nil {
			return Stored{}, err
		}
	}
	size := int64(0)
	if !cloned {
		size = st.Size
		if err := copyVerified(out, in, m, sum); err != nil {
			return Stored{}, err
		}
	}
	if err := t.setAttr(out, m, st.Mtim); err != nil {
		return Stored{}, err
	}
	added, err := t.publish(out, sum, TypeFile, replace)
	return t.stored(sum, added, size), err
}

func verifySymlink(m *FileMeta, sum Checksum) error {
	h := getHasher()
	defer h.put()
	h.startUnchecked(m)
	return verifySum(h.finish(), sum)
}

func copyVerified(out, in *atfs.File, m *FileMeta, sum Checksum) error {
	h := getHasher()
	defer h.put()
	h.startUnchecked(m)
	buf := getCopyBuffer()
	defer copyBuffers.Put(buf)
	if err := copyAll(io.MultiWriter(h.hash, out), in, buf[:]); err != nil {
		return err
	}
	return verifySum(h.finish(), sum)
}

// Lenders are repositories whose objects are used instead of writing the same content again.
type Lenders struct {
	Repos []*Repo // in order of preference
	// SameMtime excludes inodes with another mtime than the file to be stored: an object has the mtime of its inode.
	SameMtime bool
}

// Borrow links regular files that are stored in this transaction, and that the repository lacks, to the inodes that
// other repositories have for them. An inode's name in another repository proves nothing: the inode is read and
// compared with the file first, and not used unless it is [FileMeta.Exclusive] and nobody has it open for writing. If
// an inode cannot be used, the file is written as without Borrow.
//
// Call it before storing anything. The other repositories need not be locked, and must not be closed meanwhile.
func (t *Txn) Borrow(from Lenders) { t.lenders = from }

// borrow looks in the lenders for a content object that the repository lacks, and links it. It returns false if no
// lender has it.
func (t *Txn) borrow(sum Checksum, m *FileMeta, size int64, mtime unix.Timespec) (Stored, bool, error) {
	if size == 0 { // nothing to share
		return Stored{}, false, nil
	}
	for _, from := range t.lenders.Repos {
		st, err := from.stat(&sum, TypeFile)
		if err != nil || !m.fits(&st, size) || !exclusive(&st) || t.lenders.SameMtime && st.Mtim != mtime {
			continue
		}
		src, err := from.subdir(sum[0], false)
		if err != nil {
			continue
		}
		added, ok, err := t.linkVerified(src, sum)
		if err != nil {
			return Stored{}, false, err
		}
		if ok {
			return Stored{Checksum: sum, Added: added, Linked: added}, true, nil
		}
	}
	return Stored{}, false, nil
}

// Exclusive reports whether no user but the process's own, and root, can change a file with these metadata, wherever he
// can reach it, nor gain anything by running it: it belongs to that user, is writable for nobody else and has no set-id
// bit. Symbolic links are exclusive.
func (m *FileMeta) Exclusive() bool { return isExclusive(m.Mode, m.UID) }

func exclusive(st *unix.Stat_t) bool { return isExclusive(st.Mode, st.Uid) }

func isExclusive(mode, uid uint32) bool {
	return mode&unix.S_IFMT == unix.S_IFLNK ||
		uid == uint32(os.Geteuid()) && mode&(unix.S_ISUID|unix.S_ISGID|0o022) == 0
}

// hasAlone reports whether only the process's own user can change a file in tmp from now on. Another user could have it
// open for writing from the time before it changed its owner.
func (t *Txn) hasAlone(name string) (bool, error) {
	st, err := t.repo.tmp.Lstat(name)
	if err != nil || !exclusive(&st) {
		return false, err
	}
	f, err := t.repo.tmp.Open(name)
	if err != nil {
		return false, err
	}
	written, err := f.HasWriters()
	return !written, errors.Join(err, f.Close())
}

// linkVerified links an inode of another repository's directory as an object here, if it is that object. It returns
// false if it is not, or cannot be linked or read.
func (t *Txn) linkVerified(src *atfs.Dir, sum Checksum) (added, ok bool, err error) {
	name := looseName(&sum, TypeFile)
	// First under a name that nobody else can move to another inode during the read.
	tmp := temporaryName(linkTmpPrefix)
	if err := src.Link(name, t.repo.tmp, tmp); err != nil {
		if cannotLink(err) || errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return false, false, err
	}
	defer func() { err = errors.Join(err, t.repo.tmp.Unlink(tmp)) }()
	if alone, aerr := t.hasAlone(tmp); aerr != nil || !alone {
		return false, false, nil // an unreadable inode cannot be used
	}
	is, ierr := t.identify(t.repo.tmp, tmp)
	if ierr != nil || is != sum {
		return false, false, nil
	}
	added, err = t.inSubdir(TypeFile, sum, func(d *atfs.Dir) error { return t.repo.tmp.Link(tmp, d, name) })
	if cannotLink(err) {
		return false, false, nil
	}
	return added, err == nil, err
}

// Transfer is a way for content objects to get from one repository into another.
type Transfer int

// From the cheapest to the most expensive.
const (
	TransferLink    Transfer = iota // another name of the inode
	TransferReflink                 // separate inodes with shared blocks
	TransferCopy                    // the content is read and written
)

// Transfers are the ways for content objects of one repository into another.
type Transfers struct {
	Exclusive Transfer // of files that are [FileMeta.Exclusive]
	Others    Transfer // of other files; TransferLink only in a repository to rehearse in
}

// Of returns the way of a file.
func (t Transfers) Of(m *FileMeta) Transfer {
	if m.Exclusive() {
		return t.Exclusive
	}
	return t.Others
}

// Transfers determines how [Txn.Import] would bring objects of another repository into r. It tries with a file that
// every repository has: neither device nor mount numbers tell reliably what the kernel allows.
func (r *Repo) Transfers(from *Repo) (Transfers, error) {
	var t Transfers
	var err error
	if t.Others, err = r.tryCopy(from); err == nil {
		t.Exclusive, err = r.tryLink(from, t.Others)
	}
	if r.rehearsal != nil {
		t.Others = t.Exclusive
	}
	if err != nil {
		return t, fmt.Errorf("link from %s to %s: %w", from.dir.Path(), r.dir.Path(), err)
	}
	return t, nil
}

// tryLink returns TransferLink if links from another repository are possible, else another way.
func (r *Repo) tryLink(from *Repo, other Transfer) (Transfer, error) {
	tmp := temporaryName(linkTmpPrefix)
	switch err := from.dir.Link(configName, r.tmp, tmp); {
	case err == nil:
		return TransferLink, r.tmp.Unlink(tmp)
	case !cannotLink(err):
		return other, err
	}
	return other, nil
}

// tryCopy returns TransferReflink if reflinks from another repository are possible, else TransferCopy.
func (r *Repo) tryCopy(from *Repo) (_ Transfer, err error) {
	in, err := from.dir.Open(configName)
	if err != nil {
		return TransferCopy, err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	out, err := r.tmp.TmpFile(fileMode)
	if err != nil {
		return TransferCopy, err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if cloned, err := out.TryCloneFrom(in); err != nil || !cloned {
		return TransferCopy, err
	}
	return TransferReflink, nil
}
