package objectstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/gvariant"
)

// DirMeta holds owner, mode and extended attributes of a directory: the object type dirmeta.
type DirMeta struct {
	UID, GID uint32
	Mode     uint32 // S_IFDIR and the permission bits
	Xattrs   []Xattr
}

// Validate returns ErrInvalid if m cannot be stored as a dirmeta object.
func (m *DirMeta) Validate() error {
	if m.Mode&^modeBits != unix.S_IFDIR {
		return invalidf("mode %o: not a directory", m.Mode)
	}
	if m.UID == noID || m.GID == noID {
		return invalidf("owner %d:%d", m.UID, m.GID)
	}
	return validateXattrs(m.Xattrs)
}

// Marshal returns the object's bytes, a GVariant (uuua(ayay)) with big-endian integers. It validates m.
func (m *DirMeta) Marshal() ([]byte, error) {
	if err := m.Validate(); err != nil {
		return nil, err
	}
	var b []byte
	b = binary.BigEndian.AppendUint32(b, m.UID)
	b = binary.BigEndian.AppendUint32(b, m.GID)
	b = binary.BigEndian.AppendUint32(b, m.Mode)
	return appendXattrs(b, m.Xattrs), nil
}

var dirMetaType = gvariant.MustType("(uuua(ayay))")

// ParseDirMeta parses a dirmeta object; anything else is ErrCorrupt. The xattrs may be unsorted and refer to data.
// Allocations stay below 16 times len(data).
func ParseDirMeta(data []byte) (*DirMeta, error) {
	m, err := parseDirMeta(data)
	return parsed("dirmeta", m, err)
}

func parseDirMeta(data []byte) (*DirMeta, error) {
	var buf [4][]byte
	v, err := dirMetaType.Members(data, buf[:0])
	if err != nil {
		return nil, err
	}
	m := &DirMeta{
		UID:  binary.BigEndian.Uint32(v[0]),
		GID:  binary.BigEndian.Uint32(v[1]),
		Mode: binary.BigEndian.Uint32(v[2]),
	}
	if m.Mode&^modeBits != unix.S_IFDIR {
		return nil, corruptf("mode %o", m.Mode)
	}
	m.Xattrs, err = parseXattrs(v[3])
	return m, err
}

// parsed turns the error of a parser into ErrCorrupt.
func parsed[T any](what string, v *T, err error) (*T, error) {
	if err != nil {
		return nil, &parseError{what: what, err: err}
	}
	return v, nil
}

// parseError makes the cause of a parser's failure ErrCorrupt, whatever class it had itself.
type parseError struct {
	what string
	err  error
}

func (e *parseError) Error() string        { return fmt.Sprintf("parse %s: %v", e.what, e.err) }
func (e *parseError) Is(target error) bool { return target == ErrCorrupt }
func (e *parseError) DataLoss()            {}

// checkCount rejects a number of elements that cannot fit into size bytes, before memory is allocated for them.
func checkCount(n, minLen, size int) error {
	if n > size/minLen {
		return corruptf("%d elements in %d bytes", n, size)
	}
	return nil
}

// TreeFile is a file or symbolic link in a DirTree.
type TreeFile struct {
	Name     string
	Checksum Checksum // of the content object
}

// TreeDir is a directory in a DirTree.
type TreeDir struct {
	Name string
	Tree Checksum // dirtree
	Meta Checksum // dirmeta
}

// DirTree lists the names in a directory: the object type dirtree. Parsed ones are sorted bytewise by name.
type DirTree struct {
	Files []TreeFile
	Dirs  []TreeDir
}

// TreeEntry is a directory or a file in a tree, without its name.
type TreeEntry struct {
	Dir      bool
	Checksum Checksum // of the dirtree of a directory, of the content object of a file
	Meta     Checksum // dirmeta of a directory
}

// Entry returns the directory as an entry.
func (d *TreeDir) Entry() TreeEntry { return TreeEntry{Dir: true, Checksum: d.Tree, Meta: d.Meta} }

