package encapsulate

import (
	"encoding/binary"
	"fmt"
	"io"
	"strconv"
	"unicode/utf8"
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

// plain are the attributes of the repository's own files, dirs those of its directories.
var plain, dirs = attrs{mode: 0o644}, attrs{mode: 0o755}

var zeros [2 * block]byte

// A tarWriter writes a tar with the bytes that Rust's crate tar gives it, which archive/tar cannot: GNU headers whose time is
// 0 and whose checksum has seven digits, long names by GNU's extension, and PAX records in their own order. After the first
// error it does nothing.
type tarWriter struct {
	w   io.Writer
	err error
}

func (t *tarWriter) fail(err error) {
	if t.err == nil {
		t.err = err
	}
}

func (t *tarWriter) write(b []byte) {
	if t.err == nil {
		_, t.err = t.w.Write(b)
	}
}

// header writes the header of an entry.
func (t *tarWriter) header(typ byte, name, link string, a attrs, size int64) {
	t.long(typeLongName, name)
	t.long(typeLongLink, link)
	var h [block]byte
	copy(h[:], truncate(name))
	number(h[100:108], uint64(a.mode&0o7777))
	number(h[108:116], uint64(a.uid))
	number(h[116:124], uint64(a.gid))
	number(h[124:136], uint64(size))
	number(h[136:148], 0)
	copy(h[157:], truncate(link))
	copy(h[257:265], "ustar  ")
	t.finish(&h, typ)
}

// truncate returns the beginning of a name that fits into a header, in whole characters.
func truncate(name string) string {
	if len(name) <= nameLen {
		return name
	}
	n := nameLen
	for n > 0 && !utf8.RuneStart(name[n]) {
		n--
	}
	return name[:n]
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
	if len(name) > nameLen {
		t.header(typ, "././@LongLink", "", plain, int64(len(name))+1)
		t.body(append([]byte(name), 0))
	}
}

// number writes an octal number and a NUL, or the number in binary if it is too large for that.
func number(field []byte, n uint64) {
	digits := len(field) - 1
	if n>>(3*digits) == 0 {
		for i := digits - 1; i >= 0; i-- {
			field[i] = '0' + byte(n&7)
			n >>= 3
		}
		field[digits] = 0
		return
	}
	binary.BigEndian.PutUint64(field[len(field)-8:], n)
	field[0] |= 0x80
}

// body writes the content of an entry.
func (t *tarWriter) body(data []byte) {
	t.write(data)
	t.pad(int64(len(data)))
}

// pad fills the last block of an entry's content.
func (t *tarWriter) pad(size int64) { t.write(zeros[:(block-size%block)%block]) }

// pax writes records for the next entry.
func (t *tarWriter) pax(records []byte) {
	var h [block]byte // without name, mode and owner
	number(h[124:136], uint64(len(records)))
	number(h[136:148], 0)
	copy(h[257:265], "ustar\x0000")
	t.finish(&h, typePAX)
	t.body(records)
}

// appendRecord appends a PAX record, which begins with its length.
func appendRecord(b []byte, key string, value []byte) []byte {
	rest := len(key) + len(value) + len(" =\n")
	n := rest + 1
	for n != rest+len(strconv.Itoa(n)) {
		n = rest + len(strconv.Itoa(n))
	}
	b = fmt.Appendf(b, "%d %s=", n, key)
	return append(append(b, value...), '\n')
}

func (t *tarWriter) dir(name string, a attrs) { t.header(typeDir, name, "", a, 0) }

func (t *tarWriter) file(name string, data []byte, a attrs) {
	t.header(typeFile, name, "", a, int64(len(data)))
	t.body(data)
}

// end ends the tar.
func (t *tarWriter) end() { t.write(zeros[:]) }
