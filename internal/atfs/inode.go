package atfs

import (
	"errors"
	"io/fs"

	"golang.org/x/sys/unix"
)

// Inode identifies a file on this machine, whatever its names.
type Inode struct{ Dev, Ino uint64 }

// InodeOf returns the inode that st describes.
func InodeOf(st *unix.Stat_t) Inode { return Inode{st.Dev, st.Ino} }

// Allocated returns the bytes that the inode st describes takes on the disk.
func Allocated(st *unix.Stat_t) int64 {
	const unit = 512 // of st_blocks, whatever the block size of the file system
	return st.Blocks * unit
}

// IgnoreNotExist returns err, or nil if it is fs.ErrNotExist.
func IgnoreNotExist(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// CloseAll closes all directories, and joins the errors.
func CloseAll(dirs []*Dir) error {
	var errs []error
	for _, d := range dirs {
		errs = append(errs, d.Close())
	}
	return errors.Join(errs...)
}
