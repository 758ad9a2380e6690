// Package composefsmount mounts composefs images over the objects that they name.
//
// A composefs image is an EROFS file system without file content. overlayfs shows it with the content: the image is its
// lower layer, and the directory of objects a data-only layer below that, see "Data-only lower layers" in
// Documentation/filesystems/overlayfs.rst. What of this a kernel can do, and how, differs: Probe tries it.
package composefsmount

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
)

// Support is how a kernel mounts composefs images.
type Support struct {
	// Loop says that EROFS needs a loop device, which kernels before 6.12 do.
	Loop bool
	// Metacopy says that the overlay needs metacopy=on, which kernels before 6.16 do. The upper directory is not complete by
	// itself then: a file of which only the owner or the mode was changed has its content below.
	Metacopy bool
	// IDMap says that mounts of images can have their owners mapped.
	IDMap bool
	// Verity says that images have the fs-verity digests of their objects, and that a file whose object has another, or none, is
	// not to be read. It comes with Metacopy. See [Support.ProbeVerity].
	Verity bool
}

// String says it for a log.
func (s Support) String() string {
	text := "file-backed EROFS"
	if s.Loop {
		text = "EROFS on loop devices"
	}
	if s.Metacopy {
		text += ", metacopy=on"
	}
	if s.Verity {
		text += ", verity=require"
	}
	if !s.IDMap {
		text += ", no ID-mapped mounts"
	}
	return text
}

// Mount mounts an image on a directory, read-only. It stays mounted until it is unmounted, whoever has it open.
func Mount(image *atfs.File, target *atfs.Dir, s Support) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("mount image on %s: %w", target.Path(), err)
		}
	}()
	// What was checked is what is mounted, whatever has the file's name by now.
	source := procPath(image.FD())
	if s.Loop {
		loop, err := mount.SetupLoop(source, mount.LoopParams{Readonly: true, Autoclear: true})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, loop.Close()) }() // the mount holds the device
		source = loop.Name()
	}
	fd, err := unix.Fsopen("erofs", unix.FSOPEN_CLOEXEC)
	if errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("kernel has no EROFS file system: %w", err)
	}
	if err != nil {
		return os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(fd)
	if err := unix.FsconfigSetString(fd, "source", source); err != nil {
		return os.NewSyscallError("fsconfig", err)
	}
	if err := unix.FsconfigSetFlag(fd, "ro"); err != nil {
		return os.NewSyscallError("fsconfig", err)
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		return os.NewSyscallError("fsconfig", err)
	}
	mnt, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY)
	if err != nil {
		return os.NewSyscallError("fsmount", err)
	}
	defer unix.Close(mnt)
	return attach(mnt, target)
}

func attach(mnt int, target *atfs.Dir) error {
	err := unix.MoveMount(mnt, "", target.FD(), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	return os.NewSyscallError("move_mount", err)
}

// MountMapped mounts what is mounted on source on target too, with owners mapped.
func MountMapped(source, target *atfs.Dir, m Mapping) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("map owners %s and groups %s on %s: %w", m.UID, m.GID, target.Path(), err)
		}
	}()
	userns, err := mount.GetUsernsFD(m.UID, m.GID)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, userns.Close()) }()
	mnt, err := unix.OpenTree(source.FD(), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return os.NewSyscallError("open_tree", err)
	}
	defer unix.Close(mnt)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userns.Fd())}
	if err := unix.MountSetattr(mnt, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return os.NewSyscallError("mount_setattr", err)
	}
	return attach(mnt, target)
}

// IsMounted reports whether an image is mounted on a directory, which was opened by its name.
func IsMounted(dir *atfs.Dir) (bool, error) { return isType(dir, unix.EROFS_SUPER_MAGIC_V1) }

func isType(dir *atfs.Dir, magic int64) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(dir.FD(), &st); err != nil {
		return false, &os.PathError{Op: "statfs", Path: dir.Path(), Err: err}
	}
	return st.Type == magic, nil
}

