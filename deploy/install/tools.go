package install

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
)

// MissingToolsError names programs that are not installed, and the Debian packages that have them.
type MissingToolsError struct{ Programs, Packages []string }

func (e *MissingToolsError) Error() string {
	return fmt.Sprintf("programs that are not installed: %s", strings.Join(e.Programs, ", "))
}

// tools are programs, by name: their Debian packages, and where they are.
type tools map[string]tool

type tool struct{ debian, path string }

// sbin is where a PATH may not lead that is not root's.
var sbin = []string{"/usr/local/sbin", "/usr/sbin", "/sbin"}

// findTools finds programs, given with their Debian packages. All that are missing are in one error.
func findTools(wanted map[string]string) (tools, error) {
	found := make(tools)
	var missing MissingToolsError
	for program, debian := range wanted {
		path, err := lookPath(program)
		if err != nil {
			missing.Programs = append(missing.Programs, program)
			missing.Packages = append(missing.Packages, debian)
			continue
		}
		found[program] = tool{debian, path}
	}
	if len(missing.Programs) > 0 {
		slices.Sort(missing.Programs)
		slices.Sort(missing.Packages)
		missing.Packages = slices.Compact(missing.Packages)
		return nil, &missing
	}
	return found, nil
}

func lookPath(program string) (string, error) {
	path, err := exec.LookPath(program)
	for _, dir := range sbin {
		if err == nil {
			break
		}
		path, err = exec.LookPath(filepath.Join(dir, program))
	}
	return path, err
}

// run runs a program with a text as its standard input, and files that it has as descriptors 3 and up. It returns what it
// writes; if it fails, the error has what it says.
func (t tools) run(ctx context.Context, stdin string, files []*os.File, program string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, t[program].path, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "MTOOLSRC=/dev/null", "MTOOLS_SKIP_CHECK=1")
	// A Ctrl-C is for this process, which then ends what it has started, and so does the kernel if it cannot.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // the signal comes when the thread ends that started the child
	defer runtime.UnlockOSThread()
	cmd.Stdin = strings.NewReader(stdin)
	cmd.ExtraFiles = files
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return "", fmt.Errorf("run %s: %w", program, context.Cause(ctx))
		}
		said := oneLine(cmp.Or(stderr.String(), stdout.String()))
		if said == "" {
			return "", fmt.Errorf("run %s: %w", program, err)
		}
		return "", fmt.Errorf("run %s: %w: %s", program, err, said)
	}
	return stdout.String(), nil
}

// oneLine joins lines: an error is one.
func oneLine(text string) string {
	lines := strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == '\r' })
	return strings.Join(lines, "; ")
}
