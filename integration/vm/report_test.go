package vm

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

func TestReport(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		outputs    map[string]string
		err        string // a part of it; "": none
	}{
		{
			name:    "everything",
			text:    "BdsDxe: loading\r\n@begin 33.1\r\na: one\r\na: two: three\r\n@end a 0 34.0\r\n@end b 0 35.5\r\n@all\r\n@done\r\n",
			outputs: map[string]string{"a": "one\ntwo: three\n", "b": ""},
		},
		{
			name:    "the firmware does not end its line",
			text:    "Boot in 1 s.\x1b[2J\x1b[01;01H@begin 33.1\r\na: one @begin 2\r\n@end a 0 34.0\r\n@all\r\n@done\r\n",
			outputs: map[string]string{"a": "one @begin 2\n"},
		},
		{
			name:    "empty lines",
			text:    "@begin 1\na: \na:   indented\n@end a 0 2\n@all\n@done\n",
			outputs: map[string]string{"a": "\n  indented\n"},
		},
		{
			name: "a command fails",
			text: "@begin 1\n@end a 0 1\nb: no such thing\n@end b 4 2\n@done\n",
			err:  "command b: exit status 4\nno such thing",
		},
		{
			name: "the guest dies",
			text: "@begin 1\na: so far\nKilled by nobody",
			err:  "the guest ended after the commands []\nKilled by nobody",
		},
		{
			name: "the guest does not power off",
			text: "@begin 1\n@end a 0 1\n@all\n",
			err:  `the guest ended after the commands ["a"]`,
		},
		{
			name: "nonsense for a status",
			text: "@begin 1\n@end a x\n",
			err:  "read output of the guest",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			begun := false
			var r Report
			err := r.read(strings.NewReader(tc.text), func() { begun = true })
			if err == nil {
				err = r.err()
			}
			switch {
			case tc.err == "" && err != nil:
				t.Errorf("got the error %v", err)
			case tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)):
				t.Errorf("got the error %v, want one with %q", err, tc.err)
			}
			if !begun {
				t.Error("begin was not called")
			}
			for _, name := range slices.Sorted(maps.Keys(tc.outputs)) {
				if r.Results[name] == nil || r.Results[name].Output != tc.outputs[name] {
					t.Errorf("command %s: got %+v, want the output %q", name, r.Results[name], tc.outputs[name])
				}
			}
		})
	}
}

func TestScript(t *testing.T) {
	got := script([]Command{{Name: "a", Line: "echo it's"}, {Name: "b", Line: "false", Fails: true}})
	const want = `step a 'echo it'\''s' &&
{ step b 'false' || true; } &&
echo @all
`
	if got != want {
		t.Errorf("got the script\n%s\nwant\n%s", got, want)
	}
}