// Entry returns the file as an entry.
func (f *TreeFile) Entry() TreeEntry { return TreeEntry{Checksum: f.Checksum} }

// Lookup returns the entry of a name in t, which must be sorted.
func (t *DirTree) Lookup(name string) (TreeEntry, bool) {
	if i, ok := slices.BinarySearchFunc(t.Dirs, name, func(d TreeDir, name string) int { return strings.Compare(d.Name, name) }); ok {
		return t.Dirs[i].Entry(), true
	}
	if i, ok := slices.BinarySearchFunc(t.Files, name, func(f TreeFile, name string) int { return strings.Compare(f.Name, name) }); ok {
		return t.Files[i].Entry(), true
	}
	return TreeEntry{}, false
}

// Lookup returns the entry at a path below a directory; "." is the directory itself. It follows no symbolic links. An
// absent name is ErrNoEntry, an absent or damaged object along the path an [ObjectError].
func (r *Repo) Lookup(dir TreeEntry, name string) (TreeEntry, error) {
	if name == "." {
		return dir, nil
	}
	e := dir
	for part := range strings.SplitSeq(name, "/") {
		if !e.Dir {
			return TreeEntry{}, noEntryError{name}
		}
		t, err := r.DirTree(e.Checksum)
		if err != nil {
			return TreeEntry{}, err
		}
		var ok bool
		if e, ok = t.Lookup(part); !ok {
			return TreeEntry{}, noEntryError{name}
		}
	}
	return e, nil
}

// ValidateName returns ErrInvalid if name cannot be a file name in a DirTree: valid UTF-8 of 1 to 255 bytes, not "." or
// "..", without slash and NUL.
func ValidateName(name string) error {
	if name == "" || len(name) > maxNameLen || name == "." || name == ".." || strings.IndexByte(name, '/') >= 0 ||
		!validString(name) {
		return invalidf("file name %.300q", name)
	}
	return nil
}

func compareFiles(a, b TreeFile) int { return strings.Compare(a.Name, b.Name) }
func compareDirs(a, b TreeDir) int   { return strings.Compare(a.Name, b.Name) }

// Marshal returns the object's bytes, a GVariant (a(say)a(sayay)). It sorts copies of unsorted lists; a bad or
// duplicate name is ErrInvalid.
func (t *DirTree) Marshal() ([]byte, error) {
	files, dirs := t.Files, t.Dirs
	if !slices.IsSortedFunc(files, compareFiles) {
		files = slices.SortedFunc(slices.Values(files), compareFiles)
	}
	if !slices.IsSortedFunc(dirs, compareDirs) {
		dirs = slices.SortedFunc(slices.Values(dirs), compareDirs)
	}
	sorted := DirTree{Files: files, Dirs: dirs}
	if err := sorted.validate(); err != nil {
		return nil, err
	}
	const perFile, perDir = 1 + 32 + 2 + 4, 1 + 64 + 4 + 4
	size := len(files)*perFile + len(dirs)*perDir + 4
	for i := range files {
		size += len(files[i].Name)
	}
	for i := range dirs {
		size += len(dirs[i].Name)
	}
	b := gvariant.AppendArray(make([]byte, 0, size), 1, len(files), func(b []byte, i int) []byte {
		start := len(b)
		b = gvariant.AppendString(b, files[i].Name)
		end := len(b)
		b = append(b, files[i].Checksum[:]...)
		return gvariant.AppendOffsets(b, start, end)
	})
	endFiles := len(b)
	b = gvariant.AppendArray(b, 1, len(dirs), func(b []byte, i int) []byte {
		start := len(b)
		b = gvariant.AppendString(b, dirs[i].Name)
		endName := len(b)
		b = append(b, dirs[i].Tree[:]...)
		endTree := len(b)
		b = append(b, dirs[i].Meta[:]...)
		return gvariant.AppendOffsets(b, start, endTree, endName)
	})
	return gvariant.AppendOffsets(b, 0, endFiles), nil
}

