package composefsmount

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/composefs"
)

const probePrefix = "probe-erofs-"

// Probe determines how this kernel mounts composefs images by mounting one in a new directory in dir. It removes that
// directory, and those of killed processes: no other process may probe in dir. The error names what the kernel lacks.
func Probe(dir *atfs.Dir) (s Support, err error) {
	err = inScratch(dir, func(d *atfs.Dir) error {
		s, err = probe(d)
		return err
	})
	return s, err
}

// inScratch calls f with a new directory in dir, which it removes afterwards.
func inScratch(dir *atfs.Dir, f func(*atfs.Dir) error) (err error) {
	if err := sweepProbes(dir); err != nil {
		return err
	}
	name := probePrefix + rand.Text()
	if err := dir.Mkdir(name, 0o700); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.RemoveAll(name)) }()
	d, err := dir.OpenDir(name)
	if err != nil {
		return err
	}
	return errors.Join(f(d), d.Close())
}

func probe(d *atfs.Dir) (s Support, err error) {
	if err := fillProbe(d, nil); err != nil {
		return s, err
	}
	// Cheapest first. A loop device may work where file-backed EROFS does not: some kernels counted the latter as a
	// level of stacking, so that a container could not have an overlay of its own.
	var errs []error
	for i, s := range ways {
		err := s.try(d, strconv.Itoa(i))
		if err == nil {
			if err = mapped(d, s); err == nil || isInability(err) {
				s.IDMap = err == nil
				return s, nil
			}
		}
		if !isInability(err) {
			return s, fmt.Errorf("probe composefs: %w", err)
		}
		errs = append(errs, err)
	}
	return s, fmt.Errorf("%w: %w", ErrUnsupported, errors.Join(errs[0], errs[len(errs)-1]))
}

// ProbeVerity determines, as [Probe] does, whether images can be mounted as described by s with overlays that require
// the fs-verity digests of objects. It returns the resulting support.
func (s Support) ProbeVerity(dir *atfs.Dir) (Support, error) {
	s.Verity, s.Metacopy = true, true
	return s, inScratch(dir, func(d *atfs.Dir) error {
		err := s.tryVerity(d)
		if isInability(err) {
			return fmt.Errorf("%w with fs-verity: %w", ErrUnsupported, err)
		}
		return err
	})
}

func (s Support) tryVerity(d *atfs.Dir) (err error) {
	digest, err := composefs.VerityDigest(strings.NewReader(probeContent))
	if err != nil {
		return err
	}
	if err := fillProbe(d, digest[:]); err != nil {
		return err
	}
	// The object must be refused without fs-verity, and readable with it.
	if err := s.try(d, "0"); !errors.Is(err, unix.EIO) {
		return fmt.Errorf("file without fs-verity is read: %w", orWrong(err))
	}
	object, err := d.Open(probeObject)
	if err != nil {
		return err
	}
	if err := errors.Join(object.EnableVerity(), object.Close()); err != nil {
		return err
	}
	return s.try(d, "1")
}

var ways = []Support{{}, {Metacopy: true}, {Loop: true}, {Loop: true, Metacopy: true}}

// ErrUnsupported means that the kernel cannot mount composefs images.
var ErrUnsupported = errors.New("kernel cannot mount composefs images")

// isInability reports whether an error means that the kernel lacks a feature, rather than that something else went
// wrong.
func isInability(err error) bool {
	for _, target := range []error{
		errWrong, errors.ErrUnsupported, unix.EINVAL, unix.ENODEV, unix.ENOTBLK, unix.ENXIO, unix.ELOOP, unix.EPERM,
	} {
		if errors.Is(err, target) {
			return true
		}
	}
	return false
}

