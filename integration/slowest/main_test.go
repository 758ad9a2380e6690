package main

import (
	"errors"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

func TestRun(t *testing.T) {
	const passed = `{"Action":"start","Package":"p"}
{"Action":"pass","Package":"p","Test":"TestA","Elapsed":1.5}
{"Action":"pass","Package":"p","Test":"TestB/sub","Elapsed":9}
{"Action":"pass","Package":"p","Test":"TestB","Elapsed":9.25}
{"Action":"output","Package":"p","Output":"ok p\n"}
{"Action":"pass","Package":"p","Elapsed":11}
`
	const failed = `{"Action":"output","Package":"q","Test":"TestC","Output":"reason\n"}
{"Action":"fail","Package":"q","Test":"TestC","Elapsed":2}
{"Action":"fail","Package":"q","Elapsed":2}
`
	const timed = `{"Action":"pass","Package":"r","Test":"TestD","Elapsed":1}
{"Action":"output","Package":"r","Output":"processor time: 0.75 TestD\n"}
{"Action":"output","Package":"r","Output":"processor time: 1.25\n"}
{"Action":"pass","Package":"r","Elapsed":3}
`
	for _, tt := range []struct {
		name, input string
		n           int
		want        string
		err         error
	}{
		{"passed", passed, 1, "    11.0 s  p\n\n     9.2 s  p TestB\n", nil},
		{"failed", passed + failed, 9, "reason\n    11.0 s  p\n     2.0 s  q\n\n     9.2 s  p TestB\n     2.0 s  q TestC\n     1.5 s  p TestA\n", errFailed},
		{"processor time", timed, 1, "     3.0 s       1.2 s of a processor  r\n\n     1.0 s       0.8 s of a processor  r TestD\n", nil},
		{"nothing", "", 10, "\n", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out strings.Builder
			if err := run(strings.NewReader(tt.input), &out, tt.n); !errors.Is(err, tt.err) || out.String() != tt.want {
				t.Errorf("got %v\n%s\nwant %v\n%s", err, out.String(), tt.err, tt.want)
			}
		})
	}
	if err := run(strings.NewReader("no JSON\n"), new(strings.Builder), 1); err == nil {
		t.Error("a line that is not JSON: no error")
	}
}

// TestExecute runs a program that prints what a test program prints. It takes processor time in one test, in a child.
func TestExecute(t *testing.T) {
	testenv.NeedsTool(t, "bash")
	const script = `printf '\x16--- PASS: TestIdle (0.00s)\n'
bash -c 'for ((i = 0; i < 300000; i++)); do :; done'
echo '    --- PASS: TestBusy/sub (0.00s)'; echo '--- FAIL: TestBusy (0.00s)'; exit 7`
	var out strings.Builder
	status, err := execute([]string{"bash", "-c", script}, &out)
	if status != 7 || err != nil {
		t.Fatalf("got exit status %d, %v, want 7", status, err)
	}
	printed, times, _ := strings.Cut(out.String(), timePrefix)
	if want := "\x16--- PASS: TestIdle (0.00s)\n    --- PASS: TestBusy/sub (0.00s)\n--- FAIL: TestBusy (0.00s)\n"; printed != want {
		t.Errorf("got the output %q, want %q", printed, want)
	}
	got := make(map[string]float64)
	for line := range strings.Lines(timePrefix + times) {
		seconds, test, ok := readTime(line)
		if !ok {
			t.Errorf("got the line %q", line)
		}
		got[test] = seconds
	}
	if idle, busy, all := got["TestIdle"], got["TestBusy"], got[""]; len(got) != 3 || busy <= idle || all < busy {
		t.Errorf("got the times %v, want most for TestBusy, and at least that in all", got)
	}
}
