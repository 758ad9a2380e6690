// Command make makes the archive of a revision for the tests of package compat: it builds the program of that revision and
// has it make a store and a system. It needs root and a kernel that can mount composefs images.
//
//	go run ./integration/compat/make -rev REV
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/compat"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/testhost"
)

func main() {
	rev := flag.String("rev", "", "the revision that makes the archive")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	err := run(ctx, *rev)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "make: error: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, rev string) (err error) {
	if rev == "" {
		return errors.New("no revision: -rev is empty")
	}
	repo, err := testhost.RepoDir()
	if err != nil {
		return err
	}
	commit, err := command(ctx, repo, "git", "rev-parse", "--verify", "--short=7", "--end-of-options", rev+"^{commit}")
	if err != nil {
		return err
	}
	tools, err := testhost.BuildTools(ctx, os.Stderr)
	if err != nil {
		return err
	}
	tmp, err := os.MkdirTemp("", "compat")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	source, binary := filepath.Join(tmp, "source"), filepath.Join(tmp, "ostree-snapshotter")
	if _, err := command(ctx, repo, "git", "worktree", "add", "--quiet", "--detach", source, commit); err != nil {
		return err
	}
	defer func() {
		_, rerr := command(context.WithoutCancel(ctx), repo, "git", "worktree", "remove", "--force", source)
		err = errors.Join(err, rerr)
	}()
	if _, err := command(ctx, source, "go", "build", "-trimpath", "-o", binary, "./cmd/ostree-snapshotter"); err != nil {
		return err
	}
	archive := filepath.Join(repo, "integration/compat/testdata", commit+".tar.gz")
	if err := compat.Make(ctx, tools, binary, archive); err != nil {
		return err
	}
	fmt.Println(archive)
	return nil
}

// command runs a program in a directory and returns its output without the last newline.
func command(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Stderr = dir, os.Stderr
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w", name, strings.Join(args, " "), err)
	}
	return strings.TrimSpace(string(out)), nil
}
