package composefs

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxDumpLine is above the longest line: 256 KiB of attributes, each byte escaped in four.
const maxDumpLine = 4 << 20

// parseDump reads a tree in the text form of composefs-dump(5). Parents come before their children; a hard link may
// come before its target. It ignores link counts: Marshal derives them. Errors other than r's wrap [ErrInvalid] and
// name the line.
//
// [Marshal] checks the tree.
func parseDump(r io.Reader) (*Inode, error) {
	p := dumpParser{inodes: map[string]*Inode{}}
	br := bufio.NewReader(r)
	for number := 1; ; number++ {
		line, err := readLine(br)
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("read dump line %d: %w", number, err)
		}
		if len(line) > 0 {
			if err := p.line(line); err != nil {
				return nil, fmt.Errorf("parse dump line %d: %w", number, err)
			}
		}
		if err != nil {
			break
		}
	}
	return p.finish()
}

// readLine returns a line without its end, and io.EOF with the last one.
func readLine(br *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := br.ReadSlice('\n')
		if len(line)+len(part) > maxDumpLine {
			return nil, fmt.Errorf("%w: more than %d bytes", ErrInvalid, maxDumpLine)
		}
		line = append(line, part...)
		if !errors.Is(err, bufio.ErrBufferFull) {
			return bytes.TrimSuffix(line, []byte{'\n'}), err
		}
	}
}

type dumpParser struct {
	root   *Inode
	inodes map[string]*Inode // by path
	links  []dumpLink
}

type dumpLink struct{ path, target string }

func (p *dumpParser) line(line []byte) error {
	f := strings.Split(string(line), " ")
	if len(f) < fieldXattrs {
		return fmt.Errorf("%w: %d fields", ErrInvalid, len(f))
	}
	path, err := unescape(f[fieldPath])
	if err != nil {
		return err
	}
	if _, dup := p.inodes[path]; dup {
		return fmt.Errorf("%w: path %q comes twice", ErrInvalid, path)
	}
	if strings.HasPrefix(f[fieldMode], "@") {
		target, err := unescape(f[fieldPayload])
		if err != nil {
			return err
		}
		p.inodes[path] = nil
		p.links = append(p.links, dumpLink{path, target})
		return nil
	}
	inode, err := parseInode(f)
	if err != nil {
		return fmt.Errorf("path %q: %w", path, err)
	}
	p.inodes[path] = inode
	if path == "/" {
		p.root = inode
		return nil
	}
	return p.enter(path, inode)
}

// enter adds an inode to its parent.
func (p *dumpParser) enter(path string, inode *Inode) error {
	slash := strings.LastIndexByte(path, '/')
	if slash < 0 {
		return fmt.Errorf("%w: path %q is not absolute", ErrInvalid, path)
	}
	parent := p.inodes[cmp.Or(path[:slash], "/")]
	if parent == nil || !parent.IsDir() {
		return fmt.Errorf("%w: path %q has no parent directory", ErrInvalid, path)
	}
	parent.Entries = append(parent.Entries, Entry{path[slash+1:], inode})
	return nil
}

func (p *dumpParser) finish() (*Inode, error) {
	if p.root == nil {
		return nil, fmt.Errorf("parse dump: %w: no root", ErrInvalid)
	}
	for _, l := range p.links {
		target := p.inodes[l.target]
		if target == nil {
			return nil, fmt.Errorf("parse dump: %w: link %q to %q, which is not a file", ErrInvalid, l.path, l.target)
		}
		if err := p.enter(l.path, target); err != nil {
			return nil, fmt.Errorf("parse dump: %w", err)
		}
	}
	for _, i := range p.inodes {
		if i != nil {
			slices.SortFunc(i.Entries, func(a, b Entry) int { return cmp.Compare(a.Name, b.Name) })
		}
	}
	return p.root, nil
}

