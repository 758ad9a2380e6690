package encapsulate

import (
	"encoding/binary"
	"fmt"
	"io"
	"strings"
)

const (
	block   = 512
	nameLen = 100
)

// Types of entries.
const (
	typeFile     = '0'
	typeLink     = '1'
	typeSymlink  = '2'
	typeDir      = '5'
	typeLongName = 'L'
	typeLongLink = 'K'
	typePAX      = 'x'
)

// attrs are owner and mode of an entry.
type attrs struct{ uid, gid, mode uint32 }

// plain are the attributes of everything in the repository but the files themselves.
var plain = attrs{mode: 0o644}

// A tarWriter writes a tar, byte for byte as Rust's crate tar does. After the first error it does nothing.
type tarWriter struct {
	w   io.Writer
	err error
}

func (t *tarWriter) write(b []byte) {
	if t.err == nil {
		_, t.err = t.w.Write(b)
	}
}

// header writes the header of an entry. Its time is 0.
func (t *tarWriter) header(typ byte, name, link string, a attrs, size int64) {
	t.long(typeLongName, name)
	t.long(typeLongLink, link)
	var h [block]byte
	copy(h[:nameLen], name)
	number(h[100:108], uint64(a.mode&0o7777))
	number(h[108:116], uint64(a.uid))
	number(h[116:124], uint64(a.gid))
	number(h[124:136], uint64(size))
	number(h[136:148], 0)
	copy(h[157:157+nameLen], link)
	copy(h[257:265], "ustar  ")
	t.finish(&h, typ)
}

// finish writes a header that lacks only type and checksum.
func (t *tarWriter) finish(h *[block]byte, typ byte) {
	h[156] = typ
	copy(h[148:156], "        ")
	sum := uint64(0)
	for _, b := range h {
		sum += uint64(b)
	}
	number(h[148:156], sum)
	t.write(h[:])
}

// long writes an entry with a name that does not fit into a header.
func (t *tarWriter) long(typ byte, name string) {
	if len(name) <= nameLen {
		return
	}
	t.header(typ, "././@LongLink", "", plain, int64(len(name))+1)
	t.data(strings.NewReader(name+"\x00"), int64(len(name))+1)
}

// number writes an octal number and a NUL, or the number in binary if it is too large for that.
func number(field []byte, n uint64) {
	digits := len(field) - 1
	if n < 1<<(3*digits) {
		copy(field, fmt.Sprintf("%0*o\x00", digits, n))
		return
	}
	binary.BigEndian.PutUint64(field[len(field)-8:], n)
	field[0] |= 0x80
}

// data writes the content of an entry.
func (t *tarWriter) data(r io.Reader, size int64) {
	if t.err != nil {
		return
	}
	if _, t.err = io.CopyN(t.w, r, size); t.err == nil {
		t.write(make([]byte, (block-size%block)%block))
	}
}

// pax writes extended attributes for the next entry.
func (t *tarWriter) pax(records []byte) {
	var h [block]byte // without name, mode and owner
	number(h[124:136], uint64(len(records)))
	number(h[136:148], 0)
	copy(h[257:265], "ustar\x0000")
	t.finish(&h, typePAX)
	t.data(strings.NewReader(string(records)), int64(len(records)))
}

// paxRecord returns a record with its length.
func paxRecord(key, value string) string {
	rest := " " + key + "=" + value + "\n"
	n := len(rest) + 1
	for n != len(fmt.Sprint(n))+len(rest) {
		n = len(fmt.Sprint(n)) + len(rest)
	}
	return fmt.Sprint(n) + rest
}

func (t *tarWriter) dir(name string, a attrs) { t.header(typeDir, name, "", a, 0) }

func (t *tarWriter) file(name string, data []byte, a attrs) {
	t.header(typeFile, name, "", a, int64(len(data)))
	t.data(strings.NewReader(string(data)), int64(len(data)))
}

// end ends the tar.
func (t *tarWriter) end() error {
	t.write(make([]byte, 2*block))
	return t.err
}
