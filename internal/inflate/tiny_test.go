package inflate

import (
	"bytes"
	"compress/gzip"
	"io"
	"testing"
)

// tinyBlocks returns a file of blocks that contain nothing but their end, each with codes of its own kind.
func tinyBlocks(kind string, size int) []byte {
	lits, dists := make([]uint8, 257), []uint8{0}
	switch kind {
	case "one code":
		lits[256] = 1
	case "equal lengths": // 256 codes of 8 bits need a 257th: two of 9
		for i := range lits {
			lits[i] = 8
		}
		lits[255], lits[256] = 9, 9
	case "longest codes":
		for i := range 14 {
			lits[i] = uint8(i + 1)
		}
		lits[14], lits[256] = 15, 15
		dists = make([]uint8, 16)
		for i := range 14 {
			dists[i] = uint8(i + 1)
		}
		dists[14], dists[15] = 15, 15
	}
	var w bitWriter
	// The lengths of codes, with runs as zlib writes them.
	var syms [][3]int // symbol, extra, bits of it
	all := append(bytes.Clone(lits), dists...)
	for i := 0; i < len(all); {
		n := 1
		for i+n < len(all) && all[i+n] == all[i] {
			n++
		}
		l := int(all[i])
		i += n
		if l == 0 {
			for ; n >= 11; n -= min(n, 138) {
				syms = append(syms, [3]int{18, min(n, 138) - 11, 7})
			}
			for ; n > 0; n-- {
				syms = append(syms, [3]int{0, 0, 0})
			}
			continue
		}
		syms = append(syms, [3]int{l, 0, 0})
		for n--; n >= 3; n -= min(n, 6) {
			syms = append(syms, [3]int{16, min(n, 6) - 3, 2})
		}
		for ; n > 0; n-- {
			syms = append(syms, [3]int{l, 0, 0})
		}
	}
	pre := make([]uint8, maxPre)
	for i := range pre {
		pre[i] = 5 // of 19 symbols: 13 of 4 bits and 6 of 5 are complete
		if i < 13 {
			pre[i] = 4
		}
	}
	preCodes, litCodes := codesOf(pre), codesOf(lits)
	block := func(last uint64) {
		w.put(last, 1)
		w.put(2, 2)
		w.put(0, 5)
		w.put(uint64(len(dists)-1), 5)
		w.put(15, 4)
		for _, s := range preOrder {
			w.put(uint64(pre[s]), 3)
		}
		for _, s := range syms {
			w.put(preCodes[s[0]], -int(pre[s[0]]))
			w.put(uint64(s[1]), s[2])
		}
		w.put(litCodes[256], -int(lits[256]))
	}
	for len(w.buf) < size {
		block(0)
	}
	block(1)
	return member(w.bytes(), nil)
}

var tinyKinds = []string{"one code", "equal lengths", "longest codes"}

func TestTinyBlocks(t *testing.T) {
	for _, kind := range tinyKinds {
		file := tinyBlocks(kind, 100_000)
		if got, err := read(file); err != nil || len(got) > 0 {
			t.Errorf("%s: got %d bytes, %v", kind, len(got), err)
		}
		compare(t, file[10:len(file)-8])
	}
}

// BenchmarkTinyBlocks decompresses blocks whose tables take longer than their content.
func BenchmarkTinyBlocks(b *testing.B) {
	for _, kind := range tinyKinds {
		file := tinyBlocks(kind, 1<<20)
		for name, open := range map[string]func() (io.Reader, error){
			"inflate": func() (io.Reader, error) { return NewReader(bytes.NewReader(file)), nil },
			"gzip":    func() (io.Reader, error) { return gzip.NewReader(bytes.NewReader(file)) },
		} {
			b.Run(kind+"/"+name, func(b *testing.B) {
				b.SetBytes(int64(len(file)))
				for b.Loop() {
					if _, err := io.Copy(io.Discard, must(open())); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
