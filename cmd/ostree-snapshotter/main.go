// Command ostree-snapshotter is a containerd snapshotter and differ that keep image layers in an ostree repository.
//
// "ostree-snapshotter serve" is the daemon. The other commands work beside it, or without it.
//
// The rules of the interface:
//   - Standard output is data: the result of the command as a table or, with --json, as one JSON document.
//   - Everything else goes to standard error with an "ostree-snapshotter:" prefix. Messages begin in lower case and
//     have no full stop at the end. A hint tells what to do about an error.
//   - Progress is shown on a terminal and never on a pipe.
//   - The exit status tells kinds of failure apart; each help text lists those of the command.
//   - Only main ends the process.
package main

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run executes one command line and returns its exit status. The first SIGINT or SIGTERM cancels the command, a second
// one ends the process at once.
func run(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	return execute(ctx, args, stdout, stderr)
}

// execute is like run, but ctx cancels the command.
func execute(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	c := cli{stdout: stdout, stderr: stderr, openDir: atfs.Open}
	return c.execute(ctx, args)
}

// execute parses the arguments into c and runs the command.
func (c *cli) execute(ctx context.Context, args []string) int {
	c.stdout = outputWriter{c.stdout}
	root := c.rootCommand()
	root.SetArgs(args)
	root.SetIn(c.stdin)
	root.SetOut(c.stdout)
	root.SetErr(c.stderr)
	err := root.ExecuteContext(ctx)
	if err != nil && ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = errInterrupted
	}
	return report(c.stderr, err)
}
