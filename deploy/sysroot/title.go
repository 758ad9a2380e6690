package sysroot

import (
	"fmt"
	"strings"
)

const maxReleaseLen = 64 << 10

// systemName returns the name of the system in a tree.
func (t *osTree) systemName() (string, error) {
	data, err := t.readFile("usr/lib/os-release", maxReleaseLen)
	for _, name := range []string{"usr/etc/os-release", "etc/os-release"} { // the latter in older trees
		if isAbsent(err) {
			data, err = t.readFile(name, maxReleaseLen)
		}
	}
	if isAbsent(err) {
		return "", fmt.Errorf("%w: %w", err, ErrInvalid)
	}
	if err != nil {
		return "", err
	}
	name, ok := parseRelease(string(data))
	if !ok {
		return "", fmt.Errorf("neither PRETTY_NAME nor ID is in os-release: %w", ErrInvalid)
	}
	return name, nil
}

// parseRelease returns the name in the text of an os-release file.
func parseRelease(text string) (string, bool) {
	values := make(map[string]string)
	for line := range strings.SplitSeq(text, "\n") {
		key, quoted, ok := strings.Cut(line, "=")
		if !ok || strings.HasPrefix(line, "#") {
			continue
		}
		if v, ok := unquote(quoted); ok {
			values[key] = v
		}
	}
	for _, key := range []string{"PRETTY_NAME", "ID"} {
		if v, ok := values[key]; ok {
			return oneLine(v), true
		}
	}
	return "", false
}

// oneLine returns a text fit to be the value of a field of an entry, whatever it contains.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	const limit = 200
	if r := []rune(s); len(r) > limit {
		s = string(r[:limit])
	}
	return strings.TrimSpace(s)
}

// unquote removes shell quotes from a word, or from several joined ones.
func unquote(s string) (string, bool) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch c := s[i]; c {
		case '\'':
			end := strings.IndexByte(s[i+1:], '\'')
			if end < 0 {
				return "", false
			}
			b.WriteString(s[i+1 : i+1+end])
			i += 1 + end
		case '"':
			for i++; ; i++ {
				if i >= len(s) {
					return "", false
				}
				if s[i] == '"' {
					break
				}
				if s[i] == '\\' && i+1 < len(s) && strings.IndexByte("\"\\`$\n", s[i+1]) >= 0 {
					i++
				}
				b.WriteByte(s[i])
			}
		case '\\':
			if i++; i < len(s) {
				b.WriteByte(s[i])
			}
		default:
			b.WriteByte(c)
		}
	}
	return b.String(), true
}

// titleOf returns the title of an entry, as libostree does.
func titleOf(system, version, stateroot string, several bool, index int) string {
	var b strings.Builder
	b.WriteString(system)
	if version = oneLine(version); version != "" && !strings.Contains(system, version) {
		b.WriteString(" " + version)
	}
	b.WriteString(" (ostree")
	if several {
		b.WriteString(":" + stateroot)
	}
	fmt.Fprintf(&b, ":%d)", index)
	return b.String()
}
