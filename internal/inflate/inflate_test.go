package inflate

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

var cases = flag.Int("inflate.cases", 2000, "random cases of TestRandomBlocks")

// must stops a test whose encoder does not work.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// zipped compresses text. setup, if not nil, prepares the encoder.
func zipped(text []byte, level int, setup func(w *gzip.Writer)) []byte {
	var b bytes.Buffer
	w := must(gzip.NewWriterLevel(&b, level))
	if setup != nil {
		setup(w)
	}
	must(w.Write(text))
	must(0, w.Close())
	return b.Bytes()
}

// read reads a file to its end.
func read(b []byte) ([]byte, error) { return io.ReadAll(NewReader(bytes.NewReader(b))) }

// member returns a member with a deflate stream that is said to give content.
func member(deflate, content []byte) []byte {
	b := append([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff}, deflate...)
	b = binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(content))
	return binary.LittleEndian.AppendUint32(b, uint32(len(content)))
}

// oracle decompresses a deflate stream with compress/flate. used is the length of a valid one.
func oracle(b []byte) (out []byte, used int, err error) {
	src := bytes.NewReader(b) // an io.ByteReader: flate reads no further than it must
	out, err = io.ReadAll(flate.NewReader(src))
	return out, len(b) - src.Len(), err
}

// compare decompresses a deflate stream and compares the result with compress/flate's.
func compare(t *testing.T, deflate []byte) {
	t.Helper()
	want, used, wantErr := oracle(deflate)
	got, err := read(member(deflate[:used], want))
	switch {
	case wantErr == nil:
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("got %d bytes, %v, want %d bytes: as compress/flate", len(got), err, len(want))
		}
	case err == nil || errors.Is(err, ErrChecksum):
		t.Errorf("got %d bytes, %v, want an error as compress/flate: %v", len(got), err, wantErr)
	case !bytes.HasPrefix(got, want[:min(len(got), len(want))]):
		t.Error("what is decoded before the error differs from compress/flate's")
	}
}

// texts are contents that make encoders do different things.
func texts() map[string][]byte {
	rnd := rand.New(rand.NewPCG(3, 4))
	random := make([]byte, 300_000)
	for i := range random {
		random[i] = byte(rnd.Uint32())
	}
	words := make([]byte, 0, 700_000)
	for len(words) < 690_000 {
		n := 1 + int(rnd.ExpFloat64()*5)
		words = append(words, random[rnd.IntN(2000):][:n]...)
	}
	steps := make([]byte, 0, 300_000) // matches of each length and distance up to 40, over many windows
	for d := 1; d <= 40; d++ {
		for n := 3; n <= 258; n += 5 {
			from := len(steps)
			steps = append(steps, random[from%1000:][:d]...)
			for range n {
				steps = append(steps, steps[len(steps)-d])
			}
		}
	}
	return map[string][]byte{
		"empty": nil, "byte": {7}, "short": []byte("hello, hello, hello"), "zeros": make([]byte, 1_000_000),
		"random": random, "words": words, "steps": steps, "far": append(append(bytes.Clone(random[:32768]), words[:100]...), random[:32768]...),
	}
}

func TestContents(t *testing.T) {
	for name, text := range texts() {
		for _, level := range []int{flate.HuffmanOnly, flate.NoCompression, 1, 6, 9} {
			t.Run(fmt.Sprintf("%s/%d", name, level), func(t *testing.T) {
				b := zipped(text, level, nil)
				for kind, src := range map[string]io.Reader{
					"whole": bytes.NewReader(b), "halves": iotest.HalfReader(bytes.NewReader(b)),
					"bytes": iotest.OneByteReader(bytes.NewReader(b)), "data with EOF": iotest.DataErrReader(bytes.NewReader(b)),
				} {
					if got, err := io.ReadAll(NewReader(src)); err != nil || !bytes.Equal(got, text) {
						t.Errorf("%s: got %d bytes, %v, want the %d that were compressed", kind, len(got), err, len(text))
					}
				}
			})
		}
	}
}

