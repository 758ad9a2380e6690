package gvariant

import "encoding/binary"

var zeros [8]byte

// Pad appends zero bytes until the length of the container that begins at start is a multiple of align.
func Pad(b []byte, start, align int) []byte {
	n := len(b) - start
	return append(b, zeros[:alignUp(n, align)-n]...)
}

// AppendString appends a string (types s, o and g). The caller must check that it is valid UTF-8 without NUL.
func AppendString(b []byte, s string) []byte {
	return append(append(b, s...), 0)
}

// AppendOffsets closes the container that begins at start: it appends the framing offsets in the order given. Each is
// the end of a member as a length of b. A tuple has an offset for each variable-sized member, except a last one, from
// the last to the first; an array of variable-sized elements has one for each element, from the first to the last.
func AppendOffsets(b []byte, start int, ends ...int) []byte {
	z := offsetSize(len(b)-start, len(ends))
	for _, e := range ends {
		b = appendOffset(b, e-start, z)
	}
	return b
}

func appendOffset(b []byte, off, z int) []byte {
	for range z {
		b = append(b, byte(off))
		off >>= 8
	}
	return b
}

// offsetSize returns the smallest size of n offsets behind a body with which the whole container can be addressed.
func offsetSize(body, n int) int {
	for _, z := range []int{1, 2, 4} {
		if uint64(body)+uint64(n)*uint64(z) <= 1<<(8*z)-1 {
			return z
		}
	}
	return 8
}

// AppendArray appends an array of n variable-sized elements of the given alignment. elem appends the i'th element to b,
// which is padded already. The array must begin at a multiple of the alignment in b.
func AppendArray(b []byte, align, n int, elem func(b []byte, i int) []byte) []byte {
	if n == 0 {
		return b
	}
	start := len(b)
	ends := make([]int, n)
	for i := range n {
		b = elem(Pad(b, start, align), i)
		ends[i] = len(b)
	}
	return AppendOffsets(b, start, ends...)
}

// Variant is a value together with its type: the content of a v. The zero Variant is not a value.
type Variant struct {
	Type string // one complete type
	Data []byte // the serialised value
}

// AppendVariant appends a value of type v. It must begin at a multiple of 8 in its container.
func AppendVariant(b []byte, v Variant) []byte {
	b = append(b, v.Data...)
	b = append(b, 0)
	return append(b, v.Type...)
}

// String returns a Variant of type s.
func String(s string) Variant { return Variant{Type: "s", Data: AppendString(nil, s)} }

// Strings returns a Variant of type as.
func Strings(s []string) Variant {
	return Variant{Type: "as", Data: AppendArray(nil, 1, len(s), func(b []byte, i int) []byte {
		return AppendString(b, s[i])
	})}
}

// Bytes returns a Variant of type ay.
func Bytes(p []byte) Variant { return Variant{Type: "ay", Data: p} }

// Bool returns a Variant of type b.
func Bool(v bool) Variant {
	if v {
		return Variant{Type: "b", Data: []byte{1}}
	}
	return Variant{Type: "b", Data: []byte{0}}
}

// Uint64 returns a Variant of type t.
func Uint64(v uint64) Variant {
	return Variant{Type: "t", Data: binary.LittleEndian.AppendUint64(nil, v)}
}

// Str returns the value of a Variant of type s.
func (v Variant) Str() (string, bool) {
	if v.Type != "s" || stringType.Check(v.Data) != nil {
		return "", false
	}
	return string(v.Data[:len(v.Data)-1]), true
}

// Strings returns the value of a Variant of type as.
func (v Variant) Strings() ([]string, bool) {
	if v.Type != "as" || stringsType.Check(v.Data) != nil {
		return nil, false
	}
	e, err := stringsType.Elements(v.Data)
	if err != nil {
		return nil, false
	}
	s := make([]string, e.Len())
	for i := range s {
		at := e.At(i)
		s[i] = string(at[:len(at)-1])
	}
	return s, true
}

// Bytes returns the value of a Variant of type ay, which the caller must not change.
func (v Variant) Bytes() ([]byte, bool) { return v.Data, v.Type == "ay" }

// Bool returns the value of a Variant of type b.
func (v Variant) Bool() (value, ok bool) {
	if v.Type != "b" || len(v.Data) != 1 || v.Data[0] > 1 {
		return false, false
	}
	return v.Data[0] == 1, true
}

// Uint64 returns the value of a Variant of type t.
func (v Variant) Uint64() (uint64, bool) {
	if v.Type != "t" || len(v.Data) != 8 {
		return 0, false
	}
	return binary.LittleEndian.Uint64(v.Data), true
}

// Check verifies that v is a value: a complete type and its normal form.
func (v Variant) Check() error {
	t, err := ParseType(v.Type)
	if err != nil {
		return err
	}
	return t.Check(v.Data)
}

var (
	stringType  = MustType("s")
	stringsType = MustType("as")
)
