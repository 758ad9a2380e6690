package layer

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"time"
)

const tarBlock = 512

// tarEntries reads the entries of a tar. It parses headers of the common form itself, which is one block of ustar or GNU
// tar with octal numbers, and leaves all others to archive/tar. Entries, contents and errors are those of a [tar.Reader];
// FuzzEntries compares them. Of a header that it parses itself it sets what a layer uses: no names of owners, and no
// format.
type tarEntries struct {
	src    *digester
	record func([]byte) error // gets all bytes but those of take; may be nil

	common tar.Header  // the current entry, if its header is common
	left   int64       // bytes of the current entry's content that were not read
	ext    *tar.Reader // reads the current entry if it is sparse: the tar has its content in another form
}

// next returns the next entry, which is valid until the next call. At the end of the tar it returns io.EOF.
func (t *tarEntries) next() (*tar.Header, error) {
	if t.ext == nil {
		if err := t.skip(); err != nil {
			return nil, err
		}
		b, err := t.src.peek(tarBlock)
		if err != nil {
			return nil, err
		}
		if len(b) == tarBlock && t.parse(b) {
			return &t.common, t.pass(tarBlock)
		}
		t.ext = tar.NewReader(t)
	}
	hdr, err := t.ext.Next()
	if err != nil || isSparse(hdr) {
		return hdr, err
	}
	t.ext = nil
	t.begin(hdr)
	return hdr, nil
}

// begin makes hdr the current entry.
func (t *tarEntries) begin(hdr *tar.Header) {
	switch hdr.Typeflag {
	case tar.TypeLink, tar.TypeSymlink, tar.TypeChar, tar.TypeBlock, tar.TypeDir, tar.TypeFifo:
		t.left = 0 // whatever size it states
	case tar.TypeXGlobalHeader:
		t.left = 0 // was read
	default:
		t.left = hdr.Size
	}
}

// skip reads what is left of the current entry. As in archive/tar, the tar may end inside of the padding.
func (t *tarEntries) skip() error {
	err := t.pass(t.left)
	t.left = 0
	if err != nil {
		return unexpectedEOF(err)
	}
	return t.pass(int64(-t.src.off & (tarBlock - 1))) // blocks of the digester begin at a multiple of tarBlock
}

// pass reads n bytes.
func (t *tarEntries) pass(n int64) error {
	for n > 0 {
		b, err := t.src.take(n)
		if err != nil {
			return err
		}
		if err := t.keep(b); err != nil {
			return err
		}
		n -= int64(len(b))
	}
	return nil
}

func (t *tarEntries) keep(b []byte) error {
	if t.record == nil {
		return nil
	}
	return t.record(b)
}

// rest reads the rest of the tar.
func (t *tarEntries) rest() error {
	for {
		if err := t.pass(blockSize); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
	}
}

// Read implements io.Reader for archive/tar.
func (t *tarEntries) Read(p []byte) (int, error) {
	b, err := t.src.take(int64(len(p)))
	if err == nil {
		err = t.keep(b)
	}
	return copy(p, b), err
}

// take reads at most n bytes of the content of an entry that is not sparse, which are in the digester's current block.
func (t *tarEntries) take(n int64) ([]byte, error) {
	if t.left == 0 {
		return nil, io.EOF
	}
	b, err := t.src.take(min(n, t.left))
	t.left -= int64(len(b))
	return b, unexpectedEOF(err)
}

func unexpectedEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// content returns a reader of the current entry's content.
func (t *tarEntries) content() io.Reader {
	if t.ext != nil {
		return t.ext
	}
	return contentReader{t}
}

type contentReader struct{ t *tarEntries }

// Read implements io.Reader.
func (r contentReader) Read(p []byte) (int, error) {
	b, err := r.t.take(int64(len(p)))
	return copy(p, b), err
}