// Each prefix of a file is an io.ErrUnexpectedEOF, and gives a prefix of the content.
func TestTruncated(t *testing.T) {
	all := texts()
	for name, text := range map[string][]byte{"short": all["short"], "words": all["words"][:2000], "random": all["random"][:700]} {
		for _, level := range []int{flate.HuffmanOnly, flate.NoCompression, 6} {
			b := zipped(text[len(text)/2:], level, func(w *gzip.Writer) {
				w.Name = "name"
				w.Extra = []byte("extra")
				must(w.Write(text[:len(text)/2]))
				must(0, w.Flush())
			})
			for i := range b {
				got, err := read(b[:i])
				if !errors.Is(err, io.ErrUnexpectedEOF) || !bytes.HasPrefix(text, got) {
					t.Errorf("%s, level %d: the first %d of %d bytes: got %d bytes, error %v", name, level, i, len(b), len(got), err)
				}
			}
		}
	}
}

// TestErrors reads malformed files.
func TestErrors(t *testing.T) {
	// bits writes fields of bits from the lowest on.
	bits := func(fields ...int) []byte {
		var w bitWriter
		for i := 0; i < len(fields); i += 2 {
			w.put(uint64(fields[i]), fields[i+1])
		}
		return w.bytes()
	}
	head := func(flags byte, rest string) []byte {
		return append([]byte{0x1f, 0x8b, 8, flags, 0, 0, 0, 0, 0, 0xff}, rest...)
	}
	empty := "\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00" // deflate, checksum and length of nothing
	one := member(bits(1, 1, 1, 2, 0x30+'a', -8, 0, 7), []byte("a"))
	clens := func(lits, dists int, lens map[int]int, rest ...int) []byte {
		f := []int{1, 1, 2, 2, lits - 257, 5, dists - 1, 5, 15, 4}
		for _, s := range preOrder {
			f = append(f, lens[int(s)], 3)
		}
		return bits(append(f, rest...)...)
	}
	for _, c := range []struct {
		name string
		file []byte
		want error // nil: no error
		out  string
	}{
		{"nothing", nil, io.ErrUnexpectedEOF, ""},
		{"no magic number", []byte("not gzip at all"), ErrCorrupt, ""},
		{"another method", []byte{0x1f, 0x8b, 7, 0, 0, 0, 0, 0, 0, 0, 0}, ErrCorrupt, ""},
		{"one member", one, nil, "a"},
		{"two members", append(bytes.Clone(one), one...), nil, "aa"},
		{"all header fields", head(flagExtra|flagName|flagComment, "\x03\x00abcname\x00comment\x00"+empty), nil, ""},
		{"all fields and their checksum", head(flagSum|flagExtra|flagName|flagComment, "\x03\x00abcname\x00comment\x00"+
			headerSum(head(flagSum|flagExtra|flagName|flagComment, "\x03\x00abcname\x00comment\x00"))+empty), nil, ""},
		{"wrong checksum of the header", head(flagSum, "xx"+empty), ErrCorrupt, ""},
		{"unknown flags", head(0xe1, empty), nil, ""},
		{"long name", head(flagName, strings.Repeat("n", 511)+"\x00"+empty), nil, ""},
		{"name too long", head(flagName, strings.Repeat("n", 512)+"\x00"+empty), ErrCorrupt, ""},
		{"long extra field", head(flagExtra, "\xff\xff"+strings.Repeat("n", 65535)+empty), nil, ""},
		{"zeros behind", append(bytes.Clone(one), make([]byte, 200_000)...), nil, "a"},
		{"one zero behind", append(bytes.Clone(one), 0), nil, "a"},
		{"text behind", append(bytes.Clone(one), "text"...), ErrTrailing, "a"},
		{"text behind zeros", append(append(bytes.Clone(one), make([]byte, 100_000)...), 'x'), ErrTrailing, "a"},
		{"member behind zeros", append(append(bytes.Clone(one), 0), one...), ErrTrailing, "a"},
		{"half a magic number behind", append(bytes.Clone(one), 0x1f), io.ErrUnexpectedEOF, "a"},
		{"a magic number behind", append(bytes.Clone(one), 0x1f, 0x8b), io.ErrUnexpectedEOF, "a"},
		{"another method behind", append(bytes.Clone(one), "\x1f\x8b\x07......................"...), ErrCorrupt, "a"},
		{"wrong checksum", head(0, "\x03\x00\x01\x00\x00\x00\x00\x00\x00\x00"), ErrChecksum, ""},
		{"wrong length", head(0, "\x03\x00\x00\x00\x00\x00\x01\x00\x00\x00"), ErrChecksum, ""},
		{"reserved block type", member(bits(1, 1, 3, 2), nil), ErrCorrupt, ""},
		{"stored", member(bits(1, 1, 0, 2, 0, 5, 1, 16, 0xfffe, 16, 'a', 8), []byte("a")), nil, "a"},
		{"stored, wrong complement", member(bits(1, 1, 0, 2, 0, 5, 1, 16, 0xffff, 16, 'a', 8), []byte("a")), ErrCorrupt, ""},
		{"distance before the start", member(bits(1, 1, 1, 2, 0x30+'a', -8, 1, -7, 1, -5, 0, 7), nil), ErrCorrupt, ""},
		{"distance into another member", append(bytes.Clone(one), member(bits(1, 1, 1, 2, 1, -7, 0, -5, 0, 7), nil)...), ErrCorrupt, "a"},
		{"length symbol 286", member(bits(1, 1, 1, 2, 0xc6, -8, 0, 32), nil), ErrCorrupt, ""},
		{"length symbol 287", member(bits(1, 1, 1, 2, 0xc7, -8, 0, 32), nil), ErrCorrupt, ""},
		{"distance symbol 30", member(bits(1, 1, 1, 2, 0x30+'a', -8, 1, -7, 30, -5, 0, 32), nil), ErrCorrupt, ""},
		{"distance symbol 31", member(bits(1, 1, 1, 2, 0x30+'a', -8, 1, -7, 31, -5, 0, 32), nil), ErrCorrupt, ""},
		{"287 literals and lengths", member(clens(287, 1, map[int]int{0: 1, 1: 1}, 0, 64), nil), ErrCorrupt, ""},
		{"31 distances", member(clens(257, 31, map[int]int{0: 1, 1: 1}, 0, 64), nil), ErrCorrupt, ""},
		{"no lengths of codes", member(clens(257, 1, nil, 0, 64), nil), ErrCorrupt, ""},
		{"lengths of codes oversubscribed", member(clens(257, 1, map[int]int{0: 1, 1: 1, 2: 1}, 0, 64), nil), ErrCorrupt, ""},
		{"lengths of codes incomplete", member(clens(257, 1, map[int]int{0: 2, 1: 2}, 0, 64), nil), ErrCorrupt, ""},
		{"repetition of nothing", member(clens(257, 1, map[int]int{0: 1, 16: 1}, 1, 1, 0, 64), nil), ErrCorrupt, ""},
		{"repetition beyond the end", member(clens(257, 1, map[int]int{0: 1, 18: 1}, 1, 1, 127, 7, 1, 1, 127, 7, 0, 64), nil), ErrCorrupt, ""},
		// 256 zeros, one code of one bit, no distance.
		{"only the end of the block", member(clens(257, 1, map[int]int{0: 2, 1: 2, 18: 1}, 0, 1, 127, 7, 0, 1, 107, 7, 3, 2, 1, 2, 0, 1), nil), nil, ""},
		{"the other bit", member(clens(257, 1, map[int]int{0: 2, 1: 2, 18: 1}, 0, 1, 127, 7, 0, 1, 107, 7, 3, 2, 1, 2, 1, 1, 0, 64), nil), ErrCorrupt, ""},
		{"no code at all", member(clens(257, 1, map[int]int{0: 2, 1: 2, 18: 1}, 0, 1, 127, 7, 0, 1, 107, 7, 1, 2, 1, 2, 0, 64), nil), ErrCorrupt, ""},
		{"literals incomplete", member(clens(257, 1, map[int]int{0: 2, 2: 2, 18: 1}, 0, 1, 127, 7, 0, 1, 107, 7, 3, 2, 1, 2, 0, 64), nil), ErrCorrupt, ""},
		{"distances incomplete", member(clens(257, 2, map[int]int{1: 2, 2: 2, 18: 1}, 0, 1, 127, 7, 0, 1, 107, 7, 1, 2, 3, 2, 3, 2, 0, 64), nil), ErrCorrupt, ""},
		{"one distance of two bits", member(clens(257, 1, map[int]int{1: 2, 2: 2, 18: 1}, 0, 1, 127, 7, 0, 1, 107, 7, 1, 2, 3, 2, 0, 64), nil), ErrCorrupt, ""},
		{"distances oversubscribed", member(clens(257, 3, map[int]int{1: 2, 2: 2, 18: 1}, 0, 1, 127, 7, 0, 1, 107, 7, 1, 2, 1, 2, 1, 2, 1, 2, 0, 64), nil), ErrCorrupt, ""},
		{"no distances", member(clens(258, 1, map[int]int{0: 2, 1: 2, 18: 1}, 0, 1, 127, 7, 0, 1, 107, 7, 3, 2, 3, 2, 1, 2, 0, 1), nil), nil, ""},
		{"a distance where there are none", member(clens(258, 1, map[int]int{0: 2, 1: 2, 18: 1}, 0, 1, 127, 7, 0, 1, 107, 7, 3, 2, 3, 2, 1, 2, 1, 1, 0, 64), nil), ErrCorrupt, ""},
		{"stored, cut", head(0, string(bits(1, 1, 0, 2, 0, 5, 5, 16, 0xfffa, 16, 'a', 8))), io.ErrUnexpectedEOF, "a"},
		{"literals oversubscribed", member(clens(258, 1, map[int]int{1: 1, 18: 1}, 1, 1, 127, 7, 1, 1, 106, 7, 0, 3, 0, 1, 0, 64), nil), ErrCorrupt, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := read(c.file)
			if !errors.Is(err, c.want) || string(got) != c.out {
				t.Errorf("got %q, %v, want %q, %v", got, err, c.out, c.want)
			}
			z, err := gzip.NewReader(bytes.NewReader(c.file)) // it calls padding an error, and trailing data another
			if err == nil {
				_, err = io.Copy(io.Discard, z)
			}
			if padding := strings.Contains(c.name, "zero"); !padding && (err == nil) != (c.want == nil) {
				t.Errorf("compress/gzip: got %v, want an error: %v", err, c.want != nil)
			}
		})
	}
}

