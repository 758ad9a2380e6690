package main

import (
	"errors"
	"strings"
	"testing"
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
	for _, tt := range []struct {
		name, input string
		n           int
		want        string
		err         error
	}{
		{"passed", passed, 1, "    11.0 s  p\n\n     9.2 s  p TestB\n", nil},
		{"failed", passed + failed, 9, "reason\n    11.0 s  p\n     2.0 s  q\n\n     9.2 s  p TestB\n     2.0 s  q TestC\n     1.5 s  p TestA\n", errFailed},
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
