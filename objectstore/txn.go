package objectstore

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/sha256x2"
)

// Stored describes a stored object.
type Stored struct {
	Checksum Checksum
	Added    bool  // it is new
	Linked   bool  // it is another name of an inode of another repository
	Blocks   int64 // disk space if it was added: its size in whole blocks
}

// Txn is a transaction: objects are added, then refs are moved to them. It holds the shared lock from Begin to Commit
// or Abort, so that no prune removes an object, new or reused, before a ref reaches it.
//
// An object exists, complete and under its name, as soon as the method that stores it returns; never before, whatever
// happens to the process. It is durable only after a Commit with Sync, or a syncfs by the caller. Objects of a
// transaction that was not committed are garbage for the next prune. A method that failed can be called again.
//
// All methods are safe for concurrent use, except that Commit and Abort must be called after the others have returned.
type Txn struct {
	repo     *Repo
	lock     *Lock
	umask    uint32
	uid, gid uint32 // of new files

	onPublish func(ObjectName)
	distrust  map[ObjectName]struct{}
	lenders   Lenders

	mu   sync.Mutex
	refs []refChange
	done bool
}

// Begin starts a transaction, which must be ended by Commit or Abort. It waits for the shared lock like [Repo.Lock].
func (r *Repo) Begin(ctx context.Context) (*Txn, error) {
	lock, err := r.Lock(ctx, LockShared)
	if err != nil {
		return nil, fmt.Errorf("begin transaction: %w", err)
	}
	t := &Txn{repo: r, lock: lock, umask: processUmask(), uid: uint32(os.Geteuid()), gid: uint32(os.Getegid())}
	if r.chownAll {
		t.uid, t.gid = noID, noID
	}
	return t, nil
}

// Repo returns the repository.
func (t *Txn) Repo() *Repo { return t.repo }

// OnPublish makes the transaction call f with the name of each object before the object gets that name: f knows of
// every object before anyone can see it. Several goroutines may call f at once. Set it before storing anything.
func (t *Txn) OnPublish(f func(ObjectName)) { t.onPublish = f }

// Distrust names objects whose stored form is not to be trusted: storing one of them again repairs it. A content object
// is mended in place, so that everything linked to the inode, and every running program that has it mapped, is repaired
// too. If that is not possible, and for a metadata object, it is replaced atomically. Call it before storing anything;
// further calls add names.
func (t *Txn) Distrust(names map[ObjectName]struct{}) {
	if t.distrust == nil {
		t.distrust = make(map[ObjectName]struct{}, len(names))
	}
	maps.Copy(t.distrust, names)
}

func (t *Txn) distrusts(typ ObjectType, sum Checksum) bool {
	_, ok := t.distrust[ObjectName{typ, sum}]
	return ok
}

// StoreFile stores a regular file from memory, where its content is in one or more pieces. The content is hashed first,
// and nothing is written if the object exists. A new inode gets mtime; an existing one keeps its own, see
// docs/adr/0002-object-mtime.md. An inode whose size, owner or mode cannot be the object's, as after a power failure, is
// replaced.
func (t *Txn) StoreFile(m *FileMeta, mtime unix.Timespec, content ...[]byte) (Stored, error) {
	if err := validateRegular(m, mtime); err != nil {
		return Stored{}, fmt.Errorf("store file: %w", err)
	}
	h := getHasher()
	defer h.put()
	h.startUnchecked(m)
	for _, b := range content {
		h.hash.Write(b)
	}
	sum := h.finish()
	stored, err := t.storeFile(m, mtime, sum, content)
	return stored, storeError(TypeFile, sum, err)
}

// StoreFileAs is StoreFile with a checksum that the caller computed with [NewContentHash]. Nothing verifies it: a wrong one
// damages the repository.
func (t *Txn) StoreFileAs(m *FileMeta, mtime unix.Timespec, sum Checksum, content ...[]byte) (Stored, error) {
	if err := validateRegular(m, mtime); err != nil {
		return Stored{}, fmt.Errorf("store file: %w", err)
	}
	stored, err := t.storeFile(m, mtime, sum, content)
	return stored, storeError(TypeFile, sum, err)
}

// validateRegular checks the attributes of a regular file. It rejects times that utimensat(2) would reject or take for a
// flag.
func validateRegular(m *FileMeta, mtime unix.Timespec) error {
	if m.IsSymlink() {
		return invalidf("mode %o: not a regular file", m.Mode)
	}
	if mtime.Nsec < 0 || mtime.Nsec >= 1e9 {
		return invalidf("time with %d nanoseconds", mtime.Nsec)
	}
	return m.Validate()
}

