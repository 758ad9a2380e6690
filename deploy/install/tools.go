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

// MissingToolsError lists programs that are not installed, and their Debian packages.
type MissingToolsError struct{ Programs, Packages []string }

func (e *MissingToolsError) Error() string {
	return fmt.Sprintf("programs that are not installed: %s", strings.Join(e.Programs, ", "))
}

// tools are programs, by name: their Debian packages, and where they are.
type tools map[string]tool

type tool struct{ debian, path string }

// sbin lists directories that only root's PATH may have.
var sbin = []string{"/usr/local/sbin", "/usr/sbin", "/sbin"}

// findTools finds programs, given with their Debian packages. One error lists all missing ones.
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

// childPath returns the path under which a program finds one of the files that it is run with. No other file can take
// that path.
func childPath(file int) string { return fmt.Sprintf("/proc/self/fd/%d", 3+file) }

// run runs a program with a text as its standard input, and files for it to open (see childPath). It returns the output.
// If the program fails, the error has its messages.
func (t tools) run(ctx context.Context, stdin string, files []*os.File, program string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, t[program].path, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "MTOOLSRC=/dev/null", "MTOOLS_SKIP_CHECK=1")
	// A Ctrl-C is for this process, which then ends its children. If it cannot, the kernel does.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // the signal comes when the thread that started the child ends
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

// oneLine joins the lines of an error.
func oneLine(text string) string {
	lines := strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == '\r' })
	return strings.Join(lines, "; ")
}
