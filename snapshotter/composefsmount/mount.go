// Package composefsmount mounts composefs images over the objects that they name.
//
// A composefs image is an EROFS file system without file content. overlayfs adds the content: the image is its lower
// layer, and the directory of objects a data-only layer below that, see "Data-only lower layers" in
// Documentation/filesystems/overlayfs.rst. Kernels differ in what they support of this, and how: Probe tries it.
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

// Support describes how a kernel mounts composefs images.
type Support struct {
	// Loop means that EROFS needs a loop device, as before Linux 6.12.
	Loop bool
	// Metacopy means that the overlay needs metacopy=on, as before Linux 6.16. The upper directory is not complete by
	// itself then: the content of a file with only a new owner or mode is in the layers below.
	Metacopy bool
	// IDMap means that mounts of images can map owners.
	IDMap bool
	// Verity means that images contain the fs-verity digests of their objects, and that files whose object has another
	// digest, or none, cannot be read. It implies Metacopy. See [Support.ProbeVerity].
	Verity bool
}

// String returns a description for logs.
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

// imageAttr are the attributes of image mounts. Only overlays use them: a container's set-user-ID programs and devices
// depend on the attributes of its overlay mount alone.
const imageAttr = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV

// Mount mounts an image read-only on a directory. It stays mounted until it is unmounted, even without open files.
func Mount(image *atfs.File, target *atfs.Dir, s Support) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("mount image on %s: %w", target.Path(), err)
		}
	}()
	// Mount the file that was checked, even if another one has its name by now.
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
	mnt, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, imageAttr)
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

// MountMapped also mounts the file system at source on target, with owners mapped.
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

// IsMounted reports whether an image is mounted on a directory, which must have been opened by its name.
func IsMounted(dir *atfs.Dir) (bool, error) { return isType(dir, unix.EROFS_SUPER_MAGIC_V1) }

func isType(dir *atfs.Dir, magic int64) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(dir.FD(), &st); err != nil {
		return false, &os.PathError{Op: "statfs", Path: dir.Path(), Err: err}
	}
	return int64(st.Type) == magic, nil //nolint:unconvert // s390x has another type
}

// Unmount unmounts everything that is mounted on a directory. Users of the file system, such as overlay mounts, keep
// it.
func Unmount(name string) error {
	for {
		switch err := unix.Unmount(name, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); {
		case errors.Is(err, unix.EINVAL): // nothing more is mounted there
			return nil
		case err != nil:
			return &os.PathError{Op: "unmount", Path: name, Err: err}
		}
	}
}

// An Overlay describes an overlay mount: a mounted image over the directory of its objects, and an upper directory.
// Paths contain no commas, colons or backslashes.
type Overlay struct {
	Image, Objects string
	Upper, Work    string // "" for a read-only overlay
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

// IsOverlay reports whether an overlay is mounted on a directory, which must have been opened by its name.
func IsOverlay(dir *atfs.Dir) (bool, error) { return isType(dir, unix.OVERLAYFS_SUPER_MAGIC) }

// OpenOverlay opens a read-only overlay without a mount point, made of a mounted image and the directory of its
// objects, below the given directories, topmost first. It exists until the result, and everything opened below it, is
// closed. It requires no digests: the directories above may be older than these.
func OpenOverlay(image, objects *atfs.Dir, s Support, above ...*atfs.Dir) (*atfs.Dir, error) {
	lower := ""
	for _, d := range append(above, image) {
		lower += procPath(d.FD()) + ":"
	}
	options := map[string]string{"lowerdir": lower + ":" + procPath(objects.FD())}
	if s.Metacopy || len(above) > 0 {
		options["metacopy"] = "on" // needed also by upper directories above the image
	}
	fd, err := OverlayFD(options)
	if err != nil {
		return nil, fmt.Errorf("open overlay of %s: %w", image.Path(), err)
	}
	return atfs.Adopt(fd, image.Path()), nil
}

func procPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// OverlayFD returns the descriptor of an overlay with these options and without a mount point. Values have at most 255
// bytes.
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

// CheckOverlay returns an error unless the kernel has overlayfs. To a process that may mount, a loadable module counts
// too.
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