// Where the fields of a header are, from POSIX and GNU tar.
const (
	nameAt, nameLen         = 0, 100
	modeAt, modeLen         = 100, 8
	uidAt, uidLen           = 108, 8
	gidAt, gidLen           = 116, 8
	sizeAt, sizeLen         = 124, 12
	mtimeAt, mtimeLen       = 136, 12
	checksumAt, checksumLen = 148, 8
	typeAt                  = 156
	linkAt, linkLen         = 157, 100
	magicAt                 = 257
	majorAt, majorLen       = 329, 8
	minorAt, minorLen       = 337, 8
	prefixAt, prefixLen     = 345, 155
	starAt                  = 508 // the trailer of star's headers

	ustarMagic  = "ustar\x0000"
	gnuMagic    = "ustar  \x00"
	starTrailer = "tar\x00"
)

// parse parses a header into t.common, and begins its entry, if it is common. Whatever is unusual is not.
func (t *tarEntries) parse(b []byte) bool {
	h := &t.common
	*h = tar.Header{Typeflag: b[typeAt]}
	if h.Typeflag < tar.TypeReg || h.Typeflag > tar.TypeFifo {
		return false
	}
	var prefix []byte
	switch string(b[magicAt : magicAt+len(ustarMagic)]) {
	case ustarMagic:
		if string(b[starAt:tarBlock]) == starTrailer {
			return false
		}
		prefix = text(b[prefixAt : prefixAt+prefixLen])
	case gnuMagic:
		if b[prefixAt] != 0 || b[prefixAt+12] != 0 { // times of access and change
			return false
		}
	default:
		return false
	}
	ok := true
	number := func(at, n int) (v int64) {
		if ok {
			v, ok = octal(b[at : at+n])
		}
		return v
	}
	if number(checksumAt, checksumLen) != headerSum(b) {
		return false
	}
	h.Mode = number(modeAt, modeLen)
	h.Uid = int(number(uidAt, uidLen))
	h.Gid = int(number(gidAt, gidLen))
	h.Size = number(sizeAt, sizeLen)
	h.ModTime = time.Unix(number(mtimeAt, mtimeLen), 0)
	if !bytes.Equal(b[majorAt:minorAt+minorLen], noDevice[:]) {
		h.Devmajor = number(majorAt, majorLen)
		h.Devminor = number(minorAt, minorLen)
	}
	if !ok {
		return false
	}
	name := text(b[nameAt : nameAt+nameLen])
	if len(prefix) > 0 {
		h.Name = string(prefix) + "/" + string(name)
	} else {
		h.Name = string(name)
	}
	h.Linkname = string(text(b[linkAt : linkAt+linkLen]))
	t.begin(h)
	return true
}

// noDevice is how some programs write the device numbers of what is not a device.
var noDevice [majorLen + minorLen]byte

// text returns a field up to its NUL.
func text(b []byte) []byte {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		return b[:i]
	}
	return b
}

// octal parses a field of octal digits, at least one, with spaces or NULs behind them.
func octal(b []byte) (v int64, ok bool) {
	i := 0
	for ; i < len(b) && b[i]&^7 == '0'; i++ {
		v = v<<3 | int64(b[i]&7)
	}
	for _, c := range b[i:] {
		if c != 0 && c != ' ' {
			return 0, false
		}
	}
	return v, i > 0
}

// headerSum returns the sum of all bytes of a header, with spaces in place of the checksum.
func headerSum(b []byte) int64 {
	const odd = 0x00ff00ff00ff00ff
	var lanes uint64 // four sums of 16 bits, each of 128 bytes
	for i := 0; i < tarBlock; i += 8 {
		w := binary.LittleEndian.Uint64(b[i:])
		lanes += w&odd + w>>8&odd
	}
	sum := int64(lanes&0xffff + lanes>>16&0xffff + lanes>>32&0xffff + lanes>>48)
	for _, c := range b[checksumAt : checksumAt+checksumLen] {
		sum -= int64(c)
	}
	return sum + checksumLen*' '
}

// isSparse reports whether the tar may have the content of a file in another form.
func isSparse(hdr *tar.Header) bool {
	if hdr.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for key := range hdr.PAXRecords {
		if strings.HasPrefix(key, paxSparse) {
			return true
		}
	}
	return false
}
