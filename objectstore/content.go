package objectstore

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/sha256x2"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/gvariant"
)

// Limits of names and values. Larger ones cannot exist on a Linux file system.
const (
	maxNameLen       = 255       // NAME_MAX
	maxTargetLen     = 4095      // PATH_MAX less the NUL
	maxXattrNameLen  = 255       // XATTR_NAME_MAX
	maxXattrValueLen = 64 << 10  // XATTR_SIZE_MAX
	maxXattrsLen     = 128 << 10 // names and values of one inode; ext4, xfs and btrfs hold at most as much
	modeBits         = 0o7777
)

// Xattr is an extended attribute. Lists of them are sorted bytewise by name and have no duplicates and no empty
// values, because libostree drops empty values when it reads a file.
type Xattr struct {
	Name  string
	Value []byte
}

// Equal reports whether both attributes have the same name and value.
func (x Xattr) Equal(y Xattr) bool { return x.Name == y.Name && bytes.Equal(x.Value, y.Value) }

// FileMeta is the metadata of a content object.
type FileMeta struct {
	UID, GID uint32
	Mode     uint32 // st_mode with its type: S_IFREG with permission bits, or exactly S_IFLNK|0777
	Target   string // of a symbolic link, valid UTF-8
	Xattrs   []Xattr
}

// IsSymlink reports whether m is a symbolic link.
func (m *FileMeta) IsSymlink() bool { return m.Mode&unix.S_IFMT == unix.S_IFLNK }

// Validate returns ErrInvalid if m cannot be stored as a content object.
func (m *FileMeta) Validate() error {
	switch m.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		if m.Mode&^(unix.S_IFMT|modeBits) != 0 {
			return invalidf("mode %o", m.Mode)
		}
		if m.Target != "" {
			return invalidf("regular file with a symbolic link's target %q", m.Target)
		}
	case unix.S_IFLNK:
		if m.Mode != unix.S_IFLNK|0o777 {
			return invalidf("symbolic link with mode %o, which is always 120777", m.Mode)
		}
		if m.Target == "" || len(m.Target) > maxTargetLen || !validString(m.Target) {
			return invalidf("symbolic link target %.100q: empty, too long or not UTF-8", m.Target)
		}
	default:
		return invalidf("mode %o: neither a regular file nor a symbolic link", m.Mode)
	}
	if m.UID == noID || m.GID == noID {
		return invalidf("owner %d:%d", m.UID, m.GID)
	}
	return validateXattrs(m.Xattrs)
}

// noID is the uid or gid -1, which makes chown(2) keep the old one.
const noID = 1<<32 - 1

func validString(s string) bool { return utf8.ValidString(s) && strings.IndexByte(s, 0) < 0 }

func validateXattrs(xattrs []Xattr) error {
	size := 0
	for i, x := range xattrs {
		switch {
		case x.Name == "" || len(x.Name) > maxXattrNameLen || strings.IndexByte(x.Name, 0) >= 0:
			return invalidf("extended attribute name %.300q: empty, too long or with NUL", x.Name)
		case len(x.Value) == 0:
			return invalidf("extended attribute %q: its value is empty", x.Name)
		case len(x.Value) > maxXattrValueLen:
			return invalidf("extended attribute %q: its value has more than %d bytes", x.Name, maxXattrValueLen)
		case i > 0 && xattrs[i-1].Name >= x.Name:
			return invalidf("extended attribute %q: not sorted, or twice", x.Name)
		}
		if size += len(x.Name) + len(x.Value); size > maxXattrsLen {
			return invalidf("extended attributes of more than %d bytes", maxXattrsLen)
		}
	}
	return nil
}

// Header returns the bytes hashed before the content: the big-endian length of the GVariant (uuuusa(ayay)), four zero
// bytes, and that GVariant, whose integers are big-endian. It validates m.
func (m *FileMeta) Header() ([]byte, error) { return m.AppendHeader(nil) }

// AppendHeader appends what Header returns to b.
func (m *FileMeta) AppendHeader(b []byte) ([]byte, error) {
	if err := m.Validate(); err != nil {
		return b, err
	}
	return m.appendHeader(b), nil
}

func (m *FileMeta) appendHeader(b []byte) []byte {
	frame := len(b)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0)
	start := len(b)
	b = binary.BigEndian.AppendUint32(b, m.UID)
	b = binary.BigEndian.AppendUint32(b, m.GID)
	b = binary.BigEndian.AppendUint32(b, m.Mode)
	b = append(b, 0, 0, 0, 0) // rdev
	b = gvariant.AppendString(b, m.Target)
	end := len(b)
	b = appendXattrs(b, m.Xattrs)
	b = gvariant.AppendOffsets(b, start, end)
	binary.BigEndian.PutUint32(b[frame:], uint32(len(b)-start))
	return b
}