func storeError(typ ObjectType, sum Checksum, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("store %w", &ObjectError{Type: typ, Checksum: sum, Err: err})
}

func (t *Txn) storeFile(m *FileMeta, mtime unix.Timespec, sum Checksum, content [][]byte) (Stored, error) {
	size := int64(0)
	for _, b := range content {
		size += int64(len(b))
	}
	state, err := t.find(sum, m, size)
	if err != nil || state == present {
		return Stored{Checksum: sum}, err
	}
	if state == absent {
		if stored, ok, err := t.borrow(sum, m, size, mtime); err != nil || ok {
			return stored, err
		}
	}
	f, err := t.repo.tmp.TmpFile(m.Mode & 0o777)
	if err != nil {
		return Stored{}, err
	}
	for _, b := range content {
		if len(b) > 0 && err == nil {
			_, err = f.Write(b)
		}
	}
	if err == nil {
		err = t.setAttr(f, m, mtime)
	}
	added := false
	if err == nil {
		added, err = t.publish(f, sum, TypeFile, state == wrong)
	}
	return t.stored(sum, added, size), errors.Join(err, f.Close())
}

func (t *Txn) stored(sum Checksum, added bool, size int64) Stored {
	if !added {
		return Stored{Checksum: sum}
	}
	return Stored{Checksum: sum, Added: true, Blocks: t.repo.Allocated(size)}
}

// presence is the state of an object's name in the repository.
type presence int

const (
	absent  presence = iota
	present          // an inode that can be the object
	wrong            // an inode that cannot be the object
)

// find looks for a content object. size is -1 for symbolic links.
func (t *Txn) find(sum Checksum, m *FileMeta, size int64) (presence, error) {
	st, ok, err := t.repo.look(&sum, TypeFile)
	switch {
	case err != nil || !ok:
		return absent, err
	case !m.fits(&st, size), t.distrusts(TypeFile, sum):
		return wrong, nil
	}
	return present, nil
}

// fits reports whether an inode can be a file with these metadata and the given size, or a symbolic link if size is -1.
func (m *FileMeta) fits(st *unix.Stat_t, size int64) bool {
	return st.Mode == m.Mode && st.Uid == m.UID && st.Gid == m.GID && (size < 0 || st.Size == size)
}

// setAttr sets a file's attributes. The order matters: writing and chown(2) clear set-id bits and capabilities, and
// everything else changes the time.
func (t *Txn) setAttr(f *atfs.File, m *FileMeta, mtime unix.Timespec) error {
	if m.UID != t.uid || m.GID != t.gid {
		if err := f.Chown(m.UID, m.GID); err != nil {
			return err
		}
	}
	if m.Mode&(t.umask|0o7000) != 0 {
		if err := f.Chmod(m.Mode); err != nil {
			return err
		}
	}
	for _, x := range m.Xattrs {
		if err := f.Setxattr(x.Name, x.Value); err != nil {
			return err
		}
	}
	return f.Utimes(mtime)
}

// publish gives a complete file its name among the objects. An existing name is success, unless its inode is to be
// replaced.
func (t *Txn) publish(f *atfs.File, sum Checksum, typ ObjectType, replace bool) (added bool, err error) {
	if typ == TypeFile {
		if err := t.repo.GiveVerity(f); err != nil {
			return false, err
		}
	}
	name := looseName(&sum, typ)
	return t.inSubdir(typ, sum, func(d *atfs.Dir) error {
		if !replace {
			return f.LinkTo(d, name)
		}
		switch mended, err := t.mend(f, d, name, sum, typ); {
		case err != nil:
			return err
		case mended:
			return fs.ErrExist // the name existed before
		}
		return linkTemporary(f, t.repo.tmp, objTmpPrefix, func(tmp string) error {
			return t.repo.tmp.Rename(tmp, d, name, 0)
		})
	})
}