// Unmount unmounts everything that is mounted on a directory. Who uses it, as an overlay mount does, goes on doing so.
func Unmount(name string) error {
	for {
		switch err := unix.Unmount(name, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); {
		case errors.Is(err, unix.EINVAL): // nothing is mounted there any more
			return nil
		case err != nil:
			return &os.PathError{Op: "unmount", Path: name, Err: err}
		}
	}
}

// An Overlay is what an overlay mount is made of: a mounted image over the directory of its objects, and what is written.
// Paths have no commas, colons or backslashes.
type Overlay struct {
	Image, Objects string
	Upper, Work    string // "" for one that is read-only
	Options        []string
}

// Mount mounts the overlay on a directory. It stays mounted until it is unmounted.
func (o Overlay) Mount(target string, s Support) error {
	options := []string{"lowerdir=" + o.Image + "::" + o.Objects}
	var flags uintptr = unix.MS_RDONLY
	if o.Upper != "" {
		options = append(options, "upperdir="+o.Upper, "workdir="+o.Work)
		flags = 0
	}
	if s.Metacopy {
		options = append(options, "metacopy=on")
	}
	if s.Verity {
		options = append(options, "verity=require")
	}
	data := strings.Join(append(options, o.Options...), ",")
	if err := unix.Mount("overlay", target, "overlay", flags, data); err != nil {
		return &os.PathError{Op: "mount overlay on", Path: target, Err: err}
	}
	return nil
}

// IsOverlay reports whether an overlay is mounted on a directory, which was opened by its name.
func IsOverlay(dir *atfs.Dir) (bool, error) { return isType(dir, unix.OVERLAYFS_SUPER_MAGIC) }

// OpenOverlay opens an overlay that is mounted nowhere: of a mounted image and the directory of its objects, below the other
// directories, topmost first, that are given. It is read-only. It goes when it, and what was opened below it, is closed. It
// demands no digests: what is above may be older than these.
func OpenOverlay(image, objects *atfs.Dir, s Support, above ...*atfs.Dir) (*atfs.Dir, error) {
	lower := ""
	for _, d := range append(above, image) {
		lower += procPath(d.FD()) + ":"
	}
	options := map[string]string{"lowerdir": lower + ":" + procPath(objects.FD())}
	if s.Metacopy || len(above) > 0 {
		options["metacopy"] = "on" // also what an upper directory has that is above
	}
	fd, err := OverlayFD(options)
	if err != nil {
		return nil, fmt.Errorf("open overlay of %s: %w", image.Path(), err)
	}
	return atfs.Adopt(fd, image.Path()), nil
}

func procPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// OverlayFD returns the descriptor of an overlay with these options that is mounted nowhere. Values have at most 255 bytes.
func OverlayFD(options map[string]string) (int, error) {
	fsfd, err := openOverlay()
	if err != nil {
		return -1, err
	}
	defer unix.Close(fsfd)
	for key, value := range options {
		if err := unix.FsconfigSetString(fsfd, key, value); err != nil {
			return -1, fmt.Errorf("set overlay option %s: %w", key, err)
		}
	}
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return -1, fmt.Errorf("file system cannot carry an overlay mount: %w", err)
	}
	mnt, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("mount overlay: %w", err)
	}
	return mnt, nil
}

func openOverlay() (int, error) {
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if errors.Is(err, unix.ENODEV) {
		return -1, errNoOverlay
	}
	if err != nil {
		return -1, fmt.Errorf("open overlay file system: %w", err)
	}
	return fd, nil
}

var errNoOverlay = errors.New(`kernel has no overlay file system: load it with "modprobe overlay"`)

// CheckOverlay returns an error unless the kernel has overlayfs. To a process that may mount, a module that the kernel can
// load counts too.
func CheckOverlay() error {
	fd, err := openOverlay()
	if err == nil {
		return unix.Close(fd)
	}
	if !errors.Is(err, unix.EPERM) {
		return err
	}
	table, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(table)) {
		if f := strings.Fields(line); len(f) > 0 && f[len(f)-1] == "overlay" {
			return nil
		}
	}
	return errNoOverlay
}
