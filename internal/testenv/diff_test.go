package testenv

import (
	"errors"
	"strings"
	"testing"
	"time"
)

type diffNode struct {
	Name   string
	hidden int
	Data   []byte
	Sum    [2]byte
	Next   *diffNode
	Any    any
	Map    map[string]int
	When   time.Time
}

func TestDiff(t *testing.T) {
	now := time.Unix(1e9, 5)
	full := func() *diffNode {
		return &diffNode{
			Name: "a", hidden: 1, Data: []byte("x\ny"), Sum: [2]byte{0xab, 0x01}, Next: &diffNode{Name: "b"},
			Any: []any{1, "1", nil, errors.New("e")}, Map: map[string]int{"k": 1, "l": 2}, When: now,
		}
	}
	change := func(f func(n *diffNode)) *diffNode {
		n := full()
		f(n)
		return n
	}
	for _, tt := range []struct {
		name      string
		want, got any
		lines     string // separated by blanks in place of their indentation; only those that differ
	}{
		{"equal", full(), full(), ""},
		{"nil", nil, nil, ""},
		{"instant", now, now.In(time.FixedZone("X", 3600)), ""},
		{"instant in a field", full(), change(func(n *diffNode) { n.When = now.UTC() }), ""},
		{"time", now.UTC(), now.UTC().Add(1), "-time.Time 2001-09-09T01:46:40.000000005Z +time.Time 2001-09-09T01:46:40.000000006Z"},
		{"type", int32(1), int64(1), "-int32 1 +int64 1"},
		{"typed nil", nil, (*diffNode)(nil), "-<nil> nil +*testenv.diffNode nil"},
		{"type in an interface", []any{1}, []any{uint(1)}, "-int 1 +uint 1"},
		{"nil slice", []string(nil), []string{}, "-[]string nil +[]string [ +]"},
		{"nil map", map[string]int{}, map[string]int(nil), "-map[string]int { -} +map[string]int nil"},
		{"nil bytes", []byte(nil), []byte{}, `-[]uint8 nil +[]uint8 ""`},
		{"string", "a\nb\nc\n", "a\nB\nc", `-"b\n" -"c\n" +"B\n" +"c"`},
		{"control characters", "a\x1b", "a", `-string "a\x1b" +string "a"`},
		{"unexported", full(), change(func(n *diffNode) { n.hidden = 2 }), "-hidden: 1 +hidden: 2"},
		{"pointer", full(), change(func(n *diffNode) { n.Next.Name = "c" }), `-Name: "b" +Name: "c"`},
		{"nil pointer", &diffNode{Next: &diffNode{}}, &diffNode{Next: &diffNode{Next: nil, hidden: 3}}, "-hidden: 0 +hidden: 3"},
		{"checksum", full(), change(func(n *diffNode) { n.Sum[1] = 0xff }), "-Sum: ab01 +Sum: abff"},
		{"map", full(), change(func(n *diffNode) { n.Map = map[string]int{"k": 1, "m": 2} }), `-"l": 2 +"m": 2`},
		{"missing element", []int{1, 2, 3}, []int{1, 3}, "-2"},
		{"order", []string{"a", "b"}, []string{"b", "a"}, `-"a" +"a"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for line := range strings.SplitSeq(Diff(tt.want, tt.got), "\n") {
				if line != "" && line[0] != ' ' {
					got = append(got, line[:1]+strings.TrimSpace(line[1:]))
				}
			}
			if got := strings.Join(got, " "); got != tt.lines {
				t.Errorf("differences are %s, want %s", got, tt.lines)
			}
		})
	}
}

// TestDiffContext expects three lines around a difference, and nothing of the rest.
func TestDiffContext(t *testing.T) {
	want := make([]int, 20)
	for i := range want {
		want[i] = i
	}
	got := append([]int(nil), want...)
	got[10] = 99
	const text = "  ...\n      7\n      8\n      9\n-     10\n+     99\n      11\n      12\n      13\n"
	if diff := Diff(want, got); diff != text {
		t.Errorf("differences are\n%s\nwant\n%s", diff, text)
	}
}
