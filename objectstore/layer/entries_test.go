package layer

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// entryText is what a layer uses of an entry.
func entryText(hdr *tar.Header, content []byte) string {
	return fmt.Sprintf("%q -> %q type %q mode %o owner %d:%d size %d time %d.%d device %d:%d records %q content %x", hdr.Name, hdr.Linkname, hdr.Typeflag,
		hdr.Mode, hdr.Uid, hdr.Gid, hdr.Size, hdr.ModTime.Unix(), hdr.ModTime.Nanosecond(), hdr.Devmajor, hdr.Devminor, hdr.PAXRecords, sha256.Sum256(content))
}

// readEntries returns the entries of a tar and its error. Of each second content it reads a part.
func readEntries(next func() (*tar.Header, error), content func() io.Reader) (entries []string, err error) {
	for i := 0; ; i++ {
		hdr, err := next()
		if errors.Is(err, io.EOF) {
			return entries, nil
		}
		if err != nil {
			return entries, err
		}
		r := content()
		if i%2 == 1 {
			r = io.LimitReader(r, 7)
		}
		var b bytes.Buffer
		_, err = io.Copy(&b, io.LimitReader(r, 1<<20)) // a sparse file can have any size
		entries = append(entries, entryText(hdr, b.Bytes()))
		if err != nil {
			return entries, err
		}
	}
}

// compareEntries reads a tar with archive/tar and with tarEntries, which must not differ. It returns how many entries have
// common headers.
func compareEntries(t *testing.T, b []byte) (common int) {
	t.Helper()
	tr := tar.NewReader(onlyReader{bytes.NewReader(b)})
	want, wantErr := readEntries(tr.Next, func() io.Reader { return tr })

	d := newDigester(t.Context(), bytes.NewReader(b), scanBlocks, false)
	defer d.Close()
	var recorded int
	e := &tarEntries{src: d, record: func(b []byte) error { recorded += len(b); return nil }}
	taken := 0
	got, gotErr := readEntries(func() (*tar.Header, error) {
		hdr, err := e.next()
		if hdr == &e.common {
			common++
		}
		return hdr, err
	}, func() io.Reader {
		if e.ext != nil {
			return e.content()
		}
		return io.TeeReader(e.content(), writerFunc(func(p []byte) { taken += len(p) }))
	})
	for i := range max(len(got), len(want)) {
		switch {
		case i >= len(got):
			t.Fatalf("entry %d is missing: %.500s (%v)", i, want[i], gotErr)
		case i >= len(want):
			t.Fatalf("entry %d is not in the tar: %.500s (%v)", i, got[i], wantErr)
		case got[i] != want[i]:
			t.Fatalf("entry %d: got\n%.500s\nwant\n%.500s", i, got[i], want[i])
		}
	}
	if fmt.Sprint(gotErr) != fmt.Sprint(wantErr) {
		t.Fatalf("got error %v, want %v", gotErr, wantErr)
	}
	if gotErr == nil {
		testenv.Must(t, e.rest())
		if recorded+taken != len(b) {
			t.Fatalf("recorded %d bytes and took %d of %d", recorded, taken, len(b))
		}
	}
	return common
}

// onlyReader hides that a reader can seek, as no decompressor can.
type onlyReader struct{ io.Reader }

type writerFunc func(p []byte)

func (f writerFunc) Write(p []byte) (int, error) { f(p); return len(p), nil }

// TestEntries compares the reader of entries with archive/tar, where content and headers lie in many ways over its blocks.
func TestEntries(t *testing.T) {
	var entries []tarEntry
	for i := range 20 {
		entries = append(entries, dir(fmt.Sprintf("d%d", i)), file(fmt.Sprintf("d%d/f", i), string(randomBytes(i*i*997%(3*blockSize), uint64(i)))),
			symlink(fmt.Sprintf("d%d/l", i), "f"))
	}
	for _, format := range []tar.Format{tar.FormatUSTAR, tar.FormatPAX, tar.FormatGNU} {
		t.Run(format.String(), func(t *testing.T) {
			for i := range entries {
				entries[i].Format = format
			}
			b := makeTar(t, entries...)
			want := len(entries)
			if format == tar.FormatPAX {
				want = 0
			}
			if got := compareEntries(t, b); got != want {
				t.Errorf("%d of %d headers are common, want %d", got, len(entries), want)
			}
			for _, cut := range []int{1, 511, 512, 513, 700, 1024, 1536, blockSize, blockSize + 1, len(b) / 2, len(b)/2 + 300} {
				compareEntries(t, b[:len(b)-cut])
			}
		})
	}
}

