package gvariant

import "fmt"

// Entry is an entry of an a{sv}: a dictionary of values of any type.
type Entry struct {
	Key   string
	Value Variant
}

var (
	dictType  = MustType("a{sv}")
	entryType = MustType("{sv}")
)

// AppendDict appends an a{sv}, with its entries in the order given. It must begin at a multiple of 8 in its container.
func AppendDict(b []byte, entries []Entry) []byte {
	return AppendArray(b, 8, len(entries), func(b []byte, i int) []byte {
		start := len(b)
		b = AppendString(b, entries[i].Key)
		end := len(b)
		b = AppendVariant(Pad(b, start, 8), entries[i].Value)
		return AppendOffsets(b, start, end)
	})
}

// Dict returns a Variant of type a{sv}.
func Dict(entries []Entry) Variant {
	return Variant{Type: dictType.str, Data: AppendDict(nil, entries)}
}

// ParseDict takes an a{sv} apart and verifies it completely. The values refer to data. The entries take at most 8 times
// the memory of data.
func ParseDict(data []byte) ([]Entry, error) {
	e, err := dictType.Elements(data)
	if err != nil || e.Len() == 0 {
		return nil, err
	}
	const minLen = 8 + 2 + 1 + 1 // key and padding, a value of type y or unit, two offsets
	if e.Len() > len(data)/minLen {
		return nil, dictType.abnormal(fmt.Sprintf("%d entries in %d bytes", e.Len(), len(data)))
	}
	entries := make([]Entry, e.Len())
	var buf [2][]byte
	for i := range entries {
		m, err := entryType.Members(e.At(i), buf[:0])
		if err != nil {
			return nil, err
		}
		if err := stringType.Check(m[0]); err != nil {
			return nil, err
		}
		entries[i].Key = string(m[0][:len(m[0])-1])
		if entries[i].Value, err = ParseVariant(m[1]); err != nil {
			return nil, err
		}
	}
	return entries, nil
}

// Entries returns the value of a Variant of type a{sv}.
func (v Variant) Entries() ([]Entry, bool) {
	if v.Type != dictType.str {
		return nil, false
	}
	e, err := ParseDict(v.Data)
	return e, err == nil
}
