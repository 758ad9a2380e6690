// Package bls reads and writes entries of the Boot Loader Specification (type 1), the files in loader/entries that list
// what can be booted, and their names.
//
// The formats are those of the Boot Loader Specification
// (https://uapi-group.org/specifications/specs/boot_loader_specification/), of systemd's boot counting
// (https://systemd.io/AUTOMATIC_BOOT_ASSESSMENT) and of ostree, from which the order of fields and the argument ostree=
// come:
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

// MaxLen is the largest entry that [Parse] reads. It is far more than kernels and boot loaders take.
const MaxLen = 1 << 20

// Entry is a boot loader entry.
type Entry struct {
	Title, Version, Options, DeviceTree, Linux string
	Initrd                                     []string
	Extra                                      []Field // all others, in order
}

// Field is a field that [Entry] has no member for.
type Field struct{ Key, Value string }

// Parse parses an entry. It ignores comments and lines without a value. If a single field occurs several times the last
// one counts; several options are joined. Data that is too long or not text is an error: a file that a crash filled
// with zeros is not an empty entry.
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

// Marshal returns the text of the entry, with the fields in ostree's order. It leaves out fields without a value, and
// extra fields whose key has characters other than letters, digits, "-" and "_" or is the key of another field. Control
// characters in values become spaces: a title comes from an image, and must not add a line.
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
