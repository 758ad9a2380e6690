package objectstore

import (
	"encoding/hex"
	"fmt"
	"strings"
)

// Checksum names an object: the SHA-256 of a metadata object's bytes, or of a content object's header and content.
type Checksum [32]byte

// String returns the 64 lower-case hexadecimal digits.
func (c Checksum) String() string { return hex.EncodeToString(c[:]) }

// IsZero reports whether c is the zero Checksum, which names no object.
func (c Checksum) IsZero() bool { return c == Checksum{} }

// MarshalText returns the same text as String.
func (c Checksum) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText is ParseChecksum.
func (c *Checksum) UnmarshalText(text []byte) (err error) {
	*c, err = ParseChecksum(string(text))
	return err
}

// ParseChecksum parses 64 lower-case hexadecimal digits; anything else is ErrInvalid.
func ParseChecksum(s string) (Checksum, error) {
	var c Checksum
	if len(s) != 2*len(c) || strings.ContainsAny(s, "ABCDEF") {
		return Checksum{}, invalidf("checksum %.80q: not 64 lower-case hexadecimal digits", s)
	}
	if _, err := hex.Decode(c[:], []byte(s)); err != nil {
		return Checksum{}, invalidf("checksum %q: not 64 lower-case hexadecimal digits", s)
	}
	return c, nil
}

// ObjectType is the type of an object, with ostree's values.
type ObjectType int

// The object types of ostree-core.h.
const (
	TypeFile           ObjectType = 1 // content: a regular file or a symbolic link
	TypeDirTree        ObjectType = 2 // names in a directory
	TypeDirMeta        ObjectType = 3 // owner, mode and xattrs of a directory
	TypeCommit         ObjectType = 4
	TypeTombstone      ObjectType = 5 // remains of a deleted commit, under its name
	TypeCommitMeta     ObjectType = 6 // signatures of a commit, under its name
	TypePayloadLink    ObjectType = 7
	TypeFileXattrs     ObjectType = 8
	TypeFileXattrsLink ObjectType = 9
)

var extensions = [...]string{
	TypeFile:           "file",
	TypeDirTree:        "dirtree",
	TypeDirMeta:        "dirmeta",
	TypeCommit:         "commit",
	TypeTombstone:      "tombstone-commit",
	TypeCommitMeta:     "commitmeta",
	TypePayloadLink:    "payload-link",
	TypeFileXattrs:     "file-xattrs",
	TypeFileXattrsLink: "file-xattrs-link",
}

// Ext returns the file name extension in a bare repository, without a dot.
func (t ObjectType) Ext() string {
	if t <= 0 || int(t) >= len(extensions) {
		return fmt.Sprintf("type-%d", int(t))
	}
	return extensions[t]
}

// String returns the extension.
func (t ObjectType) String() string { return t.Ext() }

func typeOfExt(ext string) (ObjectType, bool) {
	for t, e := range extensions {
		if e == ext && e != "" {
			return ObjectType(t), true
		}
	}
	return 0, false
}

// hashed reports whether objects of the type are named after the SHA-256 of their bytes.
func (t ObjectType) hashed() bool { return t == TypeDirTree || t == TypeDirMeta || t == TypeCommit }

// LoosePath returns the path of an object below objects/: "ab/cdef….file".
func LoosePath(sum Checksum, t ObjectType) string {
	var buf [80]byte
	b := append(hex.AppendEncode(buf[:0], sum[:1]), '/')
	b = append(hex.AppendEncode(b, sum[1:]), '.')
	return string(append(b, t.Ext()...))
}

// ParseLoosePath is the inverse of LoosePath; anything else is ErrInvalid.
func ParseLoosePath(name string) (ObjectName, error) {
	const digits = 2 // in front of the slash
	if dir, base, ok := strings.Cut(name, "/"); ok && len(dir) == digits && !strings.ContainsAny(dir, "ABCDEF") {
		var first [1]byte
		if _, err := hex.Decode(first[:], []byte(dir)); err == nil {
			if sum, t, ok := parseLooseName(first[0], base); ok {
				return ObjectName{t, sum}, nil
			}
		}
	}
	return ObjectName{}, invalidf("path %.100q: not that of an object", name)
}

// looseName returns the last component of LoosePath.
func looseName(sum *Checksum, t ObjectType) string {
	var buf [80]byte
	n := hex.Encode(buf[:], sum[1:])
	n += copy(buf[n:], ".")
	n += copy(buf[n:], t.Ext())
	return string(buf[:n])
}

// parseLooseName is the inverse of looseName for the directory whose name is first in hexadecimal.
func parseLooseName(first byte, name string) (Checksum, ObjectType, bool) {
	sum := Checksum{first}
	const digits = 62
	if len(name) < digits+2 || name[digits] != '.' {
		return sum, 0, false
	}
	t, ok := typeOfExt(name[digits+1:])
	if !ok || strings.ContainsAny(name[:digits], "ABCDEF") {
		return sum, 0, false
	}
	var buf [digits]byte
	copy(buf[:], name)
	_, err := hex.Decode(sum[1:], buf[:])
	return sum, t, err == nil
}

// ObjectName names one object: objects of different types can have the same checksum.
type ObjectName struct {
	Type     ObjectType
	Checksum Checksum
}

// String returns the name in ostree's form: "<64 hex>.file".
func (n ObjectName) String() string { return n.Checksum.String() + "." + n.Type.Ext() }

// ParseObjectName is the inverse of [ObjectName.String]; anything else is ErrInvalid.
func ParseObjectName(s string) (ObjectName, error) {
	digits, ext, ok := strings.Cut(s, ".")
	if !ok {
		return ObjectName{}, invalidf("object name %.80q: no type", s)
	}
	sum, err := ParseChecksum(digits)
	if err != nil {
		return ObjectName{}, err
	}
	typ, ok := typeOfExt(ext)
	if !ok {
		return ObjectName{}, invalidf("object name %.80q: no such type", s)
	}
	return ObjectName{typ, sum}, nil
}
