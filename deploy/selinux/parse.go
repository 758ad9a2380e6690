package selinux

import (
	"fmt"
	"io/fs"
	"regexp"
	"regexp/syntax"
	"strings"
	"sync"
	"unicode"
)

const (
	// none is the context of files that a policy leaves without a label.
	none = "<<none>>"

	maxSpecLen = 4095 // bytes; libselinux does not compile longer ones

	// stemDepth is the number of leading directories by which libselinux groups patterns.
	stemDepth = 3
)

// A spec is a line of file_contexts.
type spec struct {
	Match
	input   int
	anyKind bool
	kind    fs.FileMode // type bits; that of regular files is 0

	// Of a pattern.
	prefix, suffix string   // with which a path must begin and end
	inner          []string // what it must have between the two, in this order
	tail           tail
	compile        func() *regexp.Regexp
}

// kinds are the types of files in file_contexts(5).
var kinds = map[string]fs.FileMode{
	"--": 0,
	"-d": fs.ModeDir,
	"-l": fs.ModeSymlink,
	"-c": fs.ModeDevice | fs.ModeCharDevice,
	"-b": fs.ModeDevice,
	"-p": fs.ModeNamedPipe,
	"-s": fs.ModeSocket,
}

// addSpecs parses a file of specs.
func (p *Policy) addSpecs(input int, file string, data []byte) error {
	n := 0
	for line := range strings.Lines(string(data)) {
		n++
		s, err := parseSpec(line)
		if err != nil {
			return fmt.Errorf("%w: %s: line %d: %w", ErrInvalid, file, n, err)
		}
		if s == nil {
			continue
		}
		s.input, s.File, s.Line = input, file, n
		if literal, ok := literalPath(s.Spec); ok {
			p.literals[literal] = append(p.literals[literal], s)
			continue
		}
		if err := s.parsePattern(); err != nil {
			return fmt.Errorf("%w: %s: line %d: %w", ErrInvalid, file, n, err)
		}
		stem := stemOf(s.Spec, literalPath)
		p.patterns[stem] = append(p.patterns[stem], s)
	}
	return nil
}

// parseSpec parses a line. It returns nil for a blank line and a comment.
func parseSpec(line string) (*spec, error) {
	fields := strings.FieldsFunc(line, isSpace)
	if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
		return nil, nil
	}
	fields = fields[:min(len(fields), 3)]
	for _, f := range fields {
		if strings.ContainsFunc(f, func(r rune) bool { return r > unicode.MaxASCII }) {
			return nil, fmt.Errorf("%q has characters that are not ASCII", f)
		}
	}
	s := &spec{anyKind: true}
	switch len(fields) {
	case 1:
		return nil, fmt.Errorf("%q has no context", fields[0])
	case 2:
		s.Context = fields[1]
	default:
		kind, ok := kinds[fields[1]]
		if !ok {
			return nil, fmt.Errorf("%q is not a type of file", fields[1])
		}
		s.Context, s.kind, s.anyKind = fields[2], kind, false
	}
	if s.Spec = fields[0]; len(s.Spec) > maxSpecLen {
		return nil, fmt.Errorf("pattern of %d bytes, at most %d are allowed", len(s.Spec), maxSpecLen)
	}
	return s, nil
}

// isSpace is isspace(3) in the C locale.
func isSpace(r rune) bool { return r == ' ' || r >= '\t' && r <= '\r' }

// literalPath returns the path that a spec spells out, if it is no pattern. As in libselinux, a backslash before any but
// some punctuation makes a pattern.
func literalPath(text string) (string, bool) {
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case strings.IndexByte(`.^$?*+|[({])}`, c) >= 0:
			return "", false
		case c == '\\':
			if i++; i == len(text) || strings.IndexByte(`.^$?*+|[({])}-_,`, text[i]) < 0 {
				return "", false
			}
		}
		b.WriteByte(text[i])
	}
	return b.String(), true
}

