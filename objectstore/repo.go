package objectstore

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
)

// The layout of a repository.
const (
	configName  = "config"
	tmpName     = "tmp"
	refsName    = "refs"
	headsName   = "refs/heads"
	remotesName = "refs/remotes"
	mirrorsName = "refs/mirrors"
	stateName   = "state"
	objectsName = "objects"
	lockName    = ".lock"

	dirMode  = 0o755 // of directories made here, under any umask
	fileMode = 0o644 // of metadata objects, refs and the config
)

// MaxMetadataSize is the maximum size of a metadata object to read or write: libostree's since 2023.
const MaxMetadataSize = 128 << 20

// Repo is an open ostree repository of mode bare. All its methods but Close are safe for concurrent use.
type Repo struct {
	dir, objects, tmp *atfs.Dir

	config    *config
	blockSize int64
	chownAll  bool // new files in tmp do not get the process's owner and group by themselves
	refCache  refCache
	rehearsal *rehearsal   // nil unless it is one
	waiting   atomic.Int32 // goroutines of this process that wait for a lock

	subdirs [256]atomic.Pointer[atfs.Dir] // objects/00 to objects/ff, opened on first use
	mu      sync.Mutex                    // protects changes of subdirs, and retired
	retired []*atfs.Dir                   // handles of removed directories; others may still use them
}

// Create makes a repository in an empty directory, and opens it. The directory's own mode decides who can read it. An
// interrupted Create can be repeated; a directory that contains a repository is fs.ErrExist.
func Create(dir *atfs.Dir, mode Mode) (*Repo, error) {
	if mode != ModeBare {
		return nil, &UnsupportedModeError{Path: dir.Path(), Mode: string(mode)}
	}
	if err := create(dir, mode); err != nil {
		return nil, fmt.Errorf("create ostree repository: %w", err)
	}
	return Open(dir)
}

func create(dir *atfs.Dir, mode Mode) error {
	names, err := dir.ReadNames()
	if err != nil {
		return err
	}
	for _, n := range names {
		switch {
		case n == objectsName:
			return &fs.PathError{Op: "create", Path: dir.Path(), Err: fs.ErrExist}
		case !slices.Contains([]string{configName, tmpName, refsName, stateName, "extensions"}, n) &&
			!strings.HasPrefix(n, configName+".tmp-"):
			return &fs.PathError{Op: "create", Path: dir.Path(), Err: unix.ENOTEMPTY}
		}
	}
	text := fmt.Sprintf("[core]\nrepo_version=1\nmode=%s\n", mode)
	if err := dir.WriteFile(configName, []byte(text), fileMode, true); err != nil {
		return err
	}
	// In the order of ostree init. objects comes last because it makes the directory a repository.
	for _, n := range []string{tmpName, tmpName + "/cache", "extensions", stateName, headsName, mirrorsName, remotesName, objectsName} {
		if err := dir.MkdirAll(n, dirMode); err != nil {
			return err
		}
	}
	return dir.Sync()
}

// Open opens a repository. It opens its own handle, so dir may be closed. A directory that is not a repository is
// ErrNoRepo, a mode other than bare an *UnsupportedModeError, and a setting under which this package would do the wrong
// thing an *UnsupportedConfigError.
func Open(dir *atfs.Dir) (_ *Repo, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("open ostree repository: %w", err)
		}
	}()
	r := &Repo{}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Close())
		}
	}()
	if r.dir, err = dir.OpenDir("."); err != nil {
		return nil, err
	}
	if r.objects, err = r.dir.OpenDir(objectsName); err != nil {
		return nil, notRepo(dir, err)
	}
	text, err := r.dir.ReadFile(configName, maxConfigLen)
	if err != nil {
		return nil, notRepo(dir, err)
	}
	if r.config, err = parseConfig(string(text)); err != nil {
		return nil, fmt.Errorf("%s: %w", dir.Path(), err)
	}
	if err = r.config.supported(dir.Path()); err != nil {
		return nil, err
	}
	if err = r.openTmp(); err != nil {
		return nil, err
	}
	return r, r.makeRefDirs()
}

// makeRefDirs makes missing directories of refs: they were removed, and with them the refs that kept the commits. On a
// read-only file system none is needed.
func (r *Repo) makeRefDirs() error {
	for _, top := range refTops {
		ok, err := r.dir.Exists(top.dir)
		if err == nil && !ok {
			err = r.dir.MkdirAll(top.dir, dirMode)
		}
		if err != nil && !errors.Is(err, unix.EROFS) {
			return err
		}
	}
	return nil
}

