package install

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
)

// Errors of a disk that cannot be used.
var (
	ErrInUse    = errors.New("in use")
	ErrNotEmpty = errors.New("not empty")
	ErrNoSize   = errors.New("does not exist, and no size is given")
	ErrChanged  = errors.New("another file or device than when the installation was planned")
)

// A disk is a block device, or a file that is or becomes the image of one, as it was when it was opened.
type disk struct {
	path   string
	exists bool
	block  bool
	size   int64
	sector int64 // logical
	id     identity
}

// An identity tells a disk from all others that its path may lead to, also from those that later get the inode number
// or the device number of one that is gone.
type identity struct {
	inode   atfs.Inode // of a file
	birth   unix.StatxTimestamp
	dev     uint64 // of a block device itself
	diskseq string
}

// openDisk opens the file or block device that a path leads to, a block device for writing only if nothing else has it
// or a part of it. It changes nothing. Without anything at the path, f is nil.
func openDisk(path string, access int) (d *disk, f *os.File, err error) {
	d = &disk{path: path, sector: 512}
	// First without access: opening some devices has effects.
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return d, nil, nil
	}
	if err != nil {
		return nil, nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer func() { err = joined(err, unix.Close(fd)) }()
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &st); err != nil {
		return nil, nil, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	d.exists = true
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		d.id.inode, d.id.birth = atfs.Inode{Dev: unix.Mkdev(st.Dev_major, st.Dev_minor), Ino: st.Ino}, st.Btime
	case unix.S_IFBLK:
		d.block, d.id.dev = true, unix.Mkdev(st.Rdev_major, st.Rdev_minor)
		if _, err := os.Stat(d.sysfs("partition")); err == nil {
			return nil, nil, fmt.Errorf("%s is a partition: name the whole disk", path)
		}
		if access == unix.O_RDWR {
			access |= unix.O_EXCL
		}
	default:
		return nil, nil, fmt.Errorf("%s is neither a block device nor a regular file", path)
	}
	opened, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), access|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	f = os.NewFile(uintptr(opened), path)
	if err := d.measure(f); err != nil {
		return nil, nil, joined(err, f.Close())
	}
	return d, f, nil
}