// headerSum returns the checksum of a header.
func headerSum(header []byte) string {
	return string(binary.LittleEndian.AppendUint16(nil, uint16(crc32.ChecksumIEEE(header))))
}

// Errors of the source are returned, also those in the middle of a member.
func TestSourceErrors(t *testing.T) {
	text := texts()["words"]
	b := zipped(text, 6, nil)
	broken := errors.New("broken")
	for _, n := range []int{0, 1, 5, 10, 11, 1000, len(b) / 2, len(b) - 8, len(b) - 1, len(b)} {
		got, err := io.ReadAll(NewReader(io.MultiReader(bytes.NewReader(b[:n]), iotest.ErrReader(broken))))
		if !errors.Is(err, broken) || !bytes.HasPrefix(text, got) {
			t.Errorf("error after %d bytes: got %d bytes, %v", n, len(got), err)
		}
		if _, err := io.ReadAll(NewReader(io.MultiReader(bytes.NewReader(b[:n]), stuck{}))); !errors.Is(err, io.ErrNoProgress) {
			t.Errorf("no progress after %d bytes: got %v", n, err)
		}
	}
}

type stuck struct{}

func (stuck) Read([]byte) (int, error) { return 0, nil }

// A bitWriter writes a deflate stream. A negative number of bits is that of a Huffman code, whose highest bit is first.
type bitWriter struct {
	buf  []byte
	bits uint64
	n    int
}