func notRepo(dir *atfs.Dir, err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return fmt.Errorf("%s: %w", dir.Path(), ErrNoRepo)
	}
	return err
}

func (r *Repo) openTmp() error {
	var err error
	r.tmp, err = r.dir.OpenDir(tmpName)
	if errors.Is(err, fs.ErrNotExist) { // tmpfiles cleaners have been seen to remove it
		if err = r.dir.MkdirAll(tmpName, dirMode); err == nil {
			r.tmp, err = r.dir.OpenDir(tmpName)
		}
	}
	if err != nil {
		return err
	}
	st, err := r.tmp.Lstat(".")
	if err != nil {
		return err
	}
	r.blockSize = max(int64(st.Blksize), 512) //nolint:unconvert // it has 32 bits on arm64
	r.chownAll = st.Mode&unix.S_ISGID != 0
	return nil
}

// Close releases the descriptors. Transactions and locks must have ended.
func (r *Repo) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	dirs := append(r.retired, r.dir, r.objects, r.tmp)
	r.retired = nil
	for i := range r.subdirs {
		dirs = append(dirs, r.subdirs[i].Swap(nil))
	}
	var errs []error
	for _, d := range dirs {
		if d != nil {
			errs = append(errs, d.Close())
		}
	}
	return errors.Join(errs...)
}

// Dir returns the repository's directory, which r still owns.
func (r *Repo) Dir() *atfs.Dir { return r.dir }

// ObjectsDir returns the directory objects, which r still owns.
func (r *Repo) ObjectsDir() *atfs.Dir { return r.objects }

// Mode returns the mode of the repository.
func (r *Repo) Mode() Mode { return Mode(r.config.mode) }

// Allocated returns the disk space of a file of the given size in the repository: whole blocks.
func (r *Repo) Allocated(size int64) int64 {
	return (size + r.blockSize - 1) / r.blockSize * r.blockSize
}

const hexDigits = "0123456789abcdef"

func subdirName(first byte) string { return string([]byte{hexDigits[first>>4], hexDigits[first&15]}) }

// subdir returns the directory of the objects whose checksums begin with the given byte; r still owns it. If it does
// not exist and create is false, the error is fs.ErrNotExist.
func (r *Repo) subdir(first byte, create bool) (*atfs.Dir, error) {
	if d := r.subdirs[first].Load(); d != nil {
		return d, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if d := r.subdirs[first].Load(); d != nil {
		return d, nil
	}
	name := subdirName(first)
	d, err := r.objects.OpenDir(name)
	if create && errors.Is(err, fs.ErrNotExist) {
		if err = r.objects.Mkdir(name, dirMode); err == nil || errors.Is(err, fs.ErrExist) {
			d, err = r.objects.OpenDir(name)
		}
	}
	if err != nil {
		return nil, err
	}
	r.subdirs[first].Store(d)
	return d, nil
}

// forget drops a handle from the cache, after an operation in it failed as if the directory had been removed. The
// handle stays open, because others may be using it.
func (r *Repo) forget(first byte, d *atfs.Dir) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.subdirs[first].CompareAndSwap(d, nil) {
		r.retired = append(r.retired, d)
	}
}

// stat returns the status of an object's inode, fs.ErrNotExist if the object is absent.
func (r *Repo) stat(sum *Checksum, t ObjectType) (unix.Stat_t, error) {
	d, err := r.subdir(sum[0], false)
	if err != nil {
		return unix.Stat_t{}, err
	}
	return d.Lstat(looseName(sum, t))
}

// look is stat for an object that is probably absent.
func (r *Repo) look(sum *Checksum, t ObjectType) (unix.Stat_t, bool, error) {
	d, err := r.subdir(sum[0], false)
	if errors.Is(err, fs.ErrNotExist) {
		return unix.Stat_t{}, false, nil
	}
	if err != nil {
		return unix.Stat_t{}, false, err
	}
	return d.Look(looseName(sum, t))
}

// Has reports whether an object exists. It does not check the content.
func (r *Repo) Has(t ObjectType, sum Checksum) (bool, error) {
	_, err := r.stat(&sum, t)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, objectError(t, sum, err)
}

// Stat returns the status of a content object's inode, ErrNotExist if the object is absent.
func (r *Repo) Stat(sum Checksum) (unix.Stat_t, error) {
	return r.StatObject(ObjectName{TypeFile, sum})
}

// StatObject returns the status of an object's inode, ErrNotExist if the object is absent.
func (r *Repo) StatObject(name ObjectName) (unix.Stat_t, error) {
	st, err := r.stat(&name.Checksum, name.Type)
	return st, objectError(name.Type, name.Checksum, err)
}

