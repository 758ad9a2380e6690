package main

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

func TestPasswordStdin(t *testing.T) {
	for _, tt := range []struct {
		name, args, stdin string
		want              string // user
		err               string
	}{
		{"not asked", "--user alice:secret", "other", "alice:secret", ""},
		{"none", "", "other", "", ""},
		{"line", "--user alice --password-stdin", "secret\n", "alice:secret", ""},
		{"line of Windows", "-u alice --password-stdin", "secret\r\n", "alice:secret", ""},
		{"no line end", "-u alice --password-stdin", "secret", "alice:secret", ""},
		{"any characters", "-u alice --password-stdin", " a:b\n\n", "alice: a:b\n", ""},
		{"largest", "-u a --password-stdin", strings.Repeat("x", maxPassword), "a:" + strings.Repeat("x", maxPassword), ""},
		{"too large", "-u a --password-stdin", strings.Repeat("x", maxPassword+1), "", "more than 65536 bytes"},
		{"empty", "-u alice --password-stdin", "\n", "", "no password"},
		{"no user", "--password-stdin", "secret", "", "needs --user USER"},
		{"two passwords", "-u alice:x --password-stdin", "secret", "", "needs --user USER"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var f pullFlags
			cmd := &cobra.Command{
				RunE:          func(*cobra.Command, []string) error { return nil },
				SilenceErrors: true, SilenceUsage: true,
			}
			f.addPull(cmd)
			cmd.SetIn(strings.NewReader(tt.stdin))
			cmd.SetArgs(strings.Fields(tt.args))
			err := cmd.Execute()
			switch {
			case tt.err == "" && (err != nil || f.User != tt.want):
				t.Errorf("user is %q, %v, want %q", f.User, err, tt.want)
			case tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err) || statusOf(err) != exitUsage):
				t.Errorf("error is %v, want wrong usage, %q", err, tt.err)
			}
		})
	}
}

// TestPasswordOfCommands: each command with --user reads the password from its own standard input.
func TestPasswordOfCommands(t *testing.T) {
	for _, command := range [][]string{{"upgrade"}, {"switch", "example.org/os:1"}} {
		var stderr bytes.Buffer
		c := cli{stdin: strings.NewReader("\n"), stdout: io.Discard, stderr: &stderr}
		const want = "error: standard input has no password\n"
		status := c.execute(t.Context(), append(command, "--user", "alice", "--password-stdin"))
		if status != exitUsage || !strings.Contains(stderr.String(), want) {
			t.Errorf("%v: exit status is %d, stderr %q, want %d, %q", command, status, stderr.String(), exitUsage, want)
		}
	}
}