func (w *bitWriter) put(v uint64, n int) {
	if n < 0 {
		for i := -n - 1; i >= 0; i-- {
			w.put(v>>i&1, 1)
		}
		return
	}
	for ; n > 0; n-- {
		w.bits |= v & 1 << w.n
		v >>= 1
		if w.n++; w.n == 8 {
			w.buf = append(w.buf, byte(w.bits))
			w.bits, w.n = 0, 0
		}
	}
}

func (w *bitWriter) bytes() []byte {
	if w.n > 0 {
		return append(bytes.Clone(w.buf), byte(w.bits))
	}
	return bytes.Clone(w.buf)
}

// randomCode returns the lengths of a complete code for some of n symbols, of at most limit bits, and always for must.
func randomCode(rnd *rand.Rand, n, must, limit int) []uint8 {
	lengths := make([]uint8, n)
	leaves := []uint8{0}
	depth := rnd.IntN(2) // sometimes deep
	for want := 2 + rnd.IntN(n-1); len(leaves) < want; {
		i := rnd.IntN(len(leaves))
		if depth == 1 && rnd.IntN(3) > 0 {
			i = len(leaves) - 1
		}
		if int(leaves[i]) == limit {
			if i = rnd.IntN(len(leaves)); int(leaves[i]) == limit {
				continue
			}
		}
		leaves[i]++
		leaves = append(leaves, leaves[i])
	}
	symbols := rnd.Perm(n)
	has := false
	for i, l := range leaves {
		lengths[symbols[i]] = l
		has = has || symbols[i] == must
	}
	if !has {
		lengths[must], lengths[symbols[0]] = lengths[symbols[0]], 0
	}
	return lengths
}

