package objectstore

import "github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"

// LinkFile gives a content object another name below to: changes through that name are changes of the store. The error
// is ErrNotExist if the object is absent, unix.EMLINK if its inode can take no more names, and unix.EXDEV if to is on
// another file system.
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