// A tail is how the rest of a path is compared that follows a pattern's prefix.
type tail int

const (
	tailPattern tail = iota // by the regular expression
	tailAny                 // ".*": whatever it is
	tailBelow               // "(/.*)?": nothing, or a path
)

// parsePattern parses the regular expression of a spec, and finds out what can be compared without it: of the thousands
// of patterns in a policy, hundreds apply to each path.
func (s *spec) parsePattern() error {
	// libselinux adds these two without parentheses, which matters for alternatives.
	text := "^" + s.Spec + "$"
	const flags = syntax.Perl | syntax.DotNL
	parsed, err := syntax.Parse(text, flags)
	if err != nil {
		return fmt.Errorf("pattern %q: %w", s.Spec, err)
	}
	s.compile = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile("(?s)" + text) })
	if parsed.Op != syntax.OpConcat {
		return nil
	}
	parts := parsed.Sub
	if parts[0].Op != syntax.OpBeginText {
		return nil
	}
	if parts = parts[1:]; len(parts) > 0 && isLiteral(parts[0]) {
		s.prefix = string(parts[0].Rune)
		parts = parts[1:]
	}
	if len(parts) == 0 || parts[len(parts)-1].Op != syntax.OpEndText {
		return nil
	}
	parts = parts[:len(parts)-1]
	switch {
	case len(parts) == 1 && isAny(parts[0]):
		s.tail = tailAny
	case len(parts) == 1 && isBelow(parts[0]):
		s.tail = tailBelow
	case len(parts) > 0 && isLiteral(parts[len(parts)-1]):
		s.suffix = string(parts[len(parts)-1].Rune)
		parts = parts[:len(parts)-1]
	}
	for _, part := range parts {
		if isLiteral(part) {
			s.inner = append(s.inner, string(part.Rune))
		}
	}
	return nil
}

func isLiteral(r *syntax.Regexp) bool {
	return r.Op == syntax.OpLiteral && r.Flags&syntax.FoldCase == 0
}

func isAny(r *syntax.Regexp) bool { return r.Op == syntax.OpStar && r.Sub[0].Op == syntax.OpAnyChar }

// isBelow reports whether r is "(/.*)?".
func isBelow(r *syntax.Regexp) bool {
	if r.Op != syntax.OpQuest || r.Sub[0].Op != syntax.OpCapture {
		return false
	}
	in := r.Sub[0].Sub[0]
	return in.Op == syntax.OpConcat && len(in.Sub) == 2 && isLiteral(in.Sub[0]) && string(in.Sub[0].Rune) == "/" && isAny(in.Sub[1])
}

// stemOf returns the leading directories of a path or a pattern, at most stemDepth of them, with a slash behind each. Only
// those that read accepts count; it returns the name of a directory.
//
// Like libselinux, Lookup tries a pattern only on paths with its stem. That matters for "/a/b|/c", which would match paths
// elsewhere too, because the two alternatives are not in parentheses.
func stemOf(text string, read func(part string) (name string, ok bool)) string {
	stem := "/"
	for range stemDepth {
		part, rest, ok := strings.Cut(strings.TrimPrefix(text, "/"), "/")
		if !ok {
			break
		}
		name, ok := read(part)
		if !ok {
			break
		}
		stem += name + "/"
		text = rest
	}
	return stem
}

// A substitution makes paths below one directory count as those below another.
type substitution struct{ from, to string }

// parseSubstitutions parses a file of substitutions. Lines without a destination do not count, as in libselinux.
func parseSubstitutions(data []byte) (subs []substitution) {
	for line := range strings.Lines(string(data)) {
		fields := strings.FieldsFunc(line, isSpace)
		if len(fields) >= 2 && !strings.HasPrefix(fields[0], "#") {
			subs = append(subs, substitution{fields[0], fields[1]})
		}
	}
	return subs
}
