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

// An Extract is a set of packages of a Debian release with all dependencies, unpacked but not configured. That is
// enough to run their programs on any host.
type Extract struct {
	Release  string // name of the release in the archive
	Packages []string
	// Expired accepts an expired release file of the archive. Mirrors of a release under development can lag behind.
	Expired bool
}

// mergeUsr makes the links of the package usrmerge, because packages are only unpacked. A deployed tree, over which usr
// is mounted, has them too.
const mergeUsr = `for d in bin sbin lib lib64; do mkdir -p "$1/usr/$d"; ln -s "usr/$d" "$1/$d"; done`

// command returns the arguments of mmdebstrap before and after the directory.
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

// Key returns the key for the result of the packages and of other inputs.
func (e Extract) Key(inputs ...string) string {
	options, source := e.command()
	return Key(append(append(options, source), inputs...)...)
}

// Make unpacks the packages in a directory, which must be empty or absent.
func (e Extract) Make(ctx context.Context, log io.Writer, dir string) error {
	options, source := e.command()
	if err := run(exec.CommandContext(ctx, "mmdebstrap", append(options, e.Release, dir, source)...), log); err != nil {
		return err
	}
	// Half of the size is documentation, and the running system has its own device nodes.
	for _, name := range []string{"usr/share", "dev", "var"} {
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("remove what is not needed: %w", err)
		}
	}
	return nil
}

// OneFile returns the only file that matches a pattern, such as a file of a package whose version is not known.
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
