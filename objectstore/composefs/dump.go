package composefs

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"io"
	"strings"

	"golang.org/x/sys/unix"
)

// WriteDump writes the tree in the text form of composefs-dump(5), one line for each name, in the order in which
// [Marshal] numbers inodes: mkcomposefs --from-file makes the same image of it. Errors are those of Marshal for the
// same tree, or of w.
func WriteDump(w io.Writer, root *Inode) error {
	var t writer
	t.bare = true
	if err := t.number(root); err != nil {
		return err
	}
	bw := bufio.NewWriter(w)
	paths := make([]string, len(t.nodes))
	paths[0] = "/"
	var line []byte
	for i := range t.nodes {
		n := &t.nodes[i]
		if i == 0 {
			if _, err := bw.Write(append(appendInode([]byte("/"), n), '\n')); err != nil {
				return err
			}
		}
		dir := strings.TrimSuffix(paths[i], "/") + "/"
		for _, k := range t.kids[n.firstKid:n.endKid] {
			if k.name == "." || k.name == ".." {
				continue
			}
			path := dir + k.name
			line = appendEscaped(line[:0], path, false)
			c := &t.nodes[k.node]
			if paths[k.node] == "" {
				paths[k.node] = path
				line = appendInode(line, c)
			} else {
				line = appendLink(line, c, paths[k.node])
			}
			if _, err := bw.Write(append(line, '\n')); err != nil {
				return err
			}
		}
	}
	return bw.Flush()
}

// appendInode appends all fields of a line after the path.
func appendInode(b []byte, n *node) []byte {
	payload, content := n.Payload, n.Content
	size := n.Size
	if n.kind() == unix.S_IFLNK {
		payload = n.Target
		size = int64(len(payload))
	}
	b = fmt.Appendf(b, " %d %o %d %d %d %d %d.%d", size, n.Mode, n.nlink, n.UID, n.GID, n.Rdev,
		n.Mtime.Sec, n.Mtime.Nsec)
	b = appendOptional(b, payload)
	b = appendOptional(b, string(content))
	b = appendOptional(b, hex.EncodeToString(n.Verity))
	for _, x := range n.Xattrs {
		b = append(b, ' ')
		b = appendEscaped(b, x.Name, true)
		b = append(b, '=')
		b = appendEscaped(b, string(x.Value), false)
	}
	return b
}

// appendLink appends the fields of a hard link to target.
func appendLink(b []byte, n *node, target string) []byte {
	b = fmt.Appendf(b, " 0 @%o 0 0 0 0 0.0", n.Mode)
	b = appendOptional(b, target)
	return append(b, " - -"...)
}

func appendOptional(b []byte, s string) []byte {
	b = append(b, ' ')
	switch s {
	case "":
		return append(b, '-')
	case "-":
		return append(b, `\x2d`...)
	}
	return appendEscaped(b, s, false)
}

// appendEscaped appends s, and escapes everything that ends a field; in an attribute name also '='.
func appendEscaped(b []byte, s string, key bool) []byte {
	for _, c := range []byte(s) {
		switch {
		case c == '\\':
			b = append(b, `\\`...)
		case c == '\n':
			b = append(b, `\n`...)
		case c == '\r':
			b = append(b, `\r`...)
		case c == '\t':
			b = append(b, `\t`...)
		case c <= ' ' || c >= 0x7f || key && c == '=':
			b = fmt.Appendf(b, `\x%02x`, c)
		default:
			b = append(b, c)
		}
	}
	return b
}
