package inflate

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"testing"
)

// randomFile writes a gzip file of one or more members with random header fields, and returns it with its content.
func randomFile(rnd *rand.Rand) (file, content []byte) {
	text := func(n int) []byte { // without zeros, which end a name
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(1 + rnd.IntN(255))
		}
		return b
	}
	for members := 1 + rnd.IntN(4); members > 0; members-- {
		flags := byte(rnd.IntN(32)) // with the flag of text, which means nothing here
		head := []byte{0x1f, 0x8b, 8, flags, 1, 2, 3, 4, byte(rnd.IntN(5)), byte(rnd.IntN(256))}
		if flags&flagExtra != 0 {
			n := []int{0, 1, 100, 65535}[rnd.IntN(4)]
			head = append(binary.LittleEndian.AppendUint16(head, uint16(n)), bytes.Repeat([]byte{7}, n)...) // gzipOf cuts zeros
		}
		if flags&flagName != 0 {
			head = append(append(head, text(rnd.IntN(maxString))...), 0)
		}
		if flags&flagComment != 0 {
			head = append(append(head, text(rnd.IntN(maxString))...), 0)
		}
		if flags&flagSum != 0 {
			head = binary.LittleEndian.AppendUint16(head, uint16(crc32.ChecksumIEEE(head)))
		}
		var deflate, out []byte
		for err := io.ErrUnexpectedEOF; err != nil; { // some random blocks have errors
			deflate = randomBlocks(rnd)
			out, _, err = oracle(deflate)
		}
		file = append(append(file, head...), member(deflate, out)[10:]...)
		content = append(content, out...)
	}
	return file, content
}

// gzipOf decompresses a file with compress/gzip, without the zeros at its end, which gzip(1) ignores. A trailer may end in
// zeros too.
func gzipOf(file []byte) (out []byte, err error) {
	for b := file; ; b = b[:len(b)-1] {
		var z *gzip.Reader
		if z, err = gzip.NewReader(bytes.NewReader(b)); err == nil {
			out, err = io.ReadAll(z)
		}
		if err == nil || !bytes.HasSuffix(b, []byte{0}) {
			return out, err
		}
	}
}

// TestRandomFiles compares files of several members, with all header fields, with zeros or other bytes behind, and damaged
// ones, with compress/gzip.
func TestRandomFiles(t *testing.T) {
	for seed := range *cases / 4 {
		rnd := rand.New(rand.NewPCG(uint64(seed), 8))
		file, content := randomFile(rnd)
		if got, err := read(file); err != nil || !bytes.Equal(got, content) {
			t.Fatalf("seed %d: got %d bytes, %v, want %d", seed, len(got), err, len(content))
		}
		tail := make([]byte, rnd.IntN(20))
		if rnd.IntN(4) == 0 && len(tail) > 0 {
			tail[rnd.IntN(len(tail))] = byte(rnd.IntN(256))
		}
		damaged := bytes.Clone(file)
		damaged[rnd.IntN(len(file))] ^= 1 << rnd.IntN(8)
		swapped := bytes.Clone(file) // in the first header
		swapped[rnd.IntN(12)] = byte(rnd.IntN(256))
		for name, b := range map[string][]byte{
			"tail": append(bytes.Clone(file), tail...), "damaged": damaged, "header": swapped, "cut": file[:rnd.IntN(len(file))],
		} {
			got, err := read(b)
			want, wantErr := gzipOf(b)
			if (err == nil) != (wantErr == nil) || err == nil && !bytes.Equal(got, want) {
				t.Fatalf("seed %d, %s: got %d bytes, %v, compress/gzip gives %d, %v", seed, name, len(got), err, len(want), wantErr)
			}
		}
	}
}
