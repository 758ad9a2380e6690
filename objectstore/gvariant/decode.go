package gvariant

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"unicode/utf8"
)

// Elements are the elements of an array, subslices of its serialised form.
type Elements struct {
	data  []byte
	elem  *Type
	n     int
	z     int // size of an offset, 0 for elements of fixed size
	table int // where the offsets begin
}

// Len returns the number of elements.
func (e *Elements) Len() int { return e.n }

// At returns the serialised i'th element.
func (e *Elements) At(i int) []byte {
	if e.z == 0 {
		return e.data[i*e.elem.fixed : (i+1)*e.elem.fixed]
	}
	start := 0
	if i > 0 {
		start = alignUp(e.end(i-1), e.elem.align)
	}
	return e.data[start:e.end(i)]
}

func (e *Elements) end(i int) int { return readOffset(e.data[e.table+i*e.z:], e.z) }

// readOffset reads a framing offset. An impossible offset becomes negative or too large.
func readOffset(b []byte, z int) int {
	switch z {
	case 1:
		return int(b[0])
	case 2:
		return int(binary.LittleEndian.Uint16(b))
	case 4:
		return int(binary.LittleEndian.Uint32(b))
	}
	return int(binary.LittleEndian.Uint64(b))
}

// sizeOfOffsets returns the size of an offset in a container of n bytes.
func sizeOfOffsets(n int) int {
	switch {
	case n <= 0xff:
		return 1
	case n <= 0xffff:
		return 2
	case uint64(n) <= 0xffffffff:
		return 4
	}
	return 8
}

// Elements takes an array apart. It verifies offsets and padding, in time linear in the number of elements, so that
// [Elements.At] is safe. It does not check the elements themselves.
func (t *Type) Elements(data []byte) (Elements, error) {
	if t.kind != 'a' {
		return Elements{}, fmt.Errorf("take apart value of type %s: not an array", t.str)
	}
	elem := t.members[0]
	if elem.fixed > 0 {
		if len(data)%elem.fixed != 0 {
			return Elements{}, t.abnormal("its size is no multiple of that of an element")
		}
		return Elements{data: data, elem: elem, n: len(data) / elem.fixed}, nil
	}
	if len(data) == 0 {
		return Elements{}, nil
	}
	z := sizeOfOffsets(len(data))
	if len(data) < z {
		return Elements{}, t.abnormal("too short")
	}
	table := readOffset(data[len(data)-z:], z)
	if table < 0 || table >= len(data) || (len(data)-table)%z != 0 {
		return Elements{}, t.abnormal("its offsets begin outside of it")
	}
	e := Elements{data: data, elem: elem, n: (len(data) - table) / z, z: z, table: table}
	if offsetSize(table, e.n) != z {
		return Elements{}, t.abnormal("its offsets are larger than necessary")
	}
	last := 0
	for i := range e.n {
		start, end := alignUp(last, elem.align), e.end(i)
		if end < start || end > table {
			return Elements{}, t.abnormal("its offsets do not grow")
		}
		if !allZero(data[last:start]) {
			return Elements{}, t.abnormal("its padding is not zero")
		}
		last = end
	}
	return e, nil
}

// Members takes a tuple or dict entry apart and appends its serialised members to dst. It verifies offsets and padding,
// but does not check the members themselves.
func (t *Type) Members(data []byte, dst [][]byte) ([][]byte, error) {
	if t.kind != '(' && t.kind != '{' {
		return nil, fmt.Errorf("take apart value of type %s: not a tuple", t.str)
	}
	if t.fixed > 0 && len(data) != t.fixed {
		return nil, t.abnormal("wrong size")
	}
	z := sizeOfOffsets(len(data))
	body := len(data) - t.offsets*z
	if body < 0 {
		return nil, t.abnormal("too short")
	}
	if t.offsets > 0 && offsetSize(body, t.offsets) != z {
		return nil, t.abnormal("its offsets are larger than necessary")
	}
	pos, nextOffset := 0, len(data)
	for i, m := range t.members {
		start := alignUp(pos, m.align)
		var end int
		switch {
		case m.fixed > 0:
			end = start + m.fixed
		case i == len(t.members)-1:
			end = body
		default:
			nextOffset -= z
			end = readOffset(data[nextOffset:], z)
		}
		if end < start || end > body {
			return nil, t.abnormal("a member ends outside of it")
		}
		if !allZero(data[pos:start]) {
			return nil, t.abnormal("its padding is not zero")
		}
		dst = append(dst, data[start:end:end])
		pos = end
	}
	if t.fixed == 0 && pos != body || !allZero(data[pos:body]) {
		return nil, t.abnormal("data follows its last member")
	}
	return dst, nil
}

