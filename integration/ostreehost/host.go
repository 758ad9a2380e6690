package ostreehost

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// A Bind is a directory or file of the caller that appears elsewhere in a host.
type Bind struct{ From, To string }

// Options configure a host, beside the release's ostree.
type Options struct {
	Binds []Bind
	Env   []string // of every command; HOME, PATH and LC_ALL are set
}

// A Boot describes the system to start: the entry that its boot loader would have chosen.
type Boot struct {
	Sysroot string // the physical root
	Boot    string // a separate /boot, which the started system mounts; "": /boot of the sysroot
	Options string // of the entry; become /proc/cmdline with an ostree= argument
	Config  string // prepare-root.conf in the initramfs; "": none
}

// A Host is a pair of private mount and PID namespaces.
type Host struct {
	release  Release
	cmd      *exec.Cmd
	requests *os.File
	mu       sync.Mutex // allows one command at a time
	replies  *json.Decoder
	log      strings.Builder // output of PID 1 itself
}

// Start starts a host with the release's /usr, and otherwise only the binds of opts. It ends with the test.
func Start(tb testing.TB, r Release, opts Options) *Host {
	tb.Helper()
	return start(tb, r, opts, nil)
}

// StartBoot starts a sysroot like an initramfs of the release, with the release's /usr in place of the deployment's. If
// ostree-prepare-root fails, the error has its output.
func StartBoot(tb testing.TB, r Release, opts Options, b Boot) (*Host, error) {
	tb.Helper()
	return launch(tb, r, opts, &b)
}

func start(tb testing.TB, r Release, opts Options, b *Boot) *Host {
	tb.Helper()
	h, err := launch(tb, r, opts, b)
	if err != nil {
		tb.Fatalf("start a host with the ostree of %s: %v", r, err)
	}
	return h
}

func launch(tb testing.TB, r Release, opts Options, b *Boot) (_ *Host, err error) {
	tb.Helper()
	rootfs, err := Rootfs(tb.Context(), tb.Output(), r)
	if err != nil {
		return nil, err
	}
	conf, err := json.Marshal(&setup{Rootfs: rootfs, Root: tb.TempDir(), Binds: opts.Binds, Env: opts.Env, Boot: b})
	if err != nil {
		return nil, err
	}
	h := &Host{release: r}
	requestsR, requestsW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer requestsR.Close()
	repliesR, repliesW, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, requestsW.Close())
	}
	defer repliesW.Close()
	h.requests, h.replies = requestsW, json.NewDecoder(repliesR)
	h.cmd = exec.Command("/proc/self/exe")
	h.cmd.Args = []string{initName, string(conf)}
	h.cmd.Stdout, h.cmd.Stderr = &h.log, &h.log
	h.cmd.ExtraFiles = []*os.File{requestsR, repliesW}
	h.cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID}
	if err := h.cmd.Start(); err != nil {
		return nil, errors.Join(err, requestsW.Close(), repliesR.Close())
	}
	tb.Cleanup(func() {
		h.Stop()
		if err := repliesR.Close(); err != nil {
			tb.Error(err)
		}
	})
	var up reply
	if err := h.replies.Decode(&up); err != nil {
		h.Stop()
		return nil, fmt.Errorf("%w: %s", err, h.log.String())
	}
	if up.Error != "" {
		return nil, errors.New(up.Error)
	}
	return h, nil
}

// Stop ends every process of the host and removes its mounts. It does nothing if the host is stopped.
func (h *Host) Stop() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.requests == nil {
		return
	}
	_ = h.requests.Close() // makes PID 1 exit
	_ = h.cmd.Wait()
	h.requests = nil
}

// Release returns the release of the host's ostree.
func (h *Host) Release() Release { return h.release }

// Path returns the path of a file of the host in the caller's process.
func (h *Host) Path(elem ...string) string {
	return filepath.Join(append([]string{"/proc", strconv.Itoa(h.cmd.Process.Pid), "root"}, elem...)...)
}

// Root returns the path of the host's root directory. Unlike the results of [Host.Path] it ends in a slash, because the
// last component is a link out of the caller's namespace.
func (h *Host) Root() string { return h.Path() + "/" }

// An ExitError is the error of a command that failed.
type ExitError struct {
	Args   []string
	Code   int
	Stderr string
}

func (e *ExitError) Error() string {
	return fmt.Sprintf("%s: exit status %d: %s", strings.Join(e.Args, " "), e.Code, strings.TrimSpace(e.Stderr))
}

// Run runs a command and returns its output. The error is an [*ExitError] if the command ran and failed.
func (h *Host) Run(args ...string) (stdout string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.requests == nil {
		return "", fmt.Errorf("run %s: the host was stopped", strings.Join(args, " "))
	}
	if err := json.NewEncoder(h.requests).Encode(&request{Args: args}); err != nil {
		return "", fmt.Errorf("run %s: %w", strings.Join(args, " "), err)
	}
	var r reply
	if err := h.replies.Decode(&r); err != nil {
		if errors.Is(err, io.EOF) {
			err = fmt.Errorf("the host ended: %s", h.log.String())
		}
		return "", fmt.Errorf("run %s: %w", strings.Join(args, " "), err)
	}
	switch {
	case r.Error != "":
		return r.Stdout, fmt.Errorf("run %s: %s: %s", strings.Join(args, " "), r.Error, strings.TrimSpace(r.Stderr))
	case r.Code != 0:
		return r.Stdout, &ExitError{Args: args, Code: r.Code, Stderr: r.Stderr}
	}
	return r.Stdout, nil
}
