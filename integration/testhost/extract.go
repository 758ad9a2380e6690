package testhost

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// An Extract is packages of a Debian release with all that they depend on, unpacked and never configured: enough to run
// their programs, whatever the host has.
type Extract struct {
	Release  string // its name in the archive
	Packages []string
	// Expired lets the archive's list of the release be older than it says it may be: mirrors of a release that is still being
	// made lag behind.
	Expired bool
}

// mergeUsr makes the links that the package usrmerge would: packages are only unpacked, and a deployed tree, over which
// usr is mounted, has them too.
const mergeUsr = `for d in bin sbin lib lib64; do mkdir -p "$1/usr/$d"; ln -s "usr/$d" "$1/$d"; done`

// command returns the arguments of mmdebstrap before and behind the directory.
func (e Extract) command() (options []string, source string) {
	archive, _ := Mirrors()
	options = []string{
		"--mode=root", "--variant=extract", "--format=directory", "--include=" + strings.Join(e.Packages, ","),
		`--aptopt=Acquire::Languages "none"`, `--aptopt=APT::Install-Recommends "false"`, "--setup-hook=" + mergeUsr,
	}
	if e.Expired {
		options = append(options, `--aptopt=Acquire::Check-Valid-Until "false"`)
	}
	return options, "deb " + archive + " " + e.Release + " main"
}

// Key returns the key of what is made from the packages, and from other inputs.
func (e Extract) Key(inputs ...string) string {
	options, source := e.command()
	return Key(append(append(options, source), inputs...)...)
}

// Make unpacks the packages in a directory, which is empty or not there.
func (e Extract) Make(ctx context.Context, log io.Writer, dir string) error {
	options, source := e.command()
	if err := run(exec.CommandContext(ctx, "mmdebstrap", append(options, e.Release, dir, source)...), log); err != nil {
		return err
	}
	// Half of the size is documentation, and device nodes are the running system's.
	for _, name := range []string{"usr/share", "dev", "var"} {
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("remove what is not needed: %w", err)
		}
	}
	return nil
}

// OneFile returns the one file that a pattern matches, as in what packages hold whose version is not known.
func OneFile(pattern string) (string, error) {
	names, err := filepath.Glob(pattern)
	if err == nil && len(names) != 1 {
		err = fmt.Errorf("got the files %q, want one", names)
	}
	if err != nil {
		return "", fmt.Errorf("find %s: %w", pattern, err)
	}
	return names[0], nil
}