// mend overwrites the inode of a distrusted content object with f, and reports whether it is the object now. An inode
// that cannot be written is left to be replaced, and so is one that is intact but has the wrong name: another object.
func (t *Txn) mend(f *atfs.File, d *atfs.Dir, name string, sum Checksum, typ ObjectType) (bool, error) {
	if typ != TypeFile || !t.distrusts(typ, sum) {
		return false, nil
	}
	st, err := d.Lstat(name)
	if err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return false, err
	}
	if is, err := t.identify(d, name); err == nil && is != sum {
		if other, err := t.repo.stat(&is, TypeFile); err == nil && other.Ino == st.Ino {
			return false, nil
		}
	}
	err = d.Overwrite(name, f)
	if err == nil {
		err = d.Utimes(name, st.Mtim) // checkouts chose to link to it because of this time
	}
	if err != nil {
		// EPERM: immutable, or with fs-verity. EIO: the disk rejects writes where the damage is.
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ETXTBSY) || errors.Is(err, unix.EIO) {
			err = nil
		}
		return false, err
	}
	is, err := t.identify(d, name)
	return is == sum, err
}

// inSubdir calls f, which gives an object its name in the given directory. It reports whether f did so, or found the
// name taken.
func (t *Txn) inSubdir(typ ObjectType, sum Checksum, f func(*atfs.Dir) error) (added bool, err error) {
	if t.onPublish != nil {
		t.onPublish(ObjectName{typ, sum})
	}
	first := sum[0]
	for attempt := 0; ; attempt++ {
		d, err := t.repo.subdir(first, true)
		if err != nil {
			return false, err
		}
		err = f(d)
		switch {
		case err == nil:
			return true, nil
		case errors.Is(err, fs.ErrExist):
			return false, nil
		case errors.Is(err, fs.ErrNotExist) && attempt == 0: // the empty directory was removed
			t.repo.forget(first, d)
		default:
			return false, err
		}
	}
}

// tmpPrefixes begin this package's names in tmp/, which are made under one of the repository's locks.
var tmpPrefixes = [...]string{objTmpPrefix, refTmpPrefix, linkTmpPrefix}

const (
	objTmpPrefix  = "obj-"
	refTmpPrefix  = "ref-"
	linkTmpPrefix = "link-"
)

// temporaryName returns a name for a file in tmp/.
func temporaryName(prefix string) string { return prefix + rand.Text() }

// isTemporaryName reports whether a name has the form of temporaryName's.
func isTemporaryName(name string) bool {
	for _, prefix := range tmpPrefixes {
		text, ok := strings.CutPrefix(name, prefix)
		if ok && len(text) == 26 && strings.Trim(text, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567") == "" {
			return true
		}
	}
	return false
}

// linkTemporary gives f a random name in tmp and calls move with it, which moves the file on. Afterwards the name is
// gone.
func linkTemporary(f *atfs.File, tmp *atfs.Dir, prefix string, move func(name string) error) error {
	name := temporaryName(prefix)
	if err := f.LinkTo(tmp, name); err != nil {
		return err
	}
	err := move(name)
	if err != nil {
		err = errors.Join(err, tmp.Unlink(name))
	}
	return err
}

// FileWriter stores a regular file piece by piece. It is not safe for concurrent use.
type FileWriter struct {
	txn   *Txn
	meta  *FileMeta
	mtime unix.Timespec
	file  *atfs.File
	h     *hasher // nil if the caller of CommitAs computes the checksum
	other *hasher // of the content with other metadata, or nil
	size  int64
	done  bool
	err   error // first error of Write
}

var errWriterDone = errors.New("file writer was committed or aborted already")

// NewFile starts storing a regular file of any size: write the content, then call Commit or Abort. m must not change
// until then. The content goes to an unnamed file, which is dropped if the object exists.
func (t *Txn) NewFile(m *FileMeta, mtime unix.Timespec) (*FileWriter, error) {
	w, err := t.NewFileAs(m, mtime)
	if err != nil {
		return nil, err
	}
	w.h = getHasher()
	w.h.startUnchecked(m)
	return w, nil
}

// NewFileAs is NewFile for a caller that computes the checksum with [NewContentHash], and passes it to CommitAs. Nothing
// verifies it: a wrong one damages the repository.
func (t *Txn) NewFileAs(m *FileMeta, mtime unix.Timespec) (*FileWriter, error) {
	err := validateRegular(m, mtime)
	var f *atfs.File
	if err == nil {
		f, err = t.repo.tmp.TmpFile(m.Mode & 0o777)
	}
	if err != nil {
		return nil, fmt.Errorf("store file: %w", err)
	}
	return &FileWriter{txn: t, meta: m, mtime: mtime, file: f}, nil
}

