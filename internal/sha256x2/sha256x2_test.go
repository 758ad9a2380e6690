package sha256x2

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
)

var cases = flag.Int("sha256x2.cases", 3000, "random cases of TestRandom")

// counted makes WriteBoth count the blocks that it does in assembly, or not use assembly at all.
func counted(tb testing.TB, assembly bool) *atomic.Int64 {
	tb.Helper()
	n, before := new(atomic.Int64), blocks
	tb.Cleanup(func() { blocks = before })
	switch {
	case !assembly:
		blocks = nil
	case before != nil:
		blocks = func(a, b *state, p, q *byte, m int) {
			n.Add(int64(m))
			before(a, b, p, q, m)
		}
	}
	return n
}

// eachWay runs a test with the instructions of this machine, and without.
func eachWay(t *testing.T, test func(t *testing.T, n *atomic.Int64)) {
	t.Helper()
	for _, assembly := range []bool{true, false} {
		t.Run(fmt.Sprintf("assembly=%v", assembly && Enabled()), func(t *testing.T) { test(t, counted(t, assembly)) })
	}
}

// NIST's examples for FIPS 180-4.
func TestVectors(t *testing.T) {
	for _, v := range []struct{ message, sum string }{
		{"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
		{"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
		{
			"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
			"248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1",
		},
		{
			"abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmnoijklmnopjklmnopqklmnopqrlmnopqrsmnopqrstnopqrstu",
			"cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1",
		},
		{strings.Repeat("a", 1_000_000), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"},
		{strings.Repeat("\x00", 1_000_000), "d29751f2649b32ff572b5e0a9f541ea660a50f94ff0beedfb0b692b924cc8025"},
	} {
		eachWay(t, func(t *testing.T, n *atomic.Int64) {
			t.Helper()
			a, b := New(), New()
			WriteBoth(a, b, []byte(v.message))
			for _, h := range []*Hash{a, b} {
				if got := hex.EncodeToString(h.Sum(nil)); got != v.sum {
					t.Errorf("%d bytes that begin with %.10q: got %s, want %s", len(v.message), v.message, got, v.sum)
				}
			}
			if blocks != nil && len(v.message) >= 512 && n.Load() != int64(len(v.message)/BlockSize) {
				t.Errorf("%d bytes: %d blocks in assembly", len(v.message), n.Load())
			}
		})
	}
}

// BlockSize is that of SHA-256.
const BlockSize = sha256.BlockSize

// TestRandom writes random bytes in random pieces at random places to two sums, alone and together.
func TestRandom(t *testing.T) {
	eachWay(t, func(t *testing.T, n *atomic.Int64) {
		t.Helper()
		rnd := rand.New(rand.NewPCG(1, 2))
		data := make([]byte, 1<<18)
		for i := range data {
			data[i] = byte(rnd.Uint32())
		}
		a, b := New(), New()
		for i := range *cases {
			program := make([]byte, rnd.IntN(20))
			for j := range program {
				program[j] = byte(rnd.Uint32())
			}
			if i%1000 == 0 { // longer than one call of the assembly
				program = append(program, 0xff, 0xff)
			}
			run(t, a, b, data[rnd.IntN(64):], program)
			if t.Failed() {
				t.Fatalf("case %d: program %x", i, program)
			}
		}
		if *cases >= 1000 && (n.Load() > 0) != (blocks != nil) {
			t.Errorf("%d blocks in assembly", n.Load())
		}
	})
}

// run writes pieces of data as a program says, and compares the sums with those of crypto/sha256. Two bytes of it are a
// piece: the lowest bits of the first say where it is written, the rest and the second its length.
func run(t *testing.T, a, b *Hash, data, program []byte) {
	t.Helper()
	a.Reset()
	b.Reset()
	wantA, wantB := sha256.New(), sha256.New()
	for ; len(program) >= 2; program = program[2:] {
		n := int(program[0]>>2)<<8 | int(program[1])
		if program[0]>>2 < 32 {
			n >>= 3 // short ones often
		}
		if program[0] == 0xff {
			n = 1<<17 + int(program[1])
		}
		n = min(n, len(data))
		p := data[:n]
		data = data[n:]
		if len(data) < 1<<10 {
			return // the caller's data are used up
		}
		switch program[0] & 3 {
		case 0:
			a.write(p)
			wantA.Write(p)
		case 1:
			b.write(p)
			wantB.Write(p)
		default:
			WriteBoth(a, b, p)
			wantA.Write(p)
			wantB.Write(p)
		}
		if got, want := a.Sum(nil), wantA.Sum(nil); !bytes.Equal(got, want) {
			t.Errorf("first sum is %x, want %x", got, want)
		}
		if got, want := b.Sum(nil), wantB.Sum(nil); !bytes.Equal(got, want) {
			t.Errorf("second sum is %x, want %x", got, want)
		}
	}
}

// FuzzWriteBoth is TestRandom with the fuzzer's programs and data.
func FuzzWriteBoth(f *testing.F) {
	f.Add([]byte("data"), []byte{2, 200, 0, 5, 3, 255, 0x83, 7, 1, 9, 0xff, 0x10})
	f.Add(bytes.Repeat([]byte{0x80, 0xff, 1}, 99), []byte{0xfe, 1, 0x42, 2, 1, 3, 0xfe, 4})
	f.Fuzz(func(t *testing.T, seed, program []byte) {
		if len(seed) == 0 {
			seed = []byte{0}
		}
		data := bytes.Repeat(seed, 1<<18/len(seed)+1)
		run(t, New(), New(), data, program[:min(len(program), 64)])
	})
}

// FuzzBlocks compares the assembly with two passes over states that no message need have.
func FuzzBlocks(f *testing.F) {
	f.Add([]byte(strings.Repeat("0123456789abcdef", 20)))
	f.Fuzz(func(t *testing.T, in []byte) {
		const states = 2 * sha256.Size
		if blocks == nil || len(in) < states+BlockSize+63 {
			return
		}
		offset := int(in[0] % 64)
		body := in[states:]
		n := (len(body) - offset) / BlockSize
		got, want := [2]*Hash{New(), New()}, [2]*Hash{New(), New()}
		for i := range got {
			for _, h := range []*Hash{got[i], want[i]} {
				h.take(nil)
				for j := range h.state {
					h.state[j] = uint32(in[i*sha256.Size+4*j])<<24 | uint32(in[i*sha256.Size+4*j+1])<<16 |
						uint32(in[i*sha256.Size+4*j+2])<<8 | uint32(in[i*sha256.Size+4*j+3])
				}
				if h == want[i] {
					h.put(0, body[i*offset:][:n*BlockSize])
				}
			}
		}
		blocks(&got[0].state, &got[1].state, &body[0], &body[offset], n)
		for i := range got {
			got[i].put(n, nil)
			if g, w := got[i].Sum(nil), want[i].Sum(nil); !bytes.Equal(g, w) {
				t.Errorf("sum %d of %d blocks is %x, want %x", i, n, g, w)
			}
		}
	})
}

func BenchmarkWriteBoth(bm *testing.B) {
	for _, size := range []int{128, 256, 512, 1 << 10, 4 << 10, 32 << 10, 256 << 10} {
		p := make([]byte, size)
		header := make([]byte, 37)
		bench := func(name string, write func(a, b *Hash)) {
			bm.Run(fmt.Sprintf("%s/%d", name, size), func(bm *testing.B) {
				a, b := New(), New()
				bm.SetBytes(int64(size))
				for bm.Loop() {
					b.Reset()
					b.write(header)
					write(a, b)
				}
			})
		}
		bench("one", func(a, _ *Hash) { a.write(p) })
		bench("apart", func(a, b *Hash) { a.write(p); b.write(p) })
		bench("both", func(a, b *Hash) { WriteBoth(a, b, p) })
	}
}
