package objectstore

import "github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"

// LinkFile gives a content object the further name name below to: what is changed through that name is changed in the
// store. ErrNotExist if there is no such object; unix.EMLINK if its inode can take no more names, and unix.EXDEV if to
// is on another file system.
func (r *Repo) LinkFile(sum Checksum, to *atfs.Dir, name string) error {
	d, err := r.subdir(sum[0], false)
	if err != nil {
		return objectError(TypeFile, sum, err)
	}
	if err := d.Link(looseName(&sum, TypeFile), to, name); err != nil {
		return objectError(TypeFile, sum, err)
	}
	return nil
}
