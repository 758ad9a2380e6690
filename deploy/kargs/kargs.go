// Package kargs edits lists of kernel arguments, and reads those of an image in usr/lib/bootc/kargs.d.
//
// Arguments are split as the kernel does (next_arg in lib/cmdline.c): at white space outside double quotes. The first
// "=" ends the key. The edits are those of ostree (OstreeKernelArgs, "ostree admin kargs"): they keep the order, a key
// may occur several times, and an ambiguous edit is an error. Unlike libostree before 2025, which splits at every
// space, this package treats a quoted value as one argument.
package kargs

import (
	"fmt"
	"slices"
	"strings"
)

// List is a list of kernel arguments in command line order, quoted as written. No method changes the list itself.
type List []string

// space is the kernel's white space.
const space = " \t\n\v\f\r"

// Parse splits the options of a boot entry, or a command line. It closes an open quote at the end, where the kernel
// does too, so that an argument appended later does not become part of it.
func Parse(options string) List {
	var l List
	for rest := strings.TrimLeft(options, space); rest != ""; rest = strings.TrimLeft(rest, space) {
		end := len(rest)
		quoted := false
		for i := range len(rest) {
			if rest[i] == '"' {
				quoted = !quoted
			} else if !quoted && strings.IndexByte(space, rest[i]) >= 0 {
				end = i
				break
			}
		}
		arg := rest[:end]
		if quoted {
			arg += `"`
		}
		l = append(l, arg)
		rest = rest[end:]
	}
	return l
}

// String returns the list as the options of a boot entry.
func (l List) String() string { return strings.Join(l, " ") }

// arg is an argument as the kernel reads it: without quotes around the argument or its value.
type arg struct {
	key, value string
	hasValue   bool
}

func split(s string) arg {
	if t, ok := strings.CutPrefix(s, `"`); ok {
		s = strings.TrimSuffix(t, `"`)
	}
	key, value, ok := strings.Cut(s, "=")
	if t, quoted := strings.CutPrefix(value, `"`); quoted {
		value = strings.TrimSuffix(t, `"`)
	}
	return arg{key: key, value: value, hasValue: ok}
}

// Key returns the key of an argument, without quotes.
func Key(arg string) string { return split(arg).key }

// Sets reports whether any reader of a command line may find the key in an argument. The kernel splits at white space
// outside quotes; others, such as ostree-prepare-root and libostree before 2025, split at every blank, and so find
// ostree=/y in x="a ostree=/y".
func Sets(arg, key string) bool {
	if split(arg).key == key {
		return true
	}
	for word := range strings.FieldsFuncSeq(arg, func(r rune) bool { return strings.ContainsRune(space, r) }) {
		if split(strings.Trim(word, `"`)).key == key {
			return true
		}
	}
	return false
}

// one splits the operand of an edit, which must be a single argument.
func one(s string) (arg, error) {
	if l := Parse(s); len(l) != 1 || split(l[0]).key == "" {
		return arg{}, fmt.Errorf("%q is not one kernel argument", s)
	}
	return split(s), nil
}

// Value returns the value of the first argument with a key, without quotes, or "" if it has no value.
func (l List) Value(key string) (string, bool) {
	for _, s := range l {
		if a := split(s); a.key == key {
			return a.value, true
		}
	}
	return "", false
}

// Append adds arguments at the end. A string that holds several is split.
func (l List) Append(args ...string) List {
	l = slices.Clone(l)
	for _, s := range args {
		l = append(l, Parse(s)...)
	}
	return l
}

// AppendIfMissing adds the arguments whose key and value the list does not have.
func (l List) AppendIfMissing(args ...string) List {
	l = slices.Clone(l)
	for _, s := range args {
		for _, s := range Parse(s) {
			if l.index(split(s)) < 0 {
				l = append(l, s)
			}
		}
	}
	return l
}

// index returns the position of the first argument that equals a, -1 if there is none.
func (l List) index(a arg) int {
	return slices.IndexFunc(l, func(s string) bool { return split(s) == a })
}

// only returns the position of the only argument with a key.
func (l List) only(key string) (int, error) {
	found := -1
	for i, s := range l {
		if split(s).key != key {
			continue
		}
		if found >= 0 {
			return 0, fmt.Errorf("kernel argument %s has several values", key)
		}
		found = i
	}
	if found < 0 {
		return 0, fmt.Errorf("no kernel argument %s", key)
	}
	return found, nil
}

// Replace changes the value of an argument in place. "key=new" and "key" replace the only argument with that key,
// "key=old=new" the first key=old. As with ostree, the first "=" in an unquoted value ends the old value: to set a
// value that contains one, give the old value too, or quote the new one. It is an error if the argument does not exist,
// or if several have the key and no old value is given.
func (l List) Replace(replacement string) (List, error) {
	a, err := one(replacement)
	if err != nil {
		return nil, err
	}
	var i int
	written := replacement
	key, value, _ := strings.Cut(replacement, "=")
	if before, after, ok := cutUnquoted(value); ok {
		old := key + "=" + before
		if i = l.index(split(old)); i < 0 {
			return nil, fmt.Errorf("no kernel argument %s", old)
		}
		written = key + "=" + after
	} else if i, err = l.only(a.key); err != nil {
		return nil, err
	}
	l = slices.Clone(l)
	l[i] = Parse(written)[0]
	return l, nil
}

// cutUnquoted cuts a value at the first "=" that is not between quotes.
func cutUnquoted(value string) (before, after string, ok bool) {
	quoted := false
	for i := range len(value) {
		switch {
		case value[i] == '"':
			quoted = !quoted
		case value[i] == '=' && !quoted:
			return value[:i], value[i+1:], true
		}
	}
	return value, "", false
}

// Delete removes an argument: with "key=value" the first that equals it, with "key" the first without a value, else the
// only one with that key. It is an error if there is none, or if several have the key and a value each.
func (l List) Delete(argument string) (List, error) {
	a, err := one(argument)
	if err != nil {
		return nil, err
	}
	i := l.index(a)
	if i < 0 {
		if a.hasValue {
			return nil, fmt.Errorf("no kernel argument %s", argument)
		}
		if i, err = l.only(a.key); err != nil {
			return nil, err
		}
	}
	return slices.Delete(slices.Clone(l), i, i+1), nil
}

// Without removes every argument with a key.
func (l List) Without(key string) List {
	return slices.DeleteFunc(slices.Clone(l), func(s string) bool { return split(s).key == key })
}

// WithOSTree sets the deployment to boot: the first argument ostree= gets the value path, in its place, and others are
// dropped. Without any it is appended.
func (l List) WithOSTree(path string) List {
	const key = "ostree"
	written := key + "=" + path
	i := slices.IndexFunc(l, func(s string) bool { return split(s).key == key })
	if i < 0 {
		return append(slices.Clone(l), written)
	}
	l = append(append(slices.Clone(l[:i]), written), l[i+1:].Without(key)...)
	return l
}