func parseInode(f []string) (*Inode, error) {
	var n numbers
	i := &Inode{
		Mode: uint32(n.parse(f[fieldMode], 8, math.MaxUint32)),
		UID:  uint32(n.parse(f[fieldUID], 10, math.MaxUint32)),
		GID:  uint32(n.parse(f[fieldGID], 10, math.MaxUint32)),
		Size: int64(n.parse(f[fieldSize], 10, math.MaxInt64)),
	}
	rdev := n.parse(f[fieldRdev], 10, math.MaxUint64)
	n.parse(f[fieldNlink], 10, math.MaxUint32)
	sec, nsec, _ := strings.Cut(f[fieldMtime], ".")
	i.Mtime = unix.Timespec{Sec: n.parseSigned(sec), Nsec: int64(n.parse(cmp.Or(nsec, "0"), 10, 999999999))}
	if n.err != nil {
		return nil, n.err
	}
	var (
		fields [3]string
		err    error
	)
	for k, s := range f[fieldPayload:fieldXattrs] {
		if s == "-" {
			continue
		}
		if fields[k], err = unescape(s); err != nil {
			return nil, err
		}
	}
	switch i.kind() {
	case unix.S_IFLNK:
		i.Target, i.Size = fields[0], 0
	case unix.S_IFREG:
		i.Payload = fields[0]
		if fields[1] != "" {
			i.Content = []byte(fields[1])
		}
		if fields[2] != "" {
			if i.Verity, err = hex.DecodeString(fields[2]); err != nil {
				return nil, fmt.Errorf("%w: digest %q", ErrInvalid, fields[2])
			}
		}
	case unix.S_IFCHR, unix.S_IFBLK:
		i.Rdev, i.Size = rdev, 0
	default:
		i.Size = 0 // of a directory: as the file system reported
	}
	i.Xattrs, err = parseXattrs(f[fieldXattrs:])
	return i, err
}

func parseXattrs(fields []string) ([]Xattr, error) {
	var list []Xattr
	for _, s := range fields {
		if s == "" {
			continue
		}
		key, value, _ := strings.Cut(s, "=")
		name, err := unescape(key)
		if err != nil {
			return nil, err
		}
		if value, err = unescape(value); err != nil {
			return nil, err
		}
		list = append(list, Xattr{name, []byte(value)})
	}
	slices.SortFunc(list, func(a, b Xattr) int { return cmp.Compare(a.Name, b.Name) })
	return list, nil
}

// numbers parses numbers until one is wrong.
type numbers struct{ err error }

func (n *numbers) parse(s string, base int, limit uint64) uint64 {
	v, err := strconv.ParseUint(s, base, 64)
	if err != nil || v > limit {
		n.err = cmp.Or(n.err, fmt.Errorf("%w: number %q", ErrInvalid, s))
	}
	return v
}

func (n *numbers) parseSigned(s string) int64 {
	v, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		n.err = cmp.Or(n.err, fmt.Errorf("%w: number %q", ErrInvalid, s))
	}
	return v
}

// unescape undoes appendEscaped.
func unescape(s string) (string, error) {
	if strings.IndexByte(s, '\\') < 0 {
		return s, nil
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			b = append(b, s[i])
			continue
		}
		i++
		c, width, ok := unescapeOne(s[min(i, len(s)):])
		if !ok {
			return "", fmt.Errorf("%w: escape in %q", ErrInvalid, s)
		}
		b = append(b, c)
		i += width - 1
	}
	return string(b), nil
}

func unescapeOne(s string) (c byte, width int, ok bool) {
	if s == "" {
		return 0, 0, false
	}
	switch s[0] {
	case '\\':
		return '\\', 1, true
	case 'n':
		return '\n', 1, true
	case 'r':
		return '\r', 1, true
	case 't':
		return '\t', 1, true
	case 'x':
		if len(s) < 3 {
			return 0, 0, false
		}
		v, err := strconv.ParseUint(s[1:3], 16, 8)
		return byte(v), 3, err == nil
	}
	return 0, 0, false
}

// The fields of a line.
const (
	fieldPath = iota
	fieldSize
	fieldMode
	fieldNlink
	fieldUID
	fieldGID
	fieldRdev
	fieldMtime
	fieldPayload
	fieldContent
	fieldDigest
	fieldXattrs
)
