package composefs

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrInvalid is wrapped by errors about a tree or a dump that has no image: a name with a slash, a directory reached
// twice, a size without content, an extended attribute that the format reserves.
var ErrInvalid = errors.New("composefs: invalid tree")

// ErrCorrupt is wrapped by every error of [Read] about the bytes of the image, whether they were damaged or never were
// a canonical image.
var ErrCorrupt = errors.New("composefs: corrupt image")

// ErrLimit is wrapped by the error of [Read] if an image, which may be valid, is larger than the caller's [Limits].
var ErrLimit = errors.New("composefs: image exceeds limit")

const (
	// MaxDepth is the maximal number of directories between the root and an entry. It is well above that in a path of
	// PATH_MAX bytes.
	MaxDepth = 4096

	maxName      = 255   // NAME_MAX, also the width of XATTR_NAME_MAX
	maxTarget    = 4095  // PATH_MAX without its NUL
	maxXattrSize = 65535 // e_value_size is 16 bits wide
	digestSize   = 32
)

// Xattr is an extended attribute. Its value may be empty.
type Xattr struct {
	Name  string
	Value []byte
}

// Inode is a file of any type. The same *Inode under two names is a hard link; a directory has exactly one name.
//
// Fields that do not belong to the file type must be zero.
type Inode struct {
	Mode  uint32        // st_mode, file type included
	UID   uint32        // owner
	GID   uint32        // group
	Rdev  uint64        // st_rdev of character and block devices; 0:0 is a whiteout
	Mtime unix.Timespec // normalised: 0 <= Nsec < 1e9, also before 1970
	Size  int64         // regular files

	// Xattrs is sorted bytewise by name, without duplicates. The attributes are those of the file in the tree:
	// [Marshal] escapes trusted.overlay.*, and [Read] reverses it.
	Xattrs []Xattr

	Target string // symbolic links: 1 to 4095 bytes

	// A regular file of size > 0 has either Payload, the path of its object below the object directory without a
	// leading slash, or Content, all of its bytes.
	Payload string
	Content []byte
	Verity  []byte // SHA-256 fs-verity digest of the payload, or nil

	Entries []Entry // directories: sorted bytewise by name, without . and ..
}

// Entry is a name in a directory.
type Entry struct {
	Name  string
	Inode *Inode
}

// IsDir reports whether the inode is a directory.
func (i *Inode) IsDir() bool { return i.kind() == unix.S_IFDIR }

// Find returns the index of the entry of a directory with a name, and true, or the index where it would be. Entries are
// sorted by name.
func (i *Inode) Find(name string) (int, bool) {
	return slices.BinarySearchFunc(i.Entries, name, func(e Entry, name string) int { return strings.Compare(e.Name, name) })
}

// IsWhiteout reports whether the inode is an overlay whiteout, a character device 0:0.
func (i *Inode) IsWhiteout() bool { return i.kind() == unix.S_IFCHR && i.Rdev == 0 }

func (i *Inode) kind() uint32 { return i.Mode & unix.S_IFMT }

// validate checks an inode as far as possible without its parent.
func (i *Inode) validate() error {
	if i.Mode > math.MaxUint16 || fileType(i.Mode) == 0 {
		return fmt.Errorf("%w: mode %#o", ErrInvalid, i.Mode)
	}
	if i.Mtime.Nsec < 0 || i.Mtime.Nsec >= 1e9 {
		return fmt.Errorf("%w: mtime has %d nanoseconds", ErrInvalid, i.Mtime.Nsec)
	}
	kind := i.kind()
	switch {
	case kind != unix.S_IFREG && (i.Size != 0 || i.Payload != "" || i.Content != nil || i.Verity != nil):
		return fmt.Errorf("%w: file data on mode %#o", ErrInvalid, i.Mode)
	case kind != unix.S_IFDIR && len(i.Entries) != 0:
		return fmt.Errorf("%w: entries on mode %#o", ErrInvalid, i.Mode)
	case kind != unix.S_IFLNK && i.Target != "":
		return fmt.Errorf("%w: target on mode %#o", ErrInvalid, i.Mode)
	case kind != unix.S_IFCHR && kind != unix.S_IFBLK && i.Rdev != 0:
		return fmt.Errorf("%w: device number on mode %#o", ErrInvalid, i.Mode)
	case i.Rdev > math.MaxUint32:
		// The kernel's dev_t also has 12 bits of major and 20 of minor.
		return fmt.Errorf("%w: device number %#x", ErrInvalid, i.Rdev)
	}
	if kind == unix.S_IFLNK && !validTarget(i.Target) {
		return fmt.Errorf("%w: symlink target of %d bytes", ErrInvalid, len(i.Target))
	}
	if kind == unix.S_IFREG {
		if err := i.validateData(); err != nil {
			return err
		}
	}
	return i.validateXattrs()
}