// validate checks the names of a tree and their order: strictly increasing in each list, none in both.
func (t *DirTree) validate() error {
	for i := range t.Files {
		if err := ValidateName(t.Files[i].Name); err != nil {
			return err
		}
		if i > 0 && t.Files[i-1].Name >= t.Files[i].Name {
			return invalidf("file name %q: not sorted, or twice in one directory", t.Files[i].Name)
		}
	}
	f := 0
	for i := range t.Dirs {
		name := t.Dirs[i].Name
		if err := ValidateName(name); err != nil {
			return err
		}
		if i > 0 && t.Dirs[i-1].Name >= name {
			return invalidf("file name %q: not sorted, or twice in one directory", name)
		}
		for f < len(t.Files) && t.Files[f].Name < name {
			f++
		}
		if f < len(t.Files) && t.Files[f].Name == name {
			return invalidf("file name %q: both a file and a directory", name)
		}
	}
	return nil
}

var (
	dirTreeType  = gvariant.MustType("(a(say)a(sayay))")
	treeFileType = gvariant.MustType("(say)")
	treeDirType  = gvariant.MustType("(sayay)")
	filesType    = gvariant.MustType("a(say)")
	dirsType     = gvariant.MustType("a(sayay)")
	stringType   = gvariant.MustType("s")
)

// The minimal bytes of an entry and its offset, with a name of one character.
const (
	minFileLen = 2 + 32 + 1 + 1
	minDirLen  = 2 + 32 + 32 + 2 + 1
)

// ParseDirTree parses a dirtree object; anything else is ErrCorrupt. Allocations stay below 16 times len(data).
func ParseDirTree(data []byte) (*DirTree, error) {
	t, err := parseDirTree(data)
	return parsed("dirtree", t, err)
}

func parseDirTree(data []byte) (*DirTree, error) {
	var buf [2][]byte
	v, err := dirTreeType.Members(data, buf[:0])
	if err != nil {
		return nil, err
	}
	files, err := filesType.Elements(v[0])
	if err != nil {
		return nil, err
	}
	dirs, err := dirsType.Elements(v[1])
	if err != nil {
		return nil, err
	}
	if err := errors.Join(checkCount(files.Len(), minFileLen, len(v[0])), checkCount(dirs.Len(), minDirLen, len(v[1]))); err != nil {
		return nil, err
	}
	t := &DirTree{}
	if n := files.Len(); n > 0 {
		t.Files = make([]TreeFile, n)
	}
	if n := dirs.Len(); n > 0 {
		t.Dirs = make([]TreeDir, n)
	}
	var m [3][]byte
	for i := range t.Files {
		if err := t.Files[i].parse(files.At(i), m[:0]); err != nil {
			return nil, err
		}
	}
	for i := range t.Dirs {
		if err := t.Dirs[i].parse(dirs.At(i), m[:0]); err != nil {
			return nil, err
		}
	}
	return t, t.validate()
}

func (f *TreeFile) parse(data []byte, buf [][]byte) error {
	m, err := treeFileType.Members(data, buf)
	if err != nil {
		return err
	}
	if f.Name, err = parseString(m[0]); err != nil {
		return err
	}
	return f.Checksum.set(m[1])
}

func (d *TreeDir) parse(data []byte, buf [][]byte) error {
	m, err := treeDirType.Members(data, buf)
	if err != nil {
		return err
	}
	if d.Name, err = parseString(m[0]); err != nil {
		return err
	}
	if err := d.Tree.set(m[1]); err != nil {
		return err
	}
	return d.Meta.set(m[2])
}

func parseString(data []byte) (string, error) {
	if err := stringType.Check(data); err != nil {
		return "", err
	}
	return string(data[:len(data)-1]), nil
}

// set sets c to a checksum stored as 32 bytes.
func (c *Checksum) set(b []byte) error {
	if len(b) != len(c) {
		return corruptf("checksum of %d bytes", len(b))
	}
	copy(c[:], b)
	return nil
}
