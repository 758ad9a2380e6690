package selinux

import (
	"cmp"
	"io/fs"
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// A Policy knows the labels of a tree's files. Its methods may be called concurrently.
type Policy struct {
	Config
	literals    map[string][]*spec // by path; each list in the order of precedence
	patterns    map[string][]*spec // by stem; each list in the order of precedence
	local, dist []substitution
}

// A Match is the line of a policy that decides about a file.
type Match struct {
	Context string // the label; "<<none>>" for none
	Spec    string // the path or pattern
	File    string // where the line is: an absolute path
	Line    int    // from 1
}

// Label returns the label of a file: its path in the system, which begins with a slash, and its type. There is none for
// files that the policy says nothing about, or says that they have none.
func (p *Policy) Label(name string, typ fs.FileMode) (string, bool) {
	m, _ := p.Lookup(name, typ)
	return m.Label()
}

// Label returns the label that the line gives, if it gives one.
func (m Match) Label() (string, bool) {
	if m.Context == "" || m.Context == none {
		return "", false
	}
	return m.Context, true
}

// Lookup returns the line that decides about a file.
func (p *Policy) Lookup(name string, typ fs.FileMode) (Match, bool) {
	name = p.substitute(clean(name))
	typ = typ.Type()
	for _, s := range p.literals[name] {
		if s.accepts(typ) {
			return s.Match, true
		}
	}
	if s := p.matchPattern(name, typ); s != nil {
		return s.Match, true
	}
	return Match{}, false
}

// clean removes repeated slashes and one at the end.
func clean(name string) string {
	for strings.Contains(name, "//") {
		name = strings.ReplaceAll(name, "//", "/")
	}
	if len(name) > 1 {
		name = strings.TrimSuffix(name, "/")
	}
	return name
}

// substitute applies one local substitution, and then one of the distribution's.
func (p *Policy) substitute(name string) string {
	return substituteBy(p.dist, substituteBy(p.local, name))
}

// substituteBy applies the last substitution that fits.
func substituteBy(subs []substitution, name string) string {
	for _, s := range slices.Backward(subs) {
		rest, ok := strings.CutPrefix(name, s.from)
		switch {
		case !ok || rest != "" && rest[0] != '/':
		case rest != "" && s.to == "/":
			return rest
		default:
			return s.to + rest
		}
	}
	return name
}

// matchPattern returns the last pattern that matches. Patterns of deeper stems come first: where one of them says that
// there is no label, libselinux does not look further.
func (p *Policy) matchPattern(name string, typ fs.FileMode) *spec {
	wide := widen(name)
	var best *spec
	stem := stemOf(name, func(part string) (string, bool) { return part, true })
	for {
		for _, s := range p.patterns[stem] {
			if best != nil && compareSpecs(s, best) > 0 {
				break
			}
			if s.accepts(typ) && s.matches(wide) {
				if best = s; s.Context == none {
					return best
				}
				break
			}
		}
		if stem == "/" {
			return best
		}
		stem = stem[:strings.LastIndexByte(stem[:len(stem)-1], '/')+1]
	}
}

// widen makes a character of each byte, because policies are matched with bytes.
func widen(name string) string {
	if strings.IndexFunc(name, func(r rune) bool { return r >= utf8.RuneSelf }) < 0 {
		return name
	}
	runes := make([]rune, len(name))
	for i := range len(name) {
		runes[i] = rune(name[i])
	}
	return string(runes)
}

// sort puts specs into the order of precedence: those of later files first. Of the same file later patterns win, but
// earlier literal paths.
func (p *Policy) sort() {
	for _, list := range p.literals {
		slices.SortStableFunc(list, func(a, b *spec) int { return cmp.Compare(b.input, a.input) })
	}
	for _, list := range p.patterns {
		slices.SortFunc(list, compareSpecs)
	}
}

// compareSpecs compares the precedence of patterns: negative if a is before b.
func compareSpecs(a, b *spec) int {
	return cmp.Or(cmp.Compare(b.input, a.input), cmp.Compare(b.Line, a.Line))
}

func (s *spec) accepts(typ fs.FileMode) bool { return s.anyKind || s.kind == typ }

// matches reports whether a pattern matches a path. At the end of a pattern a final newline of the path does not count.
func (s *spec) matches(name string) bool {
	return s.matchesAll(name) || strings.HasSuffix(name, "\n") && s.matchesAll(name[:len(name)-1])
}

func (s *spec) matchesAll(name string) bool {
	rest, ok := strings.CutPrefix(name, s.prefix)
	switch {
	case !ok || !strings.HasSuffix(rest, s.suffix):
		return false
	case s.tail == tailAny:
		return true
	case s.tail == tailBelow:
		return rest == "" || rest[0] == '/'
	}
	rest = strings.TrimSuffix(rest, s.suffix)
	for _, text := range s.inner {
		if _, rest, ok = strings.Cut(rest, text); !ok {
			return false
		}
	}
	return s.compile().MatchString(name)
}

// TypeOf returns the type of a file by its mode (stat(2)), as Lookup takes it.
func TypeOf(mode uint32) fs.FileMode {
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return fs.ModeDir
	case unix.S_IFLNK:
		return fs.ModeSymlink
	case unix.S_IFCHR:
		return fs.ModeDevice | fs.ModeCharDevice
	case unix.S_IFBLK:
		return fs.ModeDevice
	case unix.S_IFIFO:
		return fs.ModeNamedPipe
	case unix.S_IFSOCK:
		return fs.ModeSocket
	}
	return 0
}
