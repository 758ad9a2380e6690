package selinux_test

import (
	"regexp"
	"strings"
)

// reference reports whether a spec matches a path, by its regular expression alone.
func reference(spec, path string) bool {
	var wide strings.Builder
	for i := range len(path) {
		wide.WriteRune(rune(path[i]))
	}
	re := regexp.MustCompile("(?s)^" + spec + "$")
	return re.MatchString(wide.String()) || strings.HasSuffix(path, "\n") && re.MatchString(strings.TrimSuffix(wide.String(), "\n"))
}