// variant takes a value of type v apart. It verifies that the type string is one complete type, but does not check the
// value.
func variant(data []byte) (Variant, *Type, error) {
	i := bytes.LastIndexByte(data, 0)
	if i < 0 {
		return Variant{}, nil, variantType.abnormal("no type")
	}
	t, err := ParseType(string(data[i+1:]))
	if err != nil {
		return Variant{}, nil, variantType.abnormal(err.Error())
	}
	return Variant{Type: t.str, Data: data[:i:i]}, t, nil
}

// ParseVariant takes a value of type v apart and verifies it completely. The Variant refers to data.
func ParseVariant(data []byte) (Variant, error) {
	v, t, err := variant(data)
	if err != nil {
		return Variant{}, err
	}
	return v, t.check(v.Data, 1)
}

var variantType = MustType("v")

// Check verifies that data is the normal form of a value of type t.
func (t *Type) Check(data []byte) error { return t.check(data, 0) }

func (t *Type) check(data []byte, depth int) error {
	if depth > maxDepth {
		return t.abnormal("nested too deeply")
	}
	if t.fixed > 0 && len(data) != t.fixed {
		return t.abnormal("wrong size")
	}
	switch t.kind {
	case 'b':
		if data[0] > 1 {
			return t.abnormal("neither true nor false")
		}
	case 's', 'o', 'g':
		return t.checkString(data)
	case 'v':
		v, vt, err := variant(data)
		if err != nil {
			return err
		}
		return vt.check(v.Data, depth+1)
	case 'm':
		return t.checkMaybe(data, depth)
	case 'a':
		return t.checkArray(data, depth)
	case '(', '{':
		var buf [8][]byte
		members, err := t.Members(data, buf[:0])
		if err != nil {
			return err
		}
		for i, m := range members {
			if err := t.members[i].check(m, depth+1); err != nil {
				return err
			}
		}
	}
	return nil
}

func (t *Type) checkString(data []byte) error {
	n := len(data) - 1
	if n < 0 || bytes.IndexByte(data, 0) != n {
		return t.abnormal("not ended by the only NUL")
	}
	s := data[:n]
	switch {
	case !utf8.Valid(s):
		return t.abnormal("not UTF-8")
	case t.kind == 'o' && !isObjectPath(string(s)):
		return t.abnormal("not an object path")
	case t.kind == 'g' && !isSignature(string(s)):
		return t.abnormal("not a signature")
	}
	return nil
}

func (t *Type) checkMaybe(data []byte, depth int) error {
	if len(data) == 0 {
		return nil
	}
	elem := t.members[0]
	if elem.fixed == 0 {
		if data[len(data)-1] != 0 {
			return t.abnormal("not ended by zero")
		}
		data = data[:len(data)-1]
	}
	return elem.check(data, depth+1)
}

func (t *Type) checkArray(data []byte, depth int) error {
	e, err := t.Elements(data)
	if err != nil {
		return err
	}
	switch elem := t.members[0]; elem.kind {
	case 'y', 'n', 'q', 'i', 'u', 'h', 'x', 't', 'd': // every bit pattern is a value
	default:
		for i := range e.n {
			if err := elem.check(e.At(i), depth+1); err != nil {
				return err
			}
		}
	}
	return nil
}

func (t *Type) abnormal(why string) error {
	return fmt.Errorf("value of type %s: %s: %w", t.str, why, ErrNotNormal)
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