// measure asks for the size of an open disk. A device number belongs to the same device as long as it is open.
func (d *disk) measure(f *os.File) (err error) {
	if d.size, err = f.Seek(0, io.SeekEnd); err != nil || !d.block {
		return err
	}
	sector, err := unix.IoctlGetInt(int(f.Fd()), unix.BLKSSZGET)
	if err != nil {
		return fmt.Errorf("ask %s for its sector size: %w", d.path, err)
	}
	d.sector = int64(sector)
	seq, err := os.ReadFile(d.sysfs("diskseq"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // Linux 5.15
		return err
	}
	d.id.diskseq = string(seq)
	return nil
}

// sysfs returns the path of a block device's attribute.
func (d *disk) sysfs(name string) string {
	return fmt.Sprintf("/sys/dev/block/%d:%d/%s", unix.Major(d.id.dev), unix.Minor(d.id.dev), name)
}

// contents lists the contents of a disk, one a line; none if it is empty. It looks for signatures of file systems and
// the like, for partitions, and for nonzero bytes at the beginning and end of the disk and of partitions.
func (d *disk) contents(ctx context.Context, t tools, f *os.File) (found []string, err error) {
	if d.size == 0 {
		return nil, nil
	}
	files := []*os.File{f}
	out, err := t.run(ctx, "", files, "wipefs", "--no-act", "--json", "--output", "OFFSET,TYPE,LABEL", "--", childPath(0))
	if err != nil {
		return nil, err
	}
	if found, err = parseSignatures(out); err != nil {
		return nil, err
	}
	if slices.ContainsFunc(found, isTable) {
		// sfdisk judges damaged tables. A damaged table is no reason to take the disk for empty.
		if out, err := t.run(ctx, "", files, "sfdisk", "--json", "--", childPath(0)); err == nil {
			parts, err := parseTable(out, d.path)
			if err != nil {
				return nil, err
			}
			found = append(found, parts...)
		}
	}
	if len(found) > 0 {
		return found, nil
	}
	return d.edges(f)
}

func isTable(signature string) bool {
	return slices.Contains([]string{"gpt", "dos"}, strings.TrimSuffix(signature, " signature"))
}

// parseSignatures reads the output of wipefs --json, which is empty without signatures.
func parseSignatures(out string) (found []string, err error) {
	if strings.TrimSpace(out) == "" {
		return nil, nil
	}
	var doc struct {
		Signatures []struct {
			Type  string  `json:"type"`
			Label *string `json:"label"`
		} `json:"signatures"`
	}
	if err := json.Unmarshal([]byte(out), &doc); err != nil {
		return nil, fmt.Errorf("read output of wipefs: %w", err)
	}
	for _, s := range doc.Signatures {
		line := s.Type + " signature"
		if s.Label != nil && *s.Label != "" {
			line += fmt.Sprintf(" with label %q", *s.Label)
		}
		if !slices.Contains(found, line) { // a GPT has two
			found = append(found, line)
		}
	}
	return found, nil
}

// parseTable reads the output of sfdisk --json, which has read the disk at a path through a descriptor.
func parseTable(out, disk string) (found []string, err error) {
	var doc struct {
		Table struct {
			Device     string `json:"device"`
			SectorSize int64  `json:"sectorsize"`
			Partitions []struct {
				Node string `json:"node"`
				Size int64  `json:"size"`
				Name string `json:"name"`
			} `json:"partitions"`
		} `json:"partitiontable"`
	}
	if err := json.Unmarshal([]byte(out), &doc); err != nil {
		return nil, fmt.Errorf("read output of sfdisk: %w", err)
	}
	sector := doc.Table.SectorSize
	if sector == 0 {
		sector = 512
	}
	for _, p := range doc.Table.Partitions {
		number := strings.TrimPrefix(strings.TrimPrefix(p.Node, doc.Table.Device), "p")
		line := fmt.Sprintf("partition %s of %s", partitionPath(disk, number), human(p.Size*sector))
		if p.Name != "" {
			line += fmt.Sprintf(" called %q", p.Name)
		}
		found = append(found, line)
	}
	return found, nil
}

// partitionPath returns the path of a disk's partition.
func partitionPath(disk, number string) string {
	if disk != "" && '0' <= disk[len(disk)-1] && disk[len(disk)-1] <= '9' {
		return disk + "p" + number
	}
	return disk + number
}

// edge is the size of the beginning and end of a disk, and of a partition, that must be empty and that install zeroes:
// they hold the signatures of their contents.
const edge = mib

// edges looks for nonzero bytes.
func (d *disk) edges(f *os.File) ([]string, error) {
	for _, e := range []struct {
		name string
		off  int64
	}{{"first", 0}, {"last", max(0, d.size-edge)}} {
		b := make([]byte, min(edge, d.size))
		if _, err := f.ReadAt(b, e.off); err != nil {
			return nil, err
		}
		if slices.ContainsFunc(b, func(c byte) bool { return c != 0 }) {
			return []string{fmt.Sprintf("data of an unknown kind in the %s %s", e.name, human(int64(len(b))))}, nil
		}
	}
	return nil, nil
}

// claim opens a disk for this process alone until it is closed. The error is an ErrInUse if the disk or part of it is
// mounted or otherwise in use by the kernel, or another process has locked it, and an ErrChanged if its path leads to
// another disk by now.
func (d *disk) claim() (*os.File, error) {
	users, err := d.users()
	if err != nil {
		return nil, err
	}
	if len(users) > 0 {
		return nil, inUse(d.path, users)
	}
	now, f, err := openDisk(d.path, unix.O_RDWR)
	if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.ETXTBSY) {
		return nil, fmt.Errorf("%s is %w", d.path, ErrInUse)
	}
	if err != nil {
		return nil, err
	}
	if f == nil {
		return nil, fmt.Errorf("%s is %w: it no longer exists", d.path, ErrChanged)
	}
	if *now != *d {
		return nil, joined(fmt.Errorf("%s is %w", d.path, ErrChanged), f.Close())
	}
	if err := d.lock(f); err != nil {
		return nil, joined(err, f.Close())
	}
	return f, nil
}

// create makes a new image file for this process alone until it is closed. End removes it after a failure, unless
// something else has its name by then.
func (d *disk) create() (f *os.File, end func(failed bool) error, err error) {
	dir, err := os.OpenRoot(filepath.Dir(d.path))
	if err != nil {
		return nil, nil, err
	}
	name := filepath.Base(d.path)
	f, err = dir.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		err = fmt.Errorf("%s is %w: it did not exist", d.path, ErrChanged)
	}
	if err != nil {
		return nil, nil, joined(err, dir.Close())
	}
	end = func(failed bool) (err error) {
		if failed {
			err = removeSame(dir, name, f)
		}
		return joined(err, dir.Close())
	}
	if err := d.lock(f); err != nil {
		return nil, nil, errors.Join(err, end(true), f.Close())
	}
	return f, end, nil
}

// removeSame removes the name of an open file, unless it is another file's by now.
func removeSame(dir *os.Root, name string, f *os.File) error {
	made, err := f.Stat()
	if err != nil {
		return err
	}
	named, err := dir.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(made, named) {
		return nil
	}
	if err != nil {
		return err
	}
	return dir.Remove(name)
}

// checkPath makes sure that the path still leads to the claimed disk.
func (d *disk) checkPath(f *os.File) error {
	claimed, err := f.Stat()
	if err != nil {
		return err
	}
	now, err := os.Stat(d.path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(claimed, now) {
		return fmt.Errorf("%s is %w: what was claimed is not there any more", d.path, ErrChanged)
	}
	return err
}

// lock takes the lock that others check: an emulator for an image file; udev for a block device, whose partitions it
// leaves alone while it is locked (https://systemd.io/BLOCK_DEVICE_LOCKING), but which it may be using for a moment.
func (d *disk) lock(f *os.File) (err error) {
	if d.block {
		err = retryFor(patience, unix.EAGAIN, func() error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) })
	} else {
		err = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart})
	}
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return fmt.Errorf("%s is %w: another process has locked it", d.path, ErrInUse)
	}
	return err
}