// FuzzEntries compares the reader of entries with archive/tar.
func FuzzEntries(f *testing.F) {
	for _, tt := range tarCases() {
		b := tt.raw
		if b == nil {
			b = makeTar(f, tt.entries...)
		}
		if len(b) < 1<<16 {
			f.Add(b)
		}
	}
	for _, typ := range []byte{tar.TypeReg, tar.TypeGNUSparse, tar.TypeCont, 0, tar.TypeDir, 'D'} {
		f.Add(append(rawHeader(typ, "name", 600, nil), make([]byte, 1024)...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		compareEntries(t, b)
		compareEntries(t, withChecksums(b))
	})
}

// TestCommonHeader has headers that only look common.
func TestCommonHeader(t *testing.T) {
	plain := makeTar(t, file("name", "content"), file("other", ""))
	for name, change := range map[string]func(h []byte){
		"nothing":                func([]byte) {},
		"base-256 size":          func(h []byte) { copy(h[sizeAt:], "\x80\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x07") },
		"leading space":          func(h []byte) { copy(h[modeAt:], "   644 ") },
		"no mode":                func(h []byte) { clear(h[modeAt : modeAt+modeLen]) },
		"digits behind a NUL":    func(h []byte) { copy(h[modeAt:], "644\x00123\x00") },
		"not octal":              func(h []byte) { copy(h[modeAt:], "0000648\x00") },
		"no device":              func(h []byte) { clear(h[majorAt : minorAt+minorLen]) },
		"device behind a NUL":    func(h []byte) { copy(h[majorAt:], "\x00000123\x00") },
		"one device number":      func(h []byte) { clear(h[majorAt : majorAt+majorLen]) },
		"prefix":                 func(h []byte) { copy(h[prefixAt:], "a/prefix") },
		"star":                   func(h []byte) { copy(h[prefixAt:], "a/prefix"); copy(h[starAt:], starTrailer) },
		"star with times":        func(h []byte) { copy(h[476:], "00000000001 00000000002 "); copy(h[starAt:], starTrailer) },
		"GNU":                    func(h []byte) { copy(h[magicAt:], gnuMagic) },
		"GNU with a prefix":      func(h []byte) { copy(h[magicAt:], gnuMagic); copy(h[prefixAt:], "a/prefix") },
		"GNU with times":         func(h []byte) { copy(h[magicAt:], gnuMagic); copy(h[prefixAt:], "00000000001\x0000000000002\x00") },
		"old":                    func(h []byte) { clear(h[magicAt:]) },
		"other version":          func(h []byte) { copy(h[magicAt:], "ustar\x00 1") },
		"old type":               func(h []byte) { h[typeAt] = 0 },
		"old directory":          func(h []byte) { h[typeAt] = 0; copy(h[nameAt:], "name/") },
		"contiguous":             func(h []byte) { h[typeAt] = tar.TypeCont },
		"directory with content": func(h []byte) { h[typeAt] = tar.TypeDir },
		"name without NUL":       func(h []byte) { copy(h[nameAt:], bytes.Repeat([]byte("n"), nameLen)) },
		"link without NUL":       func(h []byte) { copy(h[linkAt:], bytes.Repeat([]byte("l"), linkLen)) },
		"bytes of 8 bits":        func(h []byte) { copy(h[nameAt:], "\xff\xfe\xfd") },
	} {
		t.Run(name, func(t *testing.T) {
			b := bytes.Clone(plain)
			change(b)
			compareEntries(t, withChecksum(b))
			compareEntries(t, b) // the checksum is wrong
		})
	}
}

// withChecksum gives a tar's first header the checksum it needs, whatever its format.
func withChecksum(b []byte) []byte {
	b = bytes.Clone(b)
	copy(b[checksumAt:], fmt.Sprintf("%06o\x00 ", headerSum(b)))
	return b
}
