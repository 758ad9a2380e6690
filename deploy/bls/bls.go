// Package bls reads and writes entries of the Boot Loader Specification (type 1), the files in loader/entries that say what
// can be booted, and their names.
//
// The formats are those of the Boot Loader Specification
// (https://uapi-group.org/specifications/specs/boot_loader_specification/), of systemd's boot counting
// (https://systemd.io/AUTOMATIC_BOOT_ASSESSMENT) and of ostree, whose order of fields and whose argument ostree= an entry
// has:
//
//	title Debian GNU/Linux 13 (ostree:0)
//	version 2
//	options root=UUID=x rw ostree=/ostree/boot.1/os/<bootcsum>/0
//	linux /ostree/os-<bootcsum>/vmlinuz-6.12.1
//	initrd /ostree/os-<bootcsum>/initramfs-6.12.1.img
package bls

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
)

// MaxLen is the size of an entry that [Parse] takes.
const MaxLen = 64 << 10

// Entry is a boot loader entry.
type Entry struct {
	Title, Version, Options, DeviceTree, Linux string
	Initrd                                     []string
	Extra                                      []Field // all others, in their order
}

// Field is a field that has no place of its own in [Entry].
type Field struct{ Key, Value string }

// Parse parses an entry. Lines without a value and comments are left out. Of a field that may be there once the last one
// counts, several options are joined. It is an error if the data is too long, or not text: a file that a crash left full of
// zeros is not an empty entry.
func Parse(data []byte) (*Entry, error) {
	if len(data) > MaxLen {
		return nil, fmt.Errorf("parse boot loader entry: more than %d bytes", MaxLen)
	}
	if bytes.IndexByte(data, 0) >= 0 {
		return nil, errors.New("parse boot loader entry: not text")
	}
	e := new(Entry)
	for line := range strings.Lines(string(data)) {
		line = strings.Trim(line, " \t\r\n")
		i := strings.IndexAny(line, " \t")
		if i < 0 || line[0] == '#' {
			continue
		}
		key, value := line[:i], strings.TrimLeft(line[i:], " \t")
		switch key {
		case "title":
			e.Title = value
		case "version":
			e.Version = value
		case "options":
			e.Options = strings.TrimLeft(e.Options+" "+value, " ")
		case "devicetree":
			e.DeviceTree = value
		case "linux":
			e.Linux = value
		case "initrd":
			e.Initrd = append(e.Initrd, value)
		default:
			e.Extra = append(e.Extra, Field{Key: key, Value: value})
		}
	}
	return e, nil
}

// Marshal returns the text of the entry, with the fields in the order in which ostree writes them. A field without a value
// is left out, and so is an extra one whose key is not made of letters, digits, "-" and "_" or is one of the others'.
// Control characters in values become spaces: a title comes from an image, and must not add a line.
func (e *Entry) Marshal() []byte {
	var b bytes.Buffer
	write := func(key, value string) {
		value = strings.Map(func(r rune) rune {
			if r < ' ' || r == 0x7f {
				return ' '
			}
			return r
		}, value)
		if value = strings.Trim(value, " "); value != "" {
			b.WriteString(key + " " + value + "\n")
		}
	}
	write("title", e.Title)
	write("version", e.Version)
	write("options", e.Options)
	write("devicetree", e.DeviceTree)
	write("linux", e.Linux)
	for _, v := range e.Initrd {
		write("initrd", v)
	}
	for _, f := range e.Extra {
		if isExtra(f.Key) {
			write(f.Key, f.Value)
		}
	}
	return b.Bytes()
}

func isExtra(key string) bool {
	switch key {
	case "", "title", "version", "options", "devicetree", "linux", "initrd":
		return false
	}
	return !strings.ContainsFunc(key, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_'
	})
}