// patience is how long to wait for processes that use a device for a moment.
const patience = 10 * time.Second

// retryFor calls f until it returns another error than busy, or the time is over.
func retryFor(d time.Duration, busy unix.Errno, f func() error) error {
	for deadline := time.Now().Add(d); ; time.Sleep(10 * time.Millisecond) {
		if err := f(); !errors.Is(err, busy) || time.Now().After(deadline) {
			return err
		}
	}
}

func inUse(path string, users []string) error {
	return fmt.Errorf("%s is %w: %s", path, ErrInUse, strings.Join(users, ", "))
}

// users lists the users of a disk, as far as /proc and /sys show them.
func (d *disk) users() (users []string, err error) {
	devs := make(map[string]bool) // numbers of the device, its partitions, and loop devices over the file
	if d.block {
		devs[devNumber(d.id.dev)] = true
		parts, err := filepath.Glob(d.sysfs("*/partition"))
		if err != nil {
			return nil, err
		}
		for _, p := range parts {
			if b, err := os.ReadFile(filepath.Join(filepath.Dir(p), "dev")); err == nil {
				devs[strings.TrimSpace(string(b))] = true
			}
		}
		for _, pattern := range []string{"holders/*", "*/holders/*"} {
			holders, err := filepath.Glob(d.sysfs(pattern))
			if err != nil {
				return nil, err
			}
			for _, h := range holders {
				users = append(users, "by "+filepath.Base(h))
			}
		}
	} else {
		loops, err := d.loops()
		if err != nil {
			return nil, err
		}
		for dev, name := range loops {
			devs[dev] = true
			users = append(users, "by "+name)
		}
	}
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, err
	}
	swaps, err := os.ReadFile("/proc/swaps")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	users = append(users, mountedAt(mounts, devs)...)
	users = append(users, swapsOn(string(swaps), devs, d.id.inode)...)
	slices.Sort(users)
	return users, nil
}

func devNumber(dev uint64) string { return fmt.Sprintf("%d:%d", unix.Major(dev), unix.Minor(dev)) }

// mountedAt lists the mount points of devices.
func mountedAt(mounts []*mountinfo.Info, devs map[string]bool) (users []string) {
	for _, m := range mounts {
		if devs[fmt.Sprintf("%d:%d", m.Major, m.Minor)] {
			users = append(users, "mounted at "+m.Mountpoint)
		}
	}
	return users
}

// swapsOn lists a host's swaps on devices, or in a file.
func swapsOn(swaps string, devs map[string]bool, file atfs.Inode) (users []string) {
	for line := range strings.Lines(swaps) {
		f := strings.Fields(line)
		var st unix.Stat_t
		if len(f) == 0 || !strings.HasPrefix(f[0], "/") || unix.Stat(f[0], &st) != nil {
			continue
		}
		isDev := st.Mode&unix.S_IFMT == unix.S_IFBLK && devs[devNumber(st.Rdev)]
		if isDev || atfs.InodeOf(&st) == file {
			users = append(users, "swap "+f[0])
		}
	}
	return users
}

// loops returns the loop devices over a file, by number.
func (d *disk) loops() (map[string]string, error) {
	backed, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	loops := make(map[string]string)
	for _, name := range backed {
		dev := filepath.Join("/dev", strings.Split(name, "/")[3])
		f, err := os.Open(dev)
		if err != nil {
			continue // gone since, or not readable
		}
		info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
		if err == nil && (atfs.Inode{Dev: info.Device, Ino: info.Inode}) == d.id.inode {
			var self unix.Stat_t
			if err := unix.Fstat(int(f.Fd()), &self); err == nil {
				loops[devNumber(self.Rdev)] = dev
			}
		}
		_ = f.Close()
	}
	return loops, nil
}

// zeroEdges zeroes the beginning and end of a part of a disk.
func zeroEdges(f *os.File, off, size int64) error {
	zero := make([]byte, min(edge, size))
	if _, err := f.WriteAt(zero, off); err != nil {
		return err
	}
	_, err := f.WriteAt(zero, off+size-int64(len(zero)))
	return err
}

// rereadTable tells the kernel that a block device has a new partition table.
func (d *disk) rereadTable(f *os.File) error {
	if !d.block {
		return nil
	}
	err := retryFor(patience, unix.EBUSY, func() error { return unix.IoctlSetInt(int(f.Fd()), unix.BLKRRPART, 0) })
	if errors.Is(err, unix.EINVAL) { // a device without partitions
		return nil
	}
	if err != nil {
		return fmt.Errorf("have the kernel read the partition table of %s: %w", d.path, err)
	}
	return nil
}
