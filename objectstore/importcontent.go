package objectstore

import (
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
)

// ImportContent stores the content of a regular file of another repository, or of this one, as a file with other
// metadata, with the guarantees of [Txn.StoreFile]. The object sum has the metadata is and the given size, and is
// untouched; the new one has the metadata want. That is a new inode with the mtime of the other, which shares its blocks
// (reflink) if the file system can do that, else has a copy of the content.
//
// The content is read once, because its new checksum depends on all of it, and is compared with sum on the way: an
// object with another size or content than it should have is an ErrCorrupt, and an absent one ErrNotExist. The other
// repository need not be locked. Stored.Blocks is 0 unless content was copied.
func (t *Txn) ImportContent(from *Repo, sum Checksum, is, want *FileMeta, size int64) (Stored, error) {
	stored, err := t.importContent(from, sum, is, want, size)
	if err != nil {
		return Stored{}, fmt.Errorf("import content from %s: %w", from.dir.Path(), objectError(TypeFile, sum, err))
	}
	return stored, nil
}

func (t *Txn) importContent(from *Repo, sum Checksum, is, want *FileMeta, size int64) (_ Stored, err error) {
	if t.repo.rehearsal != nil {
		if stored, err := t.rehearseContent(from, sum, is, want, size); !cannotLink(err) {
			return stored, err
		}
	}
	in, mtime, err := from.openContent(sum, size)
	if err != nil {
		return Stored{}, err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	w, err := t.NewFile(want, mtime)
	if err != nil {
		return Stored{}, err
	}
	defer func() { err = errors.Join(err, w.Abort()) }()
	cloned, err := w.file.TryCloneFrom(in)
	if err != nil {
		return Stored{}, err
	}
	if err := w.fill(in, cloned, is, sum); err != nil {
		return Stored{}, err
	}
	stored, err := w.Commit()
	if cloned {
		stored.Blocks = 0
	}
	return stored, err
}

// openContent opens a content object that is a regular file of the given size. It returns its mtime.
func (r *Repo) openContent(sum Checksum, size int64) (*atfs.File, unix.Timespec, error) {
	st, err := r.stat(&sum, TypeFile)
	if err == nil && (st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size != size) {
		err = corruptf("mode %o, size %d, should be a regular file of size %d", st.Mode, st.Size, size)
	}
	if err != nil {
		return nil, st.Mtim, err
	}
	d, err := r.subdir(sum[0], false)
	if err != nil {
		return nil, st.Mtim, err
	}
	f, err := d.Open(looseName(&sum, TypeFile))
	return f, st.Mtim, err
}

// fill hashes the content of the object sum, which has metadata m, and copies it unless it is a clone already.
func (w *FileWriter) fill(in *atfs.File, cloned bool, m *FileMeta, sum Checksum) error {
	h := getHasher()
	h.startUnchecked(m)
	w.other = h
	defer func() { w.other = nil; h.put() }()
	out := io.Writer(w)
	if cloned {
		out = cloneWriter{w}
		// Of the two, only the old inode may be in the page cache; but others could change it after the clone was made.
		if !m.Exclusive() {
			in = w.file
		}
	}
	buf := getCopyBuffer()
	defer copyBuffers.Put(buf)
	if err := copyAll(out, in, buf[:]); err != nil {
		return err
	}
	return verifySum(h.finish(), sum)
}

// A cloneWriter takes content that the file has already, by a clone.
type cloneWriter struct{ w *FileWriter }

func (c cloneWriter) Write(b []byte) (int, error) {
	c.w.size += int64(len(b))
	c.w.hash(b)
	return len(b), nil
}
