// Package names shortens lists of names for a line of text.
package names

import (
	"fmt"
	"strings"
)

// shown is the number of names in a line.
const shown = 3

// Few returns the names of the first few elements of a list, and the number of the others.
func Few[T any](list []T, name func(T) string) string {
	var few []string
	for _, e := range list[:min(len(list), shown)] {
		few = append(few, name(e))
	}
	if more := len(list) - len(few); more > 0 {
		few = append(few, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(few, ", ")
}
