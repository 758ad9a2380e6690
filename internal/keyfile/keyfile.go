// Package keyfile reads, edits and writes the text of GKeyFile, GLib's form of an ini file. ostree uses it for the
// configuration of a repository and the origin of a deployment:
//
//	# comment
//	[group]
//	key=value
//
// Parsing and writing a file keeps every byte: comments, blank lines, the order, and unknown groups and keys. An edit
// changes only the lines that it must change.
//
// The format is what GLib reads and writes with g_key_file_load_from_data and g_key_file_set_string
// (https://docs.gtk.org/glib/struct.KeyFile.html): space around keys and before values is not part of them, space after
// values is. A group that occurs twice is one group. If a key occurs twice, the last one counts. Lists and translated
// keys get no special treatment.
package keyfile

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// MaxLen is the longest text that [Parse] reads.
const MaxLen = 1 << 20

// A SyntaxError reports where a text is not a key file.
type SyntaxError struct {
	Line   int // from 1
	Reason string
}

func (e *SyntaxError) Error() string { return fmt.Sprintf("line %d: %s", e.Line, e.Reason) }

// File is a key file. The zero File is empty and ready for use. Several goroutines may read a file that none changes.
type File struct {
	lines []line
}

// A line with its line feed, and its meaning.
type line struct {
	text  string
	kind  kind
	group string // that it belongs to, "" above the first: that of the header above, or directly below a comment
	key   string
	value string // unescaped
}

type kind uint8

const (
	blank kind = iota
	comment
	header
	pair
)

// space is the white space that GLib skips: ASCII only.
const space = " \t\r\f"

// Parse parses a key file. An error is a *[SyntaxError].
func Parse(text []byte) (*File, error) {
	if len(text) > MaxLen {
		return nil, &SyntaxError{Line: 1, Reason: fmt.Sprintf("text of more than %d bytes", MaxLen)}
	}
	f := new(File)
	group := ""
	for raw := range strings.Lines(string(text)) {
		l, reason := parseLine(raw, group)
		if reason != "" {
			return nil, &SyntaxError{Line: len(f.lines) + 1, Reason: reason}
		}
		group = l.group
		f.lines = append(f.lines, l)
	}
	for i := len(f.lines) - 2; i >= 0; i-- {
		if below := f.lines[i+1]; f.lines[i].kind == comment && (below.kind == comment || below.kind == header) {
			f.lines[i].group = below.group
		}
	}
	return f, nil
}

// parseLine parses a line in a group. A reason explains why it is invalid.
func parseLine(raw, group string) (l line, reason string) {
	l = line{text: raw, group: group}
	s := strings.TrimLeft(strings.TrimSuffix(strings.TrimSuffix(raw, "\n"), "\r"), space)
	switch {
	case strings.Trim(s, space) == "":
	case s[0] == '#':
		l.kind = comment
	case !utf8.ValidString(s) || strings.IndexByte(s, 0) >= 0:
		return l, "not UTF-8"
	case s[0] == '[':
		name, ok := strings.CutSuffix(strings.TrimRight(s[1:], space), "]")
		if !ok || !isGroup(name) {
			return l, fmt.Sprintf("not a group: %.80q", s)
		}
		l.kind, l.group = header, name
	default:
		key, value, ok := strings.Cut(s, "=")
		key = strings.TrimRight(key, space)
		if !ok || key == "" || group == "" {
			return l, fmt.Sprintf("neither a group nor a key of one: %.80q", s)
		}
		l.kind, l.key = pair, key
		if l.value, ok = unescape(strings.TrimLeft(value, " \t\r")); !ok {
			return l, "value ends in a backslash"
		}
	}
	return l, ""
}

func isControl(r rune) bool { return r < ' ' || r == 0x7f }

func isGroup(name string) bool {
	return name != "" && !strings.ContainsAny(name, "[]") && !strings.ContainsFunc(name, isControl)
}

func isKey(key string) bool {
	return key != "" && key[0] != '#' && key[0] != '[' && !strings.Contains(key, "=") && strings.Trim(key, space) == key &&
		!strings.ContainsFunc(key, isControl)
}

// unescape resolves the escapes of a value. An escape that GLib does not define stays as it is: a list separator's is
// for the reader of the list.
func unescape(s string) (value string, ok bool) {
	if strings.IndexByte(s, '\\') < 0 {
		return s, true
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			b.WriteByte(s[i])
			continue
		}
		if i++; i == len(s) {
			return "", false
		}
		switch s[i] {
		case 's':
			b.WriteByte(' ')
		case 'n':
			b.WriteByte('\n')
		case 't':
			b.WriteByte('\t')
		case 'r':
			b.WriteByte('\r')
		case '\\':
			b.WriteByte('\\')
		default:
			b.WriteByte('\\')
			b.WriteByte(s[i])
		}
	}
	return b.String(), true
}