// appendXattrs appends an a(ayay) of names, with their NUL, and values.
func appendXattrs(b []byte, xattrs []Xattr) []byte {
	return gvariant.AppendArray(b, 1, len(xattrs), func(b []byte, i int) []byte {
		start := len(b)
		b = gvariant.AppendString(b, xattrs[i].Name)
		end := len(b)
		b = append(b, xattrs[i].Value...)
		return gvariant.AppendOffsets(b, start, end)
	})
}

var xattrsType, xattrType = gvariant.MustType("a(ayay)"), gvariant.MustType("(ayay)")

// parseXattrs parses an a(ayay). It accepts any order, because checksums were computed over such lists. A name without
// its NUL, an empty name and a duplicate are corrupt.
func parseXattrs(data []byte) ([]Xattr, error) {
	e, err := xattrsType.Elements(data)
	if err != nil || e.Len() == 0 {
		return nil, err
	}
	const minLen = 2 + 1 + 1 // name of one character, two offsets
	if err := checkCount(e.Len(), minLen, len(data)); err != nil {
		return nil, err
	}
	xattrs := make([]Xattr, e.Len())
	seen := make(map[string]struct{}, e.Len())
	var buf [2][]byte
	for i := range xattrs {
		m, err := xattrType.Members(e.At(i), buf[:0])
		if err != nil {
			return nil, err
		}
		name, ok := bytes.CutSuffix(m[0], []byte{0})
		if !ok || len(name) == 0 || bytes.IndexByte(name, 0) >= 0 {
			return nil, corruptf("extended attribute name %q", m[0])
		}
		xattrs[i] = Xattr{Name: string(name), Value: m[1]}
		if _, twice := seen[xattrs[i].Name]; twice {
			return nil, corruptf("extended attribute %q twice", name)
		}
		seen[xattrs[i].Name] = struct{}{}
	}
	return xattrs, nil
}

// sortXattrs sorts extended attributes as a file system reports them, and drops empty values, which libostree does not
// see.
func sortXattrs(m map[string][]byte) []Xattr {
	var xattrs []Xattr
	for name, value := range m {
		if len(value) > 0 {
			xattrs = append(xattrs, Xattr{Name: name, Value: value})
		}
	}
	slices.SortFunc(xattrs, func(a, b Xattr) int { return strings.Compare(a.Name, b.Name) })
	return xattrs
}

// NewContentHash returns the hash that names a content object, with m already written to it. Write the content of a
// regular file, or nothing for a symbolic link; the sum is then the Checksum. It validates m.
func NewContentHash(m *FileMeta) (hash.Hash, error) {
	header, err := m.Header()
	if err != nil {
		return nil, err
	}
	h := sha256.New()
	h.Write(header)
	return h, nil
}

// hasher is a reusable content hash.
type hasher struct {
	hash *sha256x2.Hash
	buf  []byte // scratch for headers
	sum  Checksum
}

var hashers = sync.Pool{New: func() any { return &hasher{hash: sha256x2.New()} }}

func getHasher() *hasher {
	h, ok := hashers.Get().(*hasher)
	if !ok {
		panic("objectstore: foreign value in the pool of hashers")
	}
	h.hash.Reset()
	return h
}

// put returns h to the pool. It must not be used afterwards.
func (h *hasher) put() { hashers.Put(h) }

// start validates m and hashes its header.
func (h *hasher) start(m *FileMeta) error {
	if err := m.Validate(); err != nil {
		return err
	}
	h.startUnchecked(m)
	return nil
}

func (h *hasher) startUnchecked(m *FileMeta) {
	h.buf = m.appendHeader(h.buf[:0])
	h.hash.Write(h.buf)
}

// finish returns the sum.
func (h *hasher) finish() Checksum {
	h.hash.Sum(h.sum[:0])
	return h.sum
}

// copyBuffers are buffers for reading files.
var copyBuffers = sync.Pool{New: func() any { return new([copyBufferLen]byte) }}

const copyBufferLen = 256 << 10

func getCopyBuffer() *[copyBufferLen]byte {
	b, ok := copyBuffers.Get().(*[copyBufferLen]byte)
	if !ok {
		panic("objectstore: foreign value in the pool of buffers")
	}
	return b
}