// Room returns an error that unwraps to ENOSPC if a file of size bytes does not fit, so that a caller that trusts a
// stated size does not fill the disk to find out.
func (t *Txn) Room(size int64) error {
	if err := t.repo.tmp.Room(size); err != nil {
		return fmt.Errorf("store file: %w", err)
	}
	return nil
}

// Write appends to the content. After an error the file can only be aborted.
func (w *FileWriter) Write(b []byte) (int, error) {
	if w.done {
		return 0, errWriterDone
	}
	if w.err != nil {
		return 0, w.err
	}
	w.hash(b)
	n, err := w.file.Write(b)
	w.size += int64(n)
	w.err = err
	return n, err
}

// hash adds content to the checksums.
func (w *FileWriter) hash(b []byte) {
	switch {
	case w.h == nil:
	case w.other != nil:
		sha256x2.WriteBoth(w.other.hash, w.h.hash, b)
	default:
		w.h.hash.Write(b)
	}
}

// Commit turns the written content into an object, with the guarantees of [Txn.StoreFile], and releases the writer.
func (w *FileWriter) Commit() (Stored, error) {
	if w.done {
		return Stored{}, errWriterDone
	}
	return w.CommitAs(w.h.finish())
}

// CommitAs is Commit for a writer of [Txn.NewFileAs], which has the checksum of the written content from its caller.
func (w *FileWriter) CommitAs(sum Checksum) (Stored, error) {
	if w.done {
		return Stored{}, errWriterDone
	}
	if w.err != nil {
		return Stored{}, errors.Join(w.err, w.Abort())
	}
	stored, err := w.commit(sum)
	return stored, storeError(TypeFile, sum, errors.Join(err, w.Abort()))
}

func (w *FileWriter) commit(sum Checksum) (Stored, error) {
	state, err := w.txn.find(sum, w.meta, w.size)
	if err != nil || state == present {
		return Stored{Checksum: sum}, err
	}
	if state == absent {
		if stored, ok, err := w.txn.borrow(sum, w.meta, w.size, w.mtime); err != nil || ok {
			return stored, err
		}
	}
	if err := w.txn.setAttr(w.file, w.meta, w.mtime); err != nil {
		return Stored{}, err
	}
	added, err := w.txn.publish(w.file, sum, TypeFile, state == wrong)
	return w.txn.stored(sum, added, w.size), err
}

// Abort drops the written content. After Commit or Abort it does nothing.
func (w *FileWriter) Abort() error {
	if w.done {
		return nil
	}
	w.done = true
	if w.h != nil {
		w.h.put()
		w.h = nil
	}
	return w.file.Close()
}

// StoreSymlink stores a symbolic link.
func (t *Txn) StoreSymlink(m *FileMeta) (Stored, error) {
	if !m.IsSymlink() {
		return Stored{}, invalidf("store symbolic link: mode %o", m.Mode)
	}
	h := getHasher()
	defer h.put()
	if err := h.start(m); err != nil {
		return Stored{}, fmt.Errorf("store symbolic link: %w", err)
	}
	sum := h.finish()
	stored, err := t.storeSymlink(m, sum)
	return stored, storeError(TypeFile, sum, err)
}

func (t *Txn) storeSymlink(m *FileMeta, sum Checksum) (Stored, error) {
	state, err := t.find(sum, m, -1)
	if err != nil || state == present {
		return Stored{Checksum: sum}, err
	}
	name := looseName(&sum, TypeFile)
	if state == absent && m.UID == t.uid && m.GID == t.gid && len(m.Xattrs) == 0 {
		// symlink(2) makes a complete object in one step.
		added, err := t.inSubdir(TypeFile, sum, func(d *atfs.Dir) error { return d.Symlink(m.Target, name) })
		return Stored{Checksum: sum, Added: added}, err
	}
	tmp := temporaryName(linkTmpPrefix)
	if err := t.repo.tmp.Symlink(m.Target, tmp); err != nil {
		return Stored{}, err
	}
	err = t.setLinkAttr(tmp, m)
	added := false
	if err == nil {
		flags := uint(unix.RENAME_NOREPLACE)
		if state == wrong {
			flags = 0
		}
		added, err = t.inSubdir(TypeFile, sum, func(d *atfs.Dir) error { return t.repo.tmp.Rename(tmp, d, name, flags) })
	}
	if !added {
		err = errors.Join(err, t.repo.tmp.Unlink(tmp))
	}
	return Stored{Checksum: sum, Added: added}, err
}

