package gvariant

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

func unhex(tb testing.TB, s string) []byte {
	tb.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

func TestParseType(t *testing.T) {
	for _, tc := range []struct {
		typ             string
		align, fixed, n int
	}{
		{"y", 1, 1, 0},
		{"b", 1, 1, 0},
		{"q", 2, 2, 0},
		{"u", 4, 4, 0},
		{"t", 8, 8, 0},
		{"s", 1, 0, 0},
		{"v", 8, 0, 0},
		{"ay", 1, 0, 0},
		{"()", 1, 1, 0},
		{"(yu)", 4, 8, 0},
		{"(uy)", 4, 8, 0},
		{"(ayay)", 1, 0, 1},
		{"(uuua(ayay))", 4, 0, 0},
		{"(uuuusa(ayay))", 4, 0, 1},
		{"(a(say)a(sayay))", 1, 0, 1},
		{"(a{sv}aya(say)sstayay)", 8, 0, 6},
		{"{sv}", 8, 0, 1},
		{"mi", 4, 0, 0},
	} {
		t.Run(tc.typ, func(t *testing.T) {
			typ, err := ParseType(tc.typ)
			if err != nil {
				t.Fatal(err)
			}
			if typ.align != tc.align || typ.fixed != tc.fixed || typ.offsets != tc.n || typ.String() != tc.typ {
				t.Errorf("got align %d, fixed %d, %d offsets, want %+v", typ.align, typ.fixed, typ.offsets, tc)
			}
		})
	}
	for name, bad := range map[string]string{
		"empty": "", "unknown": "z", "open tuple": "(ss", "closed only": ")", "no element": "a", "two types": "ss",
		"dict of three": "{sss}", "dict with container key": "{vs}", "wrong bracket": "(s}", "too deep": strings.Repeat("a", 70) + "y",
		"too long": "(" + strings.Repeat("y", 300) + ")",
	} {
		if _, err := ParseType(bad); err == nil {
			t.Errorf("%s: type %q was accepted", name, bad)
		}
	}
}

func TestCheck(t *testing.T) {
	for _, tc := range []struct{ name, typ, hex string }{
		{"empty string", "s", "00"},
		{"non-ASCII", "s", "c3bc00"},
		{"true", "b", "01"},
		{"strings", "as", "746573742f7800 07"},
		{"no strings", "as", ""},
		{"empty bytes twice", "aay", "0000"},
		{"variant", "v", "746573742f7800 07 00 6173"},
		{"nested variant", "v", "01 00 62 00 76"},
		{"dict", "a{sv}", "6f73747265652e7265662d62696e64696e6700 0000000000 746573742f7800 07 00 6173 13 24"},
		{"unit", "()", "00"},
		{"units", "a()", "000000"},
		{"padded tuple", "(yu)", "01000000 02000000"},
		{"nothing", "ms", ""},
		{"just string", "ms", "6100 00"},
		{"just fixed", "my", "07"},
		{"signature", "g", "7328617929 00"},
		{"object path", "o", "2f612f6200"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := MustType(tc.typ).Check(unhex(t, tc.hex)); err != nil {
				t.Error(err)
			}
		})
	}
	for _, tc := range []struct{ name, typ, hex string }{
		{"string without NUL", "s", "61"},
		{"empty for a string", "s", ""},
		{"NUL in string", "s", "610062 00"},
		{"bad UTF-8", "s", "ff00"},
		{"surrogate", "s", "eda08000"},
		{"boolean 2", "b", "02"},
		{"short integer", "u", "000000"},
		{"long integer", "u", "0000000000"},
		{"dirty padding in tuple", "(yu)", "01000100 02000000"},
		{"dirty padding at end", "(uy)", "01000000 02000001"},
		{"dirty unit", "()", "01"},
		{"offset outside", "as", "6100 05"},
		{"offsets shrink", "aay", "616263 02 01 03"},
		{"wide offsets", "(ayay)", strings.Repeat("61", 254) + "0100"},
		{"dirty dict padding", "a{sv}", "6f73747265652e7265662d62696e64696e6700 0100000000 746573742f7800 07 00 6173 13 24"},
		{"bytes behind last member", "(sy)", "6100 07 07 02"},
		{"variant without type", "v", "61"},
		{"variant of two types", "v", "01 00 6262"},
		{"variant of unknown type", "v", "01 00 7a"},
		{"array of fixed, odd size", "au", "0000000000"},
		{"just string without end", "ms", "610061"},
		{"bad signature", "g", "2800"},
		{"bad object path", "o", "2f612f00"},
		{"variants nested too deeply", "v", "00 00 79" + strings.Repeat(" 00 76", 80)},
	} {
		t.Run("not normal: "+tc.name, func(t *testing.T) {
			if err := MustType(tc.typ).Check(unhex(t, tc.hex)); !errors.Is(err, ErrNotNormal) {
				t.Errorf("got %v, want ErrNotNormal", err)
			}
		})
	}
}