func (i *Inode) validateData() error {
	switch {
	case i.Size < 0:
		return fmt.Errorf("%w: size %d", ErrInvalid, i.Size)
	case i.Size == 0 && (i.Payload != "" || len(i.Content) != 0 || i.Verity != nil):
		return fmt.Errorf("%w: data on an empty file", ErrInvalid)
	case i.Size == 0:
		return nil
	case i.Content != nil && (i.Payload != "" || i.Verity != nil):
		return fmt.Errorf("%w: both content and payload", ErrInvalid)
	case i.Content != nil && int64(len(i.Content)) != i.Size:
		return fmt.Errorf("%w: size %d, content of %d bytes", ErrInvalid, i.Size, len(i.Content))
	case i.Content == nil && !validPayload(i.Payload):
		return fmt.Errorf("%w: size %d, payload %q", ErrInvalid, i.Size, i.Payload)
	case i.Verity != nil && len(i.Verity) != digestSize:
		return fmt.Errorf("%w: fs-verity digest of %d bytes", ErrInvalid, len(i.Verity))
	}
	return nil
}

func (i *Inode) validateXattrs() error {
	for k, x := range i.Xattrs {
		switch {
		case x.Name == "" || len(x.Name) > maxName || strings.IndexByte(x.Name, 0) >= 0:
			return fmt.Errorf("%w: xattr name %q", ErrInvalid, x.Name)
		case len(x.Value) > maxXattrSize:
			return fmt.Errorf("%w: xattr %s of %d bytes", ErrInvalid, x.Name, len(x.Value))
		case k > 0 && i.Xattrs[k-1].Name >= x.Name:
			return fmt.Errorf("%w: xattr %q not in order", ErrInvalid, x.Name)
		case reservedXattr(x.Name):
			return fmt.Errorf("%w: xattr %s is reserved", ErrInvalid, x.Name)
		}
	}
	return nil
}

// validTarget reports whether s can be the target of a symbolic link.
func validTarget(s string) bool {
	return s != "" && len(s) <= maxTarget && strings.IndexByte(s, 0) < 0
}

// validPayload reports whether s is a path that cannot leave the object directory and that overlayfs accepts as a
// redirect with a leading slash (ovl_get_redirect_xattr rejects empty components).
func validPayload(s string) bool {
	if len(s) > maxTarget || strings.IndexByte(s, 0) >= 0 {
		return false
	}
	for rest, more := s, true; more; {
		var part string
		part, rest, more = strings.Cut(rest, "/")
		if part == "" || part == "." || part == ".." {
			return false
		}
	}
	return true
}

// validName reports whether s can be the name of a directory entry.
func validName(s string) bool {
	return s != "" && s != "." && s != ".." && len(s) <= maxName &&
		strings.IndexByte(s, '/') < 0 && strings.IndexByte(s, 0) < 0
}

// compareTime orders by seconds, then nanoseconds.
func compareTime(a, b unix.Timespec) int {
	return cmp.Or(cmp.Compare(a.Sec, b.Sec), cmp.Compare(a.Nsec, b.Nsec))
}

// compareValue orders values as the shared attribute table does within one name.
func compareValue(a, b []byte) int {
	return cmp.Or(cmp.Compare(len(a), len(b)), bytes.Compare(a, b))
}