func sweepProbes(dir *atfs.Dir) error {
	names, err := dir.ReadNames()
	if err != nil {
		return err
	}
	for _, name := range names {
		if !strings.HasPrefix(name, probePrefix) {
			continue
		}
		for _, mounted := range []string{"nested", "merged", "mapped", "image"} {
			err := Unmount(path.Join(dir.Path(), name, mounted))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		if err := dir.RemoveAll(name); err != nil {
			return err
		}
	}
	return nil
}

const (
	probeContent = "content of an object"
	probeObject  = "objects/00/a.file"
)

// fillProbe creates the files to mount, with or without an fs-verity digest.
func fillProbe(d *atfs.Dir, digest []byte) error {
	dirs := []string{"image", "mapped", "objects", "objects/00", "merged", "nested"}
	for i := range ways {
		for _, name := range []string{"upper", "work", "nested-upper", "nested-work"} {
			dirs = append(dirs, name+strconv.Itoa(i))
		}
	}
	for _, name := range dirs {
		if err := d.Mkdir(name, 0o755); err != nil {
			return err
		}
	}
	if err := d.WriteFile(probeObject, []byte(probeContent), 0o644, false); err != nil {
		return err
	}
	file := &composefs.Inode{Mode: unix.S_IFREG | 0o644, Size: int64(len(probeContent)), Payload: "00/a.file", Verity: digest}
	root := &composefs.Inode{Mode: unix.S_IFDIR | 0o755, Entries: []composefs.Entry{{Name: "file", Inode: file}}}
	image, err := composefs.Marshal(root, composefs.Options{MaxVersion: 1})
	if err != nil {
		return err
	}
	return d.WriteFile("img", image, 0o600, false)
}

// try mounts the image in one way, mounts an overlay over it, changes a file as chmod(1) in a container does, and
// mounts another overlay over that.
func (s Support) try(d *atfs.Dir, suffix string) (err error) {
	unmount, err := mountProbe(d, s)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unmount()) }()
	return s.tryOverlay(d, suffix)
}

func mountProbe(d *atfs.Dir, s Support) (func() error, error) {
	image, err := d.Open("img")
	if err != nil {
		return nil, err
	}
	defer image.Close()
	target, err := d.OpenDir("image")
	if err != nil {
		return nil, err
	}
	defer target.Close()
	if err := Mount(image, target, s); err != nil {
		return nil, err
	}
	return func() error { return Unmount(path.Join(d.Path(), "image")) }, nil
}

func (s Support) tryOverlay(d *atfs.Dir, suffix string) (err error) {
	at := func(name string) string { return path.Join(d.Path(), name) }
	o := Overlay{Image: at("image"), Objects: at("objects"), Upper: at("upper" + suffix), Work: at("work" + suffix)}
	if err := o.Mount(at("merged"), s); err != nil {
		return fmt.Errorf("data-only layer: %w", err)
	}
	defer func() { err = errors.Join(err, Unmount(at("merged"))) }()
	merged, err := d.OpenDir("merged")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, merged.Close()) }()
	if b, err := merged.ReadFile("file", 4096); err != nil || string(b) != probeContent {
		return fmt.Errorf("file in an overlay with a data-only layer has content %q: %w", b, orWrong(err))
	}
	if err := merged.Chmod("file", 0o600); err != nil {
		return err
	}
	if b, err := d.ReadFile("upper"+suffix+"/file", 4096); !s.Metacopy && (err != nil || string(b) != probeContent) {
		return fmt.Errorf("file that was changed has content %q in the upper directory: %w", b, orWrong(err))
	}
	nested := "lowerdir=" + at("merged") + ",upperdir=" + at("nested-upper"+suffix) + ",workdir=" + at("nested-work"+suffix)
	if err := unix.Mount("overlay", at("nested"), "overlay", 0, nested); err != nil {
		return fmt.Errorf("mount overlay inside a container: %w", err)
	}
	return Unmount(at("nested"))
}

var errWrong = errors.New("not what it has to be")

func orWrong(err error) error {
	if err == nil {
		return errWrong
	}
	return err
}

// mapped tries an ID-mapped mount of the image.
func mapped(d *atfs.Dir, s Support) (err error) {
	unmount, err := mountProbe(d, s)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unmount()) }()
	from, err := d.OpenDir("image")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, from.Close()) }()
	to, err := d.OpenDir("mapped")
	if err != nil {
		return err
	}
	err = MountMapped(from, to, Mapping{UID: "0:100000:65536", GID: "0:100000:65536"})
	if err = errors.Join(err, to.Close()); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, Unmount(path.Join(d.Path(), "mapped"))) }()
	st, err := mappedRoot(d)
	if err == nil && st.Uid != 100000 {
		err = fmt.Errorf("owner is %d: %w", st.Uid, errWrong)
	}
	return err
}

func mappedRoot(d *atfs.Dir) (st unix.Stat_t, err error) {
	dir, err := d.OpenDir("mapped")
	if err != nil {
		return st, err
	}
	st, err = dir.Lstat(".")
	return st, errors.Join(err, dir.Close())
}