// TestOffsetSizes checks the sizes at which framing offsets of tuples and arrays grow.
func TestOffsetSizes(t *testing.T) {
	for _, tc := range []struct{ body, offset int }{
		{0, 1}, {253, 1}, {254, 1}, {255, 2}, {256, 2}, {65532, 2}, {65533, 2}, {65534, 4}, {65535, 4}, {65536, 4}, {70000, 4},
	} {
		t.Run(fmt.Sprint(tc.body), func(t *testing.T) {
			first := tc.body / 3
			b := bytes.Repeat([]byte{'x'}, tc.body)
			b = AppendOffsets(b, 0, first)
			if got := len(b) - tc.body; got != tc.offset {
				t.Fatalf("offset of %d bytes, want %d", got, tc.offset)
			}
			typ := MustType("(ayay)")
			if err := typ.Check(b); err != nil {
				t.Fatal(err)
			}
			m, err := typ.Members(b, nil)
			if err != nil || len(m[0]) != first || len(m[1]) != tc.body-first {
				t.Errorf("got members %d and %d (%v), want %d and %d", len(m[0]), len(m[1]), err, first, tc.body-first)
			}
			a := AppendArray(nil, 1, 1, func(b []byte, _ int) []byte { return append(b, make([]byte, tc.body)...) })
			if got := len(a) - tc.body; got != tc.offset {
				t.Errorf("array: offset of %d bytes, want %d", got, tc.offset)
			}
			e, err := MustType("aay").Elements(a)
			if err != nil || e.Len() != 1 || len(e.At(0)) != tc.body {
				t.Errorf("array: got %d elements (%v), want one of %d bytes", e.Len(), err, tc.body)
			}
		})
	}
}

func TestVariants(t *testing.T) {
	for _, v := range []Variant{
		String(""), String("grüße"), Strings(nil), Strings([]string{"a", "", "b"}), Bytes(nil), Bytes([]byte{0, 1}),
		Bool(true), Bool(false), Uint64(1 << 63),
	} {
		data := AppendVariant(nil, v)
		got, err := ParseVariant(data)
		if err != nil || got.Type != v.Type || !bytes.Equal(got.Data, v.Data) {
			t.Errorf("%+v: came back as %+v, %v", v, got, err)
		}
		if err := v.Check(); err != nil {
			t.Errorf("%+v: %v", v, err)
		}
	}
	if s, ok := String("grüße").Str(); !ok || s != "grüße" {
		t.Errorf("got %q, %v", s, ok)
	}
	if s, ok := Strings([]string{"a", "", "b"}).Strings(); !ok || !slices.Equal(s, []string{"a", "", "b"}) {
		t.Errorf("got %q, %v", s, ok)
	}
	if n, ok := Uint64(1 << 63).Uint64(); !ok || n != 1<<63 {
		t.Errorf("got %d, %v", n, ok)
	}
	if v, ok := Bool(true).Bool(); !ok || !v {
		t.Errorf("got %v, %v", v, ok)
	}
	if b, ok := Bytes([]byte{1}).Bytes(); !ok || !bytes.Equal(b, []byte{1}) {
		t.Errorf("got %v, %v", b, ok)
	}
	if _, ok := Uint64(1).Str(); ok {
		t.Error("an integer was taken for a string")
	}
	if _, ok := (Variant{}).Str(); ok {
		t.Error("the zero Variant was taken for a string")
	}
}