// escape returns a value as GLib writes it.
func escape(value string) string {
	var b strings.Builder
	leading := true
	for _, c := range []byte(value) {
		switch {
		case c == ' ' && leading:
			b.WriteString(`\s`)
		case c == '\t' && leading:
			b.WriteString(`\t`)
		case c == '\n':
			b.WriteString(`\n`)
		case c == '\r':
			b.WriteString(`\r`)
		case c == '\\':
			b.WriteString(`\\`)
		default:
			b.WriteByte(c)
		}
		leading = leading && (c == ' ' || c == '\t')
	}
	return b.String()
}

// find returns the index of the line that counts for a key, -1 if there is none.
func (f *File) find(group, key string) int {
	for i, l := range slices.Backward(f.lines) {
		if l.kind == pair && l.group == group && l.key == key {
			return i
		}
	}
	return -1
}

// HasGroup reports whether there is a group, perhaps without keys.
func (f *File) HasGroup(group string) bool {
	return slices.ContainsFunc(f.lines, func(l line) bool { return l.kind == header && l.group == group })
}

// Get returns the value of a key, with its escapes resolved.
func (f *File) Get(group, key string) (string, bool) {
	i := f.find(group, key)
	if i < 0 {
		return "", false
	}
	return f.lines[i].value, true
}

// Bool returns the value of a key that is true or false (also 1 or 0), or fallback without that key.
func (f *File) Bool(group, key string, fallback bool) (bool, error) {
	v, ok := f.Get(group, key)
	if !ok {
		return fallback, nil
	}
	switch strings.TrimRight(v, space) {
	case "true", "1":
		return true, nil
	case "false", "0":
		return false, nil
	}
	return false, fmt.Errorf("%s in group %s is %.20q, neither true nor false", key, group, v)
}

// Set sets the value of a key as [File.Get] returns it: in the line that counts, else at the end of the group, else in
// a new group at the end of the file. NUL and invalid UTF-8 cannot be written; they become U+FFFD. It panics if group
// or key cannot be names.
func (f *File) Set(group, key, value string) {
	if !isGroup(group) || !isKey(key) {
		panic(fmt.Sprintf("keyfile: key %q of group %q cannot be written", key, group))
	}
	value = strings.ToValidUTF8(strings.ReplaceAll(value, "\x00", "\uFFFD"), "\uFFFD")
	l := line{text: key + "=" + escape(value) + "\n", kind: pair, group: group, key: key, value: value}
	if i := f.find(group, key); i >= 0 {
		f.lines[i] = l
		return
	}
	if n := len(f.lines); n > 0 && !strings.HasSuffix(f.lines[n-1].text, "\n") {
		f.lines[n-1].text += "\n"
	}
	for i, old := range slices.Backward(f.lines) {
		if old.group == group && (old.kind == pair || old.kind == header) {
			f.lines = slices.Insert(f.lines, i+1, l)
			return
		}
	}
	if n := len(f.lines); n > 0 && f.lines[n-1].kind != blank {
		f.lines = append(f.lines, line{text: "\n", group: f.lines[n-1].group})
	}
	f.lines = append(f.lines, line{text: "[" + group + "]\n", kind: header, group: group}, l)
}

// Remove removes all lines of a key in a group. A comment above stays.
func (f *File) Remove(group, key string) {
	f.lines = slices.DeleteFunc(f.lines, func(l line) bool { return l.kind == pair && l.group == group && l.key == key })
}

// RemoveGroup removes a group with its lines, and the comment directly above it.
func (f *File) RemoveGroup(group string) {
	if group == "" { // the lines above the first group
		return
	}
	f.lines = slices.DeleteFunc(f.lines, func(l line) bool { return l.group == group })
	for len(f.lines) > 0 && f.lines[len(f.lines)-1].kind == blank {
		f.lines = f.lines[:len(f.lines)-1]
	}
}

// Marshal returns the text.
func (f *File) Marshal() []byte {
	var b []byte
	for _, l := range f.lines {
		b = append(b, l.text...)
	}
	return b
}

// Clone returns a copy that can be changed without changing f.
func (f *File) Clone() *File { return &File{lines: slices.Clone(f.lines)} }