// codesOf returns the canonical codes of lengths.
func codesOf(lengths []uint8) []uint64 {
	codes := make([]uint64, len(lengths))
	code := uint64(0)
	for n := uint8(1); n <= maxCode; n++ {
		code <<= 1
		for s, l := range lengths {
			if l == n {
				codes[s] = code
				code++
			}
		}
	}
	return codes
}

// randomBlocks writes a deflate stream with blocks of all kinds, with random codes up to 15 bits, and with some errors.
func randomBlocks(rnd *rand.Rand) []byte {
	var w bitWriter
	length := 0
	for blocks := 1 + rnd.IntN(4); blocks > 0; blocks-- {
		w.put(b2u(blocks == 1), 1)
		kind := rnd.IntN(8)
		if kind == 0 {
			n := rnd.IntN(200)
			w.put(0, 2)
			w.put(0, (8-w.n)%8)
			w.put(uint64(n), 16)
			w.put(uint64(n)^0xffff, 16)
			for range n {
				w.put(uint64(rnd.Uint32()), 8)
			}
			length += n
			continue
		}
		var lits, dists []uint8
		if kind == 1 {
			w.put(1, 2)
			lits, dists = make([]uint8, 288), bytes.Repeat([]byte{5}, 32)
			for i := range lits {
				lits[i] = []uint8{8, 9, 7, 8}[b2i(i >= 144)+b2i(i >= 256)+b2i(i >= 280)]
			}
		} else {
			w.put(2, 2)
			lits, dists = randomCode(rnd, 257+rnd.IntN(30), 256, maxCode), randomCode(rnd, 2+rnd.IntN(29), 0, maxCode)
			w.put(uint64(len(lits)-257), 5)
			w.put(uint64(len(dists)-1), 5)
			w.put(15, 4)
			for _, s := range preOrder { // all 16 lengths have 4 bits
				w.put(4*b2u(s < 16), 3)
			}
			for _, l := range append(bytes.Clone(lits), dists...) {
				w.put(uint64(l), -4)
			}
		}
		litCodes, distCodes := codesOf(lits), codesOf(dists)
		for range rnd.IntN(3000) {
			s := rnd.IntN(len(lits))
			if lits[s] == 0 || s == 256 || s >= 286 && rnd.IntN(1000) > 0 {
				continue
			}
			if s < 256 {
				w.put(litCodes[s], -int(lits[s]))
				length++
				continue
			}
			d := rnd.IntN(len(dists))
			if dists[d] == 0 || d >= 30 && rnd.IntN(1000) > 0 {
				continue
			}
			base, extra := int(distSymbols[d]>>valueShift), int(distSymbols[d]&takesMask)
			more := rnd.IntN(1 << extra)
			if base+more > length && rnd.IntN(3000) > 0 {
				continue
			}
			w.put(litCodes[s], -int(lits[s]))
			bits, far := int(litSymbols[s]&takesMask), rnd.Uint64()
			w.put(far, bits)
			length += int(litSymbols[s]>>valueShift&0x1ff) + int(far&(1<<bits-1))
			w.put(distCodes[d], -int(dists[d]))
			w.put(uint64(more), extra)
		}
		w.put(litCodes[256], -int(lits[256]))
	}
	return w.bytes()
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

func b2u(b bool) uint64 { return uint64(b2i(b)) }

// TestRandomBlocks compares random streams, valid and damaged, with compress/flate.
func TestRandomBlocks(t *testing.T) {
	valid := 0
	for seed := range *cases {
		rnd := rand.New(rand.NewPCG(uint64(seed), 5))
		b := randomBlocks(rnd)
		if _, _, err := oracle(b); err == nil {
			valid++
		}
		if compare(t, b); t.Failed() {
			t.Fatalf("seed %d", seed)
		}
		for range 3 {
			damaged := bytes.Clone(b)
			damaged[rnd.IntN(len(b))] ^= 1 << rnd.IntN(8)
			if compare(t, damaged); t.Failed() {
				t.Fatalf("seed %d, damaged", seed)
			}
		}
	}
	if valid < *cases/2 {
		t.Errorf("only %d of %d streams are valid", valid, *cases)
	}
}

// TestIgzip compares random streams with igzip: valid ones in files of many members, which it is started for once, and each
// damaged one alone.
func TestIgzip(t *testing.T) {
	program := testenv.NeedsTool(t, "igzip") // from the Debian package isal
	igzip := func(file []byte) ([]byte, error) {
		cmd := exec.CommandContext(t.Context(), program, "-d", "-c")
		cmd.Stdin = bytes.NewReader(file)
		return cmd.Output()
	}
	same := func(file []byte, seed int) {
		got, err := read(file)
		want, wantErr := igzip(file)
		if (err == nil) != (wantErr == nil) || err == nil && !bytes.Equal(got, want) {
			t.Errorf("up to seed %d: got %d bytes, %v, igzip gives %d bytes, %v", seed, len(got), err, len(want), wantErr)
		}
	}
	var file []byte
	for seed := range *cases / 4 {
		rnd := rand.New(rand.NewPCG(uint64(seed), 7))
		b := randomBlocks(rnd)
		if seed%20 == 1 {
			b[rnd.IntN(len(b))] ^= 1 << rnd.IntN(8)
		}
		want, used, err := oracle(b)
		if err != nil {
			same(member(b[:used], want), seed)
			continue
		}
		if file = append(file, member(b[:used], want)...); len(file) > 1<<20 {
			same(file, seed)
			file = nil
		}
	}
	same(file, *cases)
}

// FuzzInflate compares deflate streams with compress/flate.
func FuzzInflate(f *testing.F) {
	for seed := range uint64(30) {
		if b := randomBlocks(rand.New(rand.NewPCG(seed, 6))); len(b) < 3000 {
			f.Add(b)
		}
	}
	for _, text := range texts() {
		b := zipped(text[:min(len(text), 2000)], 6, nil)
		f.Add(b[10 : len(b)-8])
	}
	f.Fuzz(compare)
}

// FuzzGzip compares files with compress/gzip, which knows no padding.
func FuzzGzip(f *testing.F) {
	var b []byte
	for i, text := range []string{"hello, hello, hello", "", "x"} {
		b = append(b, zipped([]byte(text), 6, func(w *gzip.Writer) {
			w.Name, w.Comment = strings.Repeat("n", 5*i), strings.Repeat("c", 3*i)
			w.Extra = []byte(text)
		})...)
		f.Add(bytes.Clone(b))
	}
	f.Add(append(b, 0, 0, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := read(b)
		z, wantErr := gzip.NewReader(bytes.NewReader(b))
		var want []byte
		if wantErr == nil {
			want, wantErr = io.ReadAll(z)
		}
		if err == nil { // compress/gzip gives an error if there is padding
			if !bytes.Equal(got, want) {
				t.Errorf("got %d bytes, compress/gzip gives %d, %v", len(got), len(want), wantErr)
			}
			return
		}
		if wantErr == nil {
			t.Errorf("got %v, compress/gzip gives %d bytes and no error", err, len(want))
		}
	})
}

// Fixed tables are made once for all blocks in a row, since a block may be as short as ten bits, and again after a block
// with other codes.
func TestFixedTables(t *testing.T) {
	const mark = 0x5eed << valueShift
	r := NewReader(nil)
	r.fixed()
	made := r.lit
	r.lit[0] = mark
	r.fixed()
	if r.lit[0] != mark {
		t.Error("the tables were made again for the second block in a row")
	}
	if err := r.dynamic(); err == nil { // there is no input
		t.Error("a block of zeros has valid codes")
	}
	r.fixed()
	if r.lit != made {
		t.Error("the tables were not made again after other ones")
	}
}
