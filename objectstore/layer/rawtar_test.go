package layer

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// rawHeader is the header of a tar entry, written without archive/tar's scruples. f changes it before the checksum is
// computed.
func rawHeader(typ byte, name string, size int64, f func(h []byte)) []byte {
	h := make([]byte, 512)
	copy(h, name)
	copy(h[100:], "0000644\x000000000\x000000000\x00")
	copy(h[124:], fmt.Sprintf("%011o\x00", size))
	copy(h[136:], fmt.Sprintf("%011o\x00", when.Unix()))
	h[156] = typ
	copy(h[257:], "ustar\x0000")
	if f != nil {
		f(h)
	}
	copy(h[148:156], "        ")
	sum := 0
	for _, b := range h {
		sum += int(b)
	}
	copy(h[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return h
}

// pad fills up to whole blocks.
func pad(b []byte) []byte { return append(b, make([]byte, -len(b)&511)...) }

// rawPAX is a PAX header with records for the entry behind it.
func rawPAX(records ...string) []byte {
	var body []byte
	for i := 0; i < len(records); i += 2 {
		rest := " " + records[i] + "=" + records[i+1] + "\n"
		n := len(rest)
		for len(fmt.Sprint(n))+len(rest) != n {
			n = len(fmt.Sprint(n)) + len(rest)
		}
		body = append(body, fmt.Sprint(n)+rest...)
	}
	return append(rawHeader(tar.TypeXHeader, "pax", int64(len(body)), nil), pad(body)...)
}

var endOfTar = make([]byte, 1024)

// sparseGNU is a file s with a hole in GNU tar's default format: 10,000 bytes, "hello" at offset 5,000. f changes the
// header before the checksum is computed.
func sparseGNU(f func(h []byte)) []byte {
	h := rawHeader(tar.TypeGNUSparse, "s", 5, func(h []byte) {
		copy(h[257:], "ustar  \x00")
		copy(h[386:], fmt.Sprintf("%011o\x00%011o\x00", 5000, 5))
		copy(h[410:], fmt.Sprintf("%011o\x00%011o\x00", 10000, 0))
		copy(h[483:], fmt.Sprintf("%011o\x00", 10000))
		if f != nil {
			f(h)
		}
	})
	return bytes.Join([][]byte{h, pad([]byte("hello")), endOfTar}, nil)
}

// sparseExtension is a block that continues the map of a sparse file, has no entry, and announces another.
var sparseExtension = append(make([]byte, 504), 1, 0, 0, 0, 0, 0, 0, 0)

// sparseMap is that of sparsePAX: one piece of data, its offset and length.
const sparseMap = "1\n5000\n5\n"

// sparsePAX is the same file as bsdtar and GNU tar with --format=pax write it.
func sparsePAX(name, sparseMap string) []byte {
	m := pad([]byte(sparseMap))
	return bytes.Join([][]byte{
		rawPAX("GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.name", name, "GNU.sparse.realsize", "10000"),
		rawHeader(tar.TypeReg, "GNUSparseFile.0/"+name, int64(len(m))+5, nil), m, pad([]byte("hello")), endOfTar,
	}, nil)
}

var sparseContent = strings.Repeat("\x00", 5000) + "hello" + strings.Repeat("\x00", 4995)

// acl encodes a POSIX ACL of tag, permissions, ID triples.
func acl(e ...uint32) string {
	b := binary.LittleEndian.AppendUint32(nil, aclVersion)
	for ; len(e) >= 3; e = e[3:] {
		b = binary.LittleEndian.AppendUint16(b, uint16(e[0]))
		b = binary.LittleEndian.AppendUint16(b, uint16(e[1]))
		b = binary.LittleEndian.AppendUint32(b, e[2])
	}
	return string(b)
}

// userACL gives a user read and write access, besides owner, group, mask and others.
func userACL(uid, owner, group, mask, other uint32) string {
	return acl(aclUserObj, owner, noID, aclUser, 6, uid, aclGroupObj, group, noID, aclMask, mask, noID, aclOther, other, noID)
}

// caps encodes file capabilities: revision with flags, permitted, and the root user's ID for revision 3.
func caps(words ...uint32) string {
	var b []byte
	for _, w := range words {
		b = binary.LittleEndian.AppendUint32(b, w)
	}
	return string(b)
}

var netRaw = caps(capsRevision2|capsEffective, 1<<13, 0, 0, 0)

// gnu makes an entry that archive/tar writes in GNU's format, which has 64-bit numbers.
func gnu(h *tar.Header) {
	h.Format = tar.FormatGNU
	h.ModTime = h.ModTime.Truncate(time.Second)
}

func device(typ byte, name string, major, minor int64) tarEntry {
	return tarEntry{entry(typ, name, gnu, func(h *tar.Header) { h.Devmajor, h.Devminor = major, minor }), ""}
}

func fifo(name string, f ...func(*tar.Header)) tarEntry {
	return tarEntry{entry(tar.TypeFifo, name, f...), ""}
}

// symlinkWith is a symbolic link with additional header fields.
func symlinkWith(name, target string, f ...func(*tar.Header)) tarEntry {
	e := symlink(name, target)
	for _, f := range f {
		f(e.Header)
	}
	return e
}

func deepName(levels int) string { return strings.Repeat("d/", levels-1) + "f" }

func mtimeOf(t testing.TB, p string) unix.Timespec {
	t.Helper()
	n, err := stat(p)
	testenv.Must(t, err)
	return n.mtime
}