func (t *Txn) setLinkAttr(name string, m *FileMeta) error {
	if err := t.repo.tmp.Chown(name, m.UID, m.GID); err != nil {
		return err
	}
	for _, x := range m.Xattrs {
		if err := t.repo.tmp.Setxattr(name, x.Name, x.Value); err != nil {
			return err
		}
	}
	return nil
}

// CopyFile makes an object of a copy of an open regular file, whose content is read from its start: a reflink where the
// file system can, unless the file is small, else the bytes. The copy is hashed, not the file: a process that has the file
// open may go on writing to it, and neither the object nor its name is affected. It returns the size of the content, with
// the guarantees of [Txn.StoreFile].
func (t *Txn) CopyFile(m *FileMeta, mtime unix.Timespec, from *atfs.File) (_ Stored, size int64, err error) {
	buf := getCopyBuffer()
	defer copyBuffers.Put(buf)
	switch n, err := from.ReadAt(buf[:], 0); {
	case errors.Is(err, io.EOF): // small: hashed in memory, and not written if the repository has it
		stored, err := t.StoreFile(m, mtime, buf[:n])
		return stored, int64(n), err
	case err != nil:
		return Stored{}, 0, fmt.Errorf("copy file: %w", err)
	}
	w, err := t.NewFile(m, mtime)
	if err != nil {
		return Stored{}, 0, err
	}
	defer func() { err = errors.Join(err, w.Abort()) }()
	if err := w.copyFrom(from, buf[:]); err != nil {
		return Stored{}, 0, fmt.Errorf("copy file: %w", err)
	}
	size = w.size
	stored, err := w.Commit()
	return stored, size, err
}

// copyFrom writes the content of an open file, of which nothing else is written. buf holds its beginning.
func (w *FileWriter) copyFrom(from *atfs.File, buf []byte) error {
	cloned, err := w.file.TryCloneFrom(from)
	if err != nil {
		return err
	}
	src, write, off := from, w.Write, int64(len(buf))
	if cloned {
		src, write, off = w.file, cloneWriter{w}.Write, 0
	} else if _, err := write(buf); err != nil {
		return err
	}
	for {
		n, rerr := src.ReadAt(buf, off)
		if n > 0 {
			if _, err := write(buf[:n]); err != nil {
				return err
			}
			off += int64(n)
		}
		if errors.Is(rerr, io.EOF) {
			return nil
		}
		if rerr != nil {
			return rerr
		}
	}
}

// identify computes the checksum of an inode.
func (t *Txn) identify(from *atfs.Dir, name string) (Checksum, error) {
	got, _, err := statFile(from, name)
	if err != nil {
		return Checksum{}, err
	}
	if err := got.Validate(); err != nil {
		return Checksum{}, fmt.Errorf("%s: %w", name, err)
	}
	return hashFile(from, name, got)
}

// hashFile computes the checksum of the content object with metadata m and the content of the file name.
func hashFile(d *atfs.Dir, name string, m *FileMeta) (Checksum, error) {
	h := getHasher()
	defer h.put()
	h.startUnchecked(m)
	if m.IsSymlink() {
		return h.finish(), nil
	}
	f, err := d.Open(name)
	if err != nil {
		return Checksum{}, err
	}
	defer f.Close()
	buf := getCopyBuffer()
	defer copyBuffers.Put(buf)
	if err := copyAll(h.hash, f, buf[:]); err != nil {
		return Checksum{}, err
	}
	return h.finish(), nil
}

