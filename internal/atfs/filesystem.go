package atfs

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// Inode flags of linux/fs.h.
const (
	immutableFlag = 0x10 // FS_IMMUTABLE_FL
	appendFlag    = 0x20 // FS_APPEND_FL
)

// SetImmutable sets or clears the immutable flag of the directory itself. The flag prevents adding, changing and
// removing names in it. On a file system without such flags it does nothing and succeeds.
func (d *Dir) SetImmutable(on bool) error {
	if err := d.before(OpSetFlags, "."); err != nil {
		return err
	}
	var set uint32
	if on {
		set = immutableFlag
	}
	if err := changeFlags(d.fd, immutableFlag, set); err != nil {
		return d.err("set flags", ".", err)
	}
	return nil
}

// changeFlags clears some inode flags of an open file or directory, then sets others. On a file system without inode
// flags it does nothing and succeeds.
func changeFlags(fd int, clearFlags, setFlags uint32) error {
	flags, err := retry(func() (uint32, error) { return unix.IoctlGetUint32(fd, unix.FS_IOC_GETFLAGS) })
	if err == nil {
		now := flags&^clearFlags | setFlags
		if now == flags {
			return nil
		}
		err = retry0(func() error { return unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, int(now)) })
	}
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTTY) {
		return nil
	}
	return err
}

// A Space is the free space of a file system.
type Space struct {
	Free      uint64 // bytes, for root
	BlockSize uint64 // allocation unit of files
}

// Space returns the free space of the directory's file system. known is false if the file system does not report its
// size.
func (d *Dir) Space() (s Space, known bool, err error) {
	st, err := d.statfs()
	if err != nil {
		return Space{}, false, err
	}
	bsize := uint64(max(st.Bsize, 1))
	return Space{Free: st.Bfree * bsize, BlockSize: bsize}, st.Blocks > 0, nil
}

// Fuller reports whether users of the file system have used more than a percentage of its blocks or of its inodes. What a
// file system does not report is not used.
func (d *Dir) Fuller(percent int) (bool, error) {
	st, err := d.statfs()
	over := func(all, free uint64) bool { return all > 0 && (all-min(free, all))*100 > all*uint64(percent) }
	return over(st.Blocks, st.Bavail) || over(st.Files, st.Ffree), err
}

// ReadOnly reports whether the directory is on a read-only mount or file system.
func (d *Dir) ReadOnly() (bool, error) {
	st, err := d.statfs()
	return st.Flags&unix.ST_RDONLY != 0, err
}

func (d *Dir) statfs() (unix.Statfs_t, error) {
	var st unix.Statfs_t
	if err := retry0(func() error { return unix.Fstatfs(d.fd, &st) }); err != nil {
		return st, d.err("statfs", ".", err)
	}
	return st, nil
}

// Room returns an error that unwraps to ENOSPC if the directory's file system has less than size bytes free. A file
// system that does not report its size has room.
func (d *Dir) Room(size int64) error {
	space, known, err := d.Space()
	if err == nil && known && size > 0 && uint64(size) > space.Free {
		err = d.err("write", ".", fmt.Errorf("file of %d bytes: %w", size, unix.ENOSPC))
	}
	return err
}

// ReusesInodesLate reports whether the directory is on ext4 without a journal. Linux gives the inodes of files that were
// removed there in the last minute, or six while that is not on the disk, to no new file (recently_deleted in
// fs/ext4/ialloc.c), but looks at each of them for every file that is made.
func (d *Dir) ReusesInodesLate() (bool, error) {
	fsys, err := d.statfs()
	if err != nil || fsys.Type != unix.EXT4_SUPER_MAGIC {
		return false, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(d.fd, &st); err != nil {
		return false, d.err("stat", ".", err)
	}
	device, err := os.Readlink(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev)))
	if err != nil {
		return false, nil //nolint:nilerr // no sysfs, or not ext4 but ext2, which has the same number
	}
	// A file system has this file while it is mounted, with the process ID of the journal's thread.
	task, err := os.ReadFile(path.Join("/sys/fs/ext4", path.Base(device), "journal_task"))
	return err == nil && strings.TrimSpace(string(task)) == "<none>", nil
}