// ReadMetadata returns the bytes of a metadata object of at most MaxMetadataSize, and verifies them against the
// checksum. An absent object is ErrNotExist, a mismatch ErrCorrupt, both in an *ObjectError.
func (r *Repo) ReadMetadata(t ObjectType, sum Checksum) ([]byte, error) {
	b, err := r.readMetadata(t, sum)
	return b, objectError(t, sum, err)
}

func (r *Repo) readMetadata(t ObjectType, sum Checksum) ([]byte, error) {
	if !t.hashed() && t != TypeCommitMeta && t != TypeTombstone {
		return nil, invalidf("type %s is not metadata", t)
	}
	d, err := r.subdir(sum[0], false)
	if err != nil {
		return nil, err
	}
	f, err := d.Open(looseName(&sum, t))
	if err != nil {
		if errors.Is(err, unix.ELOOP) {
			return nil, corruptf("a symbolic link")
		}
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return nil, corruptf("not a regular file")
	case st.Size > MaxMetadataSize:
		return nil, corruptf("%d bytes, at most %d are allowed", st.Size, MaxMetadataSize)
	}
	b := make([]byte, st.Size)
	if n, err := f.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	} else if n < len(b) {
		return nil, corruptf("shrank while being read")
	}
	if t.hashed() && sha256.Sum256(b) != sum {
		return nil, corruptf("its content has another checksum")
	}
	return b, nil
}

// Commit reads a commit object.
func (r *Repo) Commit(sum Checksum) (*Commit, error) { return read(r, TypeCommit, sum, ParseCommit) }

// DirTree reads a dirtree object.
func (r *Repo) DirTree(sum Checksum) (*DirTree, error) {
	return read(r, TypeDirTree, sum, ParseDirTree)
}

// DirMeta reads a dirmeta object.
func (r *Repo) DirMeta(sum Checksum) (*DirMeta, error) {
	return read(r, TypeDirMeta, sum, ParseDirMeta)
}

func read[T any](r *Repo, t ObjectType, sum Checksum, parse func([]byte) (*T, error)) (*T, error) {
	b, err := r.ReadMetadata(t, sum)
	if err != nil {
		return nil, err
	}
	v, err := parse(b)
	return v, objectError(t, sum, err)
}

// OpenFile opens a content object that is a regular file for reading. It does not verify the content. A symbolic link
// is unix.ELOOP.
func (r *Repo) OpenFile(sum Checksum) (*atfs.File, error) {
	d, err := r.subdir(sum[0], false)
	if err != nil {
		return nil, objectError(TypeFile, sum, err)
	}
	f, err := d.Open(looseName(&sum, TypeFile))
	return f, objectError(TypeFile, sum, err)
}

// FileMeta returns the metadata of a content object's inode, without verification.
func (r *Repo) FileMeta(sum Checksum) (*FileMeta, error) {
	m, err := r.fileMeta(sum)
	return m, objectError(TypeFile, sum, err)
}

func (r *Repo) fileMeta(sum Checksum) (*FileMeta, error) {
	if m := r.rehearsal.meta(sum); m != nil {
		return m, nil
	}
	d, err := r.subdir(sum[0], false)
	if err != nil {
		return nil, err
	}
	m, _, err := statFile(d, looseName(&sum, TypeFile))
	return m, err
}

// statFile reads owner, mode, target and xattrs of a name that is a regular file or a symbolic link.
func statFile(d *atfs.Dir, name string) (*FileMeta, unix.Stat_t, error) {
	st, err := d.Lstat(name)
	if err != nil {
		return nil, st, err
	}
	m := metaOf(&st)
	switch m.Mode & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFLNK:
		if m.Target, err = d.Readlink(name); err != nil {
			return nil, st, err
		}
	default:
		return nil, st, invalidf("%s: mode %o: neither a regular file nor a symbolic link", name, m.Mode)
	}
	x, err := d.Xattrs(name)
	if err != nil {
		return nil, st, err
	}
	m.Xattrs = sortXattrs(x)
	return m, st, nil
}

func metaOf(st *unix.Stat_t) *FileMeta { return &FileMeta{UID: st.Uid, GID: st.Gid, Mode: st.Mode} }

// processUmask returns the umask, or all bits if it cannot be read without changing it.
func processUmask() uint32 {
	const unknown = 0o777
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return unknown
	}
	for line := range bytes.Lines(b) {
		var mask uint32
		if n, err := fmt.Sscanf(string(line), "Umask: %o", &mask); err == nil && n == 1 {
			return mask
		}
	}
	return unknown
}