// copyAll copies src to dst through buf.
func copyAll(dst io.Writer, src io.Reader, buf []byte) error {
	for {
		n, err := src.Read(buf)
		if n > 0 {
			if _, err := dst.Write(buf[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// StoreMetadata stores the bytes of a dirtree, dirmeta or commit; invalid bytes are ErrInvalid. A commit's root
// directory must exist in the repository already.
func (t *Txn) StoreMetadata(typ ObjectType, data []byte) (Stored, error) {
	if !typ.hashed() {
		return Stored{}, invalidf("store metadata object: type %s", typ)
	}
	sum := Checksum(sha256.Sum256(data))
	stored, err := t.storeMetadata(typ, data, sum)
	return stored, storeError(typ, sum, err)
}

func (t *Txn) storeMetadata(typ ObjectType, data []byte, sum Checksum) (Stored, error) {
	if len(data) > MaxMetadataSize {
		return Stored{}, invalidf("%d bytes, at most %d are allowed", len(data), MaxMetadataSize)
	}
	replace := false
	switch st, err := t.repo.stat(&sum, typ); {
	case err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size == int64(len(data)) && !t.distrusts(typ, sum):
		return Stored{Checksum: sum}, nil
	case err == nil:
		replace = true
	case !errors.Is(err, fs.ErrNotExist):
		return Stored{}, err
	}
	if err := t.checkMetadata(typ, data); err != nil {
		return Stored{}, err
	}
	f, err := t.repo.tmp.TmpFile(fileMode)
	if err != nil {
		return Stored{}, err
	}
	_, err = f.Write(data)
	if err == nil && t.umask&fileMode != 0 {
		err = f.Chmod(fileMode)
	}
	added := false
	if err == nil {
		added, err = t.publish(f, sum, typ, replace)
	}
	return t.stored(sum, added, int64(len(data))), errors.Join(err, f.Close())
}

// checkMetadata rejects data that a reader would reject.
func (t *Txn) checkMetadata(typ ObjectType, data []byte) error {
	var err error
	switch typ {
	case TypeDirTree:
		_, err = ParseDirTree(data)
	case TypeDirMeta:
		_, err = ParseDirMeta(data)
	default:
		var c *Commit
		if c, err = ParseCommit(data); err == nil {
			return errors.Join(t.need(TypeDirTree, c.Tree), t.need(TypeDirMeta, c.Meta))
		}
	}
	if err != nil {
		return invalidf("%v", err)
	}
	return nil
}

func (t *Txn) need(typ ObjectType, sum Checksum) error {
	switch have, err := t.repo.Has(typ, sum); {
	case err != nil:
		return err
	case !have:
		return &ObjectError{Type: typ, Checksum: sum, Err: ErrNotExist}
	}
	return nil
}

// SetRef stages a ref of refs/heads, which Commit writes. The last SetRef or DeleteRef of a name counts.
func (t *Txn) SetRef(name string, sum Checksum) { t.stage(refChange{name: name, sum: sum}) }

// DeleteRef stages the deletion of a ref. An absent ref is skipped.
func (t *Txn) DeleteRef(name string) { t.stage(refChange{name: name, del: true}) }

func (t *Txn) stage(c refChange) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.refs = append(slices.DeleteFunc(t.refs, func(o refChange) bool { return o.name == c.name }), c)
}

// CommitOptions are options of [Txn.Commit].
type CommitOptions struct {
	// Sync makes everything durable: objects before the refs that name them, and refs before Commit returns. Without it
	// nothing is durable, and after a power failure a ref may name objects without content, which the caller must be
	// able to find and repair.
	Sync bool
}

var errTxnDone = errors.New("transaction was committed or aborted already")

// Commit writes the staged refs, in staging order and each atomically, and releases the lock in any case. A ref to a
// commit that the repository lacks is an error before any ref is written. If writing fails, some refs may have been
// written; repeating it all in a new transaction is safe.
func (t *Txn) Commit(ctx context.Context, opts CommitOptions) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.done {
		return fmt.Errorf("commit transaction: %w", errTxnDone)
	}
	t.done = true
	if err := errors.Join(t.commit(ctx, opts), t.lock.Unlock()); err != nil {
		return fmt.Errorf("commit transaction: %w", err)
	}
	return nil
}

func (t *Txn) commit(ctx context.Context, opts CommitOptions) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	for _, c := range t.refs {
		if err := ValidateRef(c.name); err != nil {
			return err
		}
		if c.del {
			continue
		}
		if err := t.need(TypeCommit, c.sum); err != nil {
			return &RefError{Ref: c.name, Err: err}
		}
	}
	if opts.Sync {
		// Objects must be durable before the refs that name them.
		if err := t.repo.objects.SyncFS(); err != nil {
			return err
		}
	}
	w := refWriter{repo: t.repo, sync: opts.Sync, changes: t.refs}
	return w.write()
}

// Abort ends the transaction without touching refs, and releases the lock. After Commit or Abort it does nothing, so it
// can be deferred.
func (t *Txn) Abort() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.done {
		return nil
	}
	t.done = true
	if err := t.lock.Unlock(); err != nil {
		return fmt.Errorf("abort transaction: %w", err)
	}
	return nil
}