// encode re-encodes a decoded value the way the encoders do: for data in normal form it is the inverse of decoding.
func encode(b []byte, typ *Type, data []byte) []byte {
	switch typ.kind {
	case 'a':
		e, err := typ.Elements(data)
		if err != nil {
			panic(err)
		}
		elem := typ.members[0]
		if elem.fixed > 0 {
			return append(b, data...)
		}
		return AppendArray(b, elem.align, e.Len(), func(b []byte, i int) []byte { return encode(b, elem, e.At(i)) })
	case 'v':
		v, err := ParseVariant(data)
		if err != nil {
			panic(err)
		}
		return AppendVariant(b, Variant{Type: v.Type, Data: encode(nil, MustType(v.Type), v.Data)})
	case '(', '{':
		m, err := typ.Members(data, nil)
		if err != nil {
			panic(err)
		}
		start := len(b)
		var ends []int
		for i, member := range typ.members {
			b = encode(Pad(b, start, member.align), member, m[i])
			if member.fixed == 0 && i < len(typ.members)-1 {
				ends = append(ends, len(b))
			}
		}
		if typ.fixed > 0 {
			return append(b, make([]byte, typ.fixed-(len(b)-start))...)
		}
		slices.Reverse(ends)
		return AppendOffsets(b, start, ends...)
	}
	return append(b, data...)
}

// FuzzCheck feeds arbitrary data to every decoder. Data that passes Check must re-encode to itself.
func FuzzCheck(f *testing.F) {
	for _, s := range []struct{ typ, hex string }{
		{"(a{sv}aya(say)sstayay)", "6f73747265652e7265662d62696e64696e6700 0000000000 746573742f7800 07 00 6173 13 24 7375626a00 00 0000000000 000000006553f100 b8a53e49b9d66b32ad93f7c4e7dfdb49cd4f60d6df28b149da9a431c04bb4556 446a0ef11b7cc167f3b603e585c7eeeeb675faa412d5ec73f62988eb0b6c5488 58 2b 2a 25 25 25"},
		{"(uuua(ayay))", "00000000 00000000 000041ed"},
		{"(uuuusa(ayay))", "000003e8 000003e9 000081a4 00000000 00 757365722e6100 3131 07 757365722e6200 32 07 0a 13 11"},
		{"v", "01 00 62 00 76"},
		{"ma(yu)", "01000000 02000000 00"},
		{"(yu)", "01000000 02000000"},
		{"a()", "0000"},
	} {
		f.Add(s.typ, unhex(f, s.hex))
	}
	f.Fuzz(func(t *testing.T, s string, data []byte) {
		typ, err := ParseType(s)
		if err != nil {
			return
		}
		if members, err := typ.Members(data, nil); err == nil && len(members) != len(typ.members) {
			t.Errorf("%d members, want %d", len(members), len(typ.members))
		}
		if e, err := typ.Elements(data); err == nil {
			for i := range e.Len() {
				e.At(i)
			}
		}
		if typ.Check(data) != nil {
			return
		}
		if got := encode(nil, typ, data); !bytes.Equal(got, data) {
			t.Errorf("type %s: %x passes Check but is encoded as %x", s, data, got)
		}
	})
}

func TestDict(t *testing.T) {
	entries := []Entry{
		{Key: "target", Value: Dict([]Entry{{Key: "name", Value: String("n")}})},
		{Key: "kargs", Value: Strings([]string{"a", "b=c"})},
	}
	v := Dict(entries)
	got, ok := v.Entries()
	if !ok || len(got) != 2 || v.Check() != nil {
		t.Fatalf("got %v, %t; check: %v", got, ok, v.Check())
	}
	for i := range got {
		if got[i].Key != entries[i].Key || got[i].Value.Type != entries[i].Value.Type || !bytes.Equal(got[i].Value.Data, entries[i].Value.Data) {
			t.Errorf("entry %d: got %v, want %v", i, got[i], entries[i])
		}
	}
	if inner, ok := got[0].Value.Entries(); !ok || len(inner) != 1 {
		t.Errorf("inner: got %v, %t", inner, ok)
	}
	if _, ok := got[1].Value.Entries(); ok {
		t.Error("strings were taken for a dictionary")
	}
	for n := range len(v.Data) {
		if n == 0 {
			continue // is empty
		}
		if got, err := ParseDict(v.Data[:n]); err == nil {
			t.Errorf("%d of %d bytes: got %v", n, len(v.Data), got)
		}
	}
}
