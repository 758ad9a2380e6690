package gvariant

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ErrNotNormal reports that data is not the normal form of a value of its type.
var ErrNotNormal = errors.New("not a GVariant in normal form")

const (
	maxTypeLen = 255 // bytes in a type string, the limit of D-Bus signatures
	maxDepth   = 64  // containers in containers, in a type string and, variants included, in a value
)

// Type is a parsed type string. It is immutable and may be shared.
type Type struct {
	str     string
	kind    byte    // 'a', 'm', '(' , '{' or the basic type
	align   int     // 1, 2, 4 or 8
	fixed   int     // serialised size, 0 when it depends on the value
	members []*Type // of a tuple or dict entry; the one element type of an array or maybe
	offsets int     // framing offsets of a tuple: variable-sized members that are not the last
}

// String returns the type string.
func (t *Type) String() string { return t.str }

// MustType parses a type string that is known to be valid, and panics if it is not.
func MustType(s string) *Type {
	t, err := ParseType(s)
	if err != nil {
		panic(err)
	}
	return t
}

// ParseType parses the type string of one complete type, of at most 255 bytes and 64 levels.
func ParseType(s string) (*Type, error) {
	if len(s) > maxTypeLen {
		return nil, fmt.Errorf("parse type: %d bytes, at most %d are allowed", len(s), maxTypeLen)
	}
	t, rest, err := parseType(s, 0)
	if err == nil && rest != "" {
		err = fmt.Errorf("%q follows the type", rest)
	}
	if err != nil {
		return nil, fmt.Errorf("parse type %q: %w", s, err)
	}
	return t, nil
}

func parseType(s string, depth int) (*Type, string, error) {
	if s == "" {
		return nil, "", errors.New("a type is missing")
	}
	if depth > maxDepth {
		return nil, "", errors.New("nested too deeply")
	}
	t := &Type{kind: s[0], align: 1}
	rest := s[1:]
	switch s[0] {
	case 'y', 'b':
		t.fixed = 1
	case 'n', 'q':
		t.align, t.fixed = 2, 2
	case 'i', 'u', 'h':
		t.align, t.fixed = 4, 4
	case 'x', 't', 'd':
		t.align, t.fixed = 8, 8
	case 's', 'o', 'g':
	case 'v':
		t.align = 8
	case 'a', 'm':
		elem, r, err := parseType(rest, depth+1)
		if err != nil {
			return nil, "", err
		}
		t.members, t.align, rest = []*Type{elem}, elem.align, r
	case '(', '{':
		var err error
		if rest, err = t.parseMembers(rest, depth); err != nil {
			return nil, "", err
		}
	default:
		return nil, "", fmt.Errorf("unknown type %q", s[0])
	}
	t.str = s[:len(s)-len(rest)]
	return t, rest, nil
}

// parseMembers parses the members of a tuple or dict entry, from behind its opening bracket up to its closing one.
func (t *Type) parseMembers(s string, depth int) (string, error) {
	closing := byte(')')
	if t.kind == '{' {
		closing = '}'
	}
	for {
		if s == "" {
			return "", fmt.Errorf("%q is missing", closing)
		}
		if s[0] == closing {
			break
		}
		m, rest, err := parseType(s, depth+1)
		if err != nil {
			return "", err
		}
		t.members, s = append(t.members, m), rest
	}
	if t.kind == '{' && (len(t.members) != 2 || !strings.Contains("ybnqiuhxtdsog", t.members[0].str)) {
		return "", errors.New("a dict entry has a basic key and one value")
	}
	t.layOut()
	return s[1:], nil
}

// layOut computes alignment, fixed size and number of framing offsets from the members.
func (t *Type) layOut() {
	size, fixed := 0, true
	for i, m := range t.members {
		t.align = max(t.align, m.align)
		size = alignUp(size, m.align) + m.fixed
		if m.fixed == 0 {
			fixed = false
			if i != len(t.members)-1 {
				t.offsets++
			}
		}
	}
	if fixed {
		t.fixed = max(1, alignUp(size, t.align)) // the unit tuple is one zero byte
	}
}

func alignUp(n, align int) int { return (n + align - 1) &^ (align - 1) }

// isSignature reports whether s is a value of type g: a sequence of complete types.
func isSignature(s string) bool {
	if len(s) > maxTypeLen {
		return false
	}
	for s != "" {
		_, rest, err := parseType(s, 0)
		if err != nil {
			return false
		}
		s = rest
	}
	return true
}

// isObjectPath reports whether s is a value of type o, a D-Bus object path.
func isObjectPath(s string) bool {
	if s == "/" {
		return true
	}
	parts := strings.Split(s, "/")
	return len(parts) > 1 && parts[0] == "" && !slices.ContainsFunc(parts[1:], func(p string) bool {
		return p == "" || strings.ContainsFunc(p, func(r rune) bool {
			return r != '_' && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
		})
	})
}
