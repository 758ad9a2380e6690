package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

func TestStatusOf(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want int
	}{
		{nil, exitOK},
		{errors.New("x"), exitFailed},
		{usagef("x"), exitUsage},
		{withHint(usagef("x"), "y"), exitUsage},
		{fmt.Errorf("x: %w", objectstore.ErrNoRepo), exitNoRepo},
		{fmt.Errorf("x: %w", objectstore.ErrLocked), exitLocked},
		{fmt.Errorf("x: %w", objectstore.ErrCorrupt), exitCorrupt},
		{withStatus(exitPartly, fmt.Errorf("x: %w", objectstore.ErrCorrupt)), exitPartly},
		{errInterrupted, exitInterrupted},
	} {
		var b bytes.Buffer
		if got := report(&b, tt.err); got != tt.want {
			t.Errorf("exit status of %q is %d, want %d", fmt.Sprint(tt.err), got, tt.want)
		}
	}
}

// TestInterrupted ends each command that can take long before it has begun.
func TestInterrupted(t *testing.T) {
	testenv.NeedsRoot(t)
	dir := t.TempDir()
	f, err := makeFixture(t.Context(), dir)
	if err == nil {
		err = f.close()
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, verb := range []string{"df", "layers", "fsck", "prune"} {
		t.Run(verb, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			if got := execute(ctx, []string{verb, "--root", dir}, &stdout, &stderr); got != exitInterrupted {
				t.Errorf("exit status is %d, want %d", got, exitInterrupted)
			}
			if got, want := stderr.String(), "ostree-snapshotter: error: interrupted\n"; got != want {
				t.Errorf("stderr is %q, want %q", got, want)
			}
			if stdout.Len() > 0 {
				t.Errorf("stdout is %q, want nothing", stdout.String())
			}
		})
	}
}

// eachCommand calls f for every command that is ours.
func eachCommand(t *testing.T, f func(t *testing.T, cmd *cobra.Command)) {
	t.Helper()
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		for _, sub := range cmd.Commands() {
			if sub.Name() == "help" || sub.Name() == "completion" {
				continue
			}
			t.Run(strings.ReplaceAll(sub.CommandPath(), " ", "_"), func(t *testing.T) { f(t, sub) })
			walk(sub)
		}
	}
	walk((&cli{}).rootCommand())
}

// TestHelpGroups: every command is listed in a group.
func TestHelpGroups(t *testing.T) {
	help := output(t, exitOK)
	for _, want := range []string{
		"\nDaemon and configuration:\n  config ", "\nStore:\n  df ", "\nOperating system from an image:\n  cleanup ",
		"\nFor systemd units:\n  boot-complete ", "\nOther:\n  bench ",
	} {
		if !strings.Contains(help, want) {
			t.Errorf("help has no %q:\n%s", want, help)
		}
	}
	if strings.Contains(help, "Additional") {
		t.Errorf("some commands have no group:\n%s", help)
	}
}

// TestCompletion: a shell completes the values of flags that take one of a few.
func TestCompletion(t *testing.T) {
	const fixed = ":4\n" // no file names
	for _, tt := range []struct{ args, want string }{
		{"config containerd --version", "2\n3\n4\n" + fixed},
		{"serve --log-level", "trace\ndebug\ninfo\nwarn\nerror\n" + fixed},
		{"install --filesystem", "ext4\nxfs\nbtrfs\n" + fixed},
		{"bench --filesystem", "ext4\nxfs\nbtrfs\nnone\n" + fixed},
		{"bench --snapshotters", "ostree\nostree-hardlink\noverlayfs\nerofs\nnative\n" + fixed},
	} {
		t.Run(tt.args, func(t *testing.T) {
			args := append([]string{"__complete"}, strings.Fields(tt.args)...)
			if got := output(t, exitOK, append(args, "")...); got != tt.want {
				t.Errorf("completions are %q, want %q", got, tt.want)
			}
		})
	}
}

func TestHelpListsExitStatuses(t *testing.T) {
	eachCommand(t, func(t *testing.T, cmd *cobra.Command) {
		t.Helper()
		for _, status := range []int{exitOK, exitFailed, exitUsage} {
			if want := fmt.Sprintf("%3d  %s", status, exitMeaning[status]); !strings.Contains(cmd.Long, want) {
				t.Errorf("help does not say %q", want)
			}
		}
	})
}

// TestDocsNameEverything keeps docs/cli.md complete: every command, and every field of every JSON document.
func TestDocsNameEverything(t *testing.T) {
	b, err := os.ReadFile("../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	doc := string(b)
	eachCommand(t, func(t *testing.T, cmd *cobra.Command) {
		t.Helper()
		if !strings.Contains(doc, "`"+cmd.CommandPath()+"`") {
			t.Error("docs/cli.md does not name it")
		}
	})
	for _, v := range []any{
		dfReport{},
		layersReport{},
		fsckReport{},
		pruneReport{},
		versionInfo{},
		checkReport{},
		configDiffReport{},
		changeReport{},
		kargsReport{},
		upgradeReport{},
		statusReport{},
		deploymentName{},
		bootReport{},
	} {
		for _, name := range jsonFields(reflect.TypeOf(v)) {
			if !strings.Contains(doc, "`"+name+"`") {
				t.Errorf("docs/cli.md does not name the field %q of %T", name, v)
			}
		}
	}
}

// jsonFields are the names of the fields of a struct, and of those in it.
func jsonFields(typ reflect.Type) []string {
	for typ.Kind() == reflect.Slice || typ.Kind() == reflect.Pointer {
		typ = typ.Elem()
	}
	if typ.Kind() != reflect.Struct {
		return nil
	}
	var names []string
	for i := range typ.NumField() {
		f := typ.Field(i)
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); f.IsExported() && name != "" {
			names = append(names, name)
			names = append(names, jsonFields(f.Type)...)
		}
	}
	return slices.Compact(names)
}

func TestProgressLine(t *testing.T) {
	p := &progress{verb: "checking objects"}
	for _, tt := range []struct {
		done, total int64
		want        string
	}{
		{0, 0, "\rchecking objects 0\x1b[K"},
		{7, 0, "\rchecking objects 7\x1b[K"},
		{7, 28, "\rchecking objects 7/28 (25%)\x1b[K"},
	} {
		if got := p.line(tt.done, tt.total); got != tt.want {
			t.Errorf("line(%d, %d) = %q, want %q", tt.done, tt.total, got, tt.want)
		}
	}
}

func TestProgressOnPipe(t *testing.T) {
	var b bytes.Buffer
	p := (&cli{stderr: &b}).newProgress("working")
	p.update(1, 2)
	p.stop()
	if b.Len() > 0 {
		t.Errorf("progress wrote %q to something that is no terminal", b.String())
	}
}
