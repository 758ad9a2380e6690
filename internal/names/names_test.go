package names

import (
	"strconv"
	"testing"
)

func TestFew(t *testing.T) {
	for _, tt := range []struct {
		list []int
		want string
	}{
		{nil, ""},
		{[]int{1}, "1"},
		{[]int{1, 2, 3}, "1, 2, 3"},
		{[]int{1, 2, 3, 4}, "1, 2, 3, and 1 more"},
		{make([]int, 2742), "0, 0, 0, and 2739 more"},
	} {
		if got := Few(tt.list, strconv.Itoa); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
}
