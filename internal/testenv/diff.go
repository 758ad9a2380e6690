package testenv

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"
)

// Diff returns the lines in which two values differ, those of want after "-" and those of got after "+", among lines that
// they have in common. It returns "" for values of the same type that have the same content, in unexported fields too.
// Times are the same if they are the same instant; a nil slice or map differs from an empty one. The values must not
// refer to themselves.
func Diff(want, got any) string {
	a, b := describe(want), describe(got)
	if slices.Equal(a, b) {
		return ""
	}
	const around = 3 // lines in common before and after a difference
	lines := merge(a, b)
	last := -1
	var out strings.Builder
	for i, line := range lines {
		near := lines[max(0, i-around):min(len(lines), i+around+1)]
		if !slices.ContainsFunc(near, func(s string) bool { return s[0] != ' ' }) {
			continue
		}
		if last != i-1 {
			out.WriteString("  ...\n")
		}
		out.WriteString(line + "\n")
		last = i
	}
	return out.String()
}

// merge returns the lines of both in order, each after a mark: "-" for one of a alone, "+" for one of b alone.
func merge(a, b []string) []string {
	var lines []string
	for len(a) > 0 && len(b) > 0 && a[0] == b[0] {
		lines = append(lines, "  "+a[0])
		a, b = a[1:], b[1:]
	}
	if len(a)*len(b) > 1<<24 { // too large for the table
		for _, line := range a {
			lines = append(lines, "- "+line)
		}
		for _, line := range b {
			lines = append(lines, "+ "+line)
		}
		return lines
	}
	common := make([][]int, len(a)+1) // [i][j] is the length of the longest common subsequence of a[i:] and b[j:].
	for i := range common {
		common[i] = make([]int, len(b)+1)
	}
	for i := len(a) - 1; i >= 0; i-- {
		for j := len(b) - 1; j >= 0; j-- {
			if a[i] == b[j] {
				common[i][j] = common[i+1][j+1] + 1
			} else {
				common[i][j] = max(common[i+1][j], common[i][j+1])
			}
		}
	}
	i, j := 0, 0
	for i < len(a) || j < len(b) {
		switch {
		case i < len(a) && j < len(b) && a[i] == b[j]:
			lines = append(lines, "  "+a[i])
			i, j = i+1, j+1
		case j == len(b) || i < len(a) && common[i+1][j] >= common[i][j+1]:
			lines = append(lines, "- "+a[i])
			i++
		default:
			lines = append(lines, "+ "+b[j])
			j++
		}
	}
	return lines
}

// describe returns the type of a value and all it holds, on indented lines.
func describe(v any) []string {
	var b strings.Builder
	fmt.Fprintf(&b, "%T ", v)
	write(&b, reflect.ValueOf(v), "\n")
	return strings.Split(b.String(), "\n")
}

// write writes a value; newline is a line feed and the indentation of the line that the value begins in.
func write(b *strings.Builder, v reflect.Value, newline string) {
	inner := newline + "    "
	if v.IsValid() && v.CanInterface() {
		if t, ok := v.Interface().(time.Time); ok {
			b.WriteString(t.UTC().Format(time.RFC3339Nano))
			return
		}
	}
	switch kind := v.Kind(); kind {
	case reflect.Invalid:
		b.WriteString("nil")
	case reflect.Pointer, reflect.Interface, reflect.Map, reflect.Slice, reflect.Func, reflect.Chan:
		switch {
		case v.IsNil():
			b.WriteString("nil")
		case kind == reflect.Pointer:
			b.WriteString("&")
			write(b, v.Elem(), newline)
		case kind == reflect.Interface:
			b.WriteString(v.Elem().Type().String() + " ")
			write(b, v.Elem(), newline)
		case kind == reflect.Map:
			writeMap(b, v, newline)
		case kind == reflect.Slice && v.Type().Elem().Kind() == reflect.Uint8:
			writeText(b, string(v.Bytes()), inner)
		case kind == reflect.Slice:
			writeList(b, v, newline)
		default:
			fmt.Fprintf(b, "%#x", v.Pointer())
		}
	case reflect.Struct:
		b.WriteString("{")
		for i := range v.NumField() {
			b.WriteString(inner + v.Type().Field(i).Name + ": ")
			write(b, v.Field(i), inner)
		}
		b.WriteString(newline + "}")
	case reflect.Array:
		if v.Type().Elem().Kind() == reflect.Uint8 { // a checksum
			for i := range v.Len() {
				fmt.Fprintf(b, "%02x", v.Index(i).Uint())
			}
			return
		}
		writeList(b, v, newline)
	case reflect.String:
		writeText(b, v.String(), inner)
	default:
		fmt.Fprintf(b, "%v", v)
	}
}

func writeList(b *strings.Builder, v reflect.Value, newline string) {
	inner := newline + "    "
	b.WriteString("[")
	for i := range v.Len() {
		b.WriteString(inner)
		write(b, v.Index(i), inner)
	}
	b.WriteString(newline + "]")
}

func writeMap(b *strings.Builder, v reflect.Value, newline string) {
	inner := newline + "    "
	var entries []string
	for _, key := range v.MapKeys() {
		var e strings.Builder
		write(&e, key, inner)
		e.WriteString(": ")
		write(&e, v.MapIndex(key), inner)
		entries = append(entries, inner+e.String())
	}
	slices.Sort(entries)
	b.WriteString("{" + strings.Join(entries, "") + newline + "}")
}

// writeText writes each line of a text on a line of its own, if there are several.
func writeText(b *strings.Builder, text, newline string) {
	lines := strings.SplitAfter(text, "\n")
	if len(lines) == 1 || len(lines) == 2 && lines[1] == "" {
		fmt.Fprintf(b, "%q", text)
		return
	}
	for _, line := range lines {
		if line != "" {
			fmt.Fprintf(b, "%s%q", newline, line)
		}
	}
}
