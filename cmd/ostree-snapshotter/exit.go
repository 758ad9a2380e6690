package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/etcmerge"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/kargs"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/oscommit"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/plugin"
)

// Exit statuses. They are interface: scripts test them.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitPartly      = 3
	exitNoRepo      = 10
	exitLocked      = 11
	exitCorrupt     = 12
	exitNoSysroot   = 13
	exitNotBootable = 14
	exitConflict    = 15
	exitNoImage     = 16
	exitNoUpdate    = 77
	exitInterrupted = 130
)

var exitMeaning = map[int]string{
	exitOK:          "done",
	exitFailed:      "failed",
	exitUsage:       "wrong usage",
	exitPartly:      "partly done; standard error says what is missing",
	exitNoRepo:      "there is no repository at the root",
	exitLocked:      "the repository, its metadata or the system is locked by another process",
	exitCorrupt:     "something in the store or the system is corrupt",
	exitNoSysroot:   "there is no ostree system, or no stateroot, at the place",
	exitNotBootable: "the image cannot be booted",
	exitConflict:    "changes of /etc conflict with the image",
	exitNoImage:     "containerd does not have the image, or this snapshotter has not unpacked it",
	exitNoUpdate:    "there is no update",
	exitInterrupted: "interrupted",
}

// exitHelp is the end of a command's help text: the statuses that every command can end with, and those in codes.
func exitHelp(codes ...int) string {
	codes = append(codes, exitOK, exitFailed, exitUsage)
	slices.Sort(codes)
	var b strings.Builder
	b.WriteString("\n\nExit status:")
	for _, code := range slices.Compact(codes) {
		fmt.Fprintf(&b, "\n  %3d  %s", code, exitMeaning[code])
	}
	return b.String()
}

// statusError is an error with the exit status that it ends the process with.
type statusError struct {
	status int
	err    error
}

func (e *statusError) Error() string { return e.err.Error() }
func (e *statusError) Unwrap() error { return e.err }

func withStatus(status int, err error) error { return &statusError{status, err} }

func usagef(format string, args ...any) error {
	return withStatus(exitUsage, fmt.Errorf(format, args...))
}

// hintError is an error with what its reader can do about it.
type hintError struct {
	err  error
	hint string
}

func (e *hintError) Error() string { return e.err.Error() }
func (e *hintError) Unwrap() error { return e.err }

func withHint(err error, format string, args ...any) error {
	return &hintError{err, fmt.Sprintf(format, args...)}
}

var errInterrupted = withStatus(exitInterrupted, errors.New("interrupted"))

// errQuiet is an error that has nothing to say: its status is the answer.
var errQuiet = errors.New("quiet")

// report writes err to stderr in the form that users and scripts see, and returns the exit status for it.
func report(stderr io.Writer, err error) int {
	if err == nil {
		return exitOK
	}
	if errors.Is(err, errQuiet) {
		return statusOf(err)
	}
	for line := range strings.SplitSeq(err.Error(), "\n") { // errors.Join makes lines
		fmt.Fprintf(stderr, "ostree-snapshotter: error: %s\n", line)
	}
	if hint := hintFor(err); hint != "" {
		fmt.Fprintf(stderr, "ostree-snapshotter: hint: %s\n", hint)
	}
	return statusOf(err)
}

func statusOf(err error) int {
	var (
		status *statusError
		none   *plugin.NoStoreError
	)
	switch {
	case errors.As(err, &status):
		return status.status
	case errors.As(err, &none), errors.Is(err, objectstore.ErrNoRepo):
		return exitNoRepo
	case errors.Is(err, objectstore.ErrLocked), errors.Is(err, sysroot.ErrLocked):
		return exitLocked
	case errors.Is(err, objectstore.ErrCorrupt), errors.Is(err, sysroot.ErrCorrupt):
		return exitCorrupt
	case errors.Is(err, sysroot.ErrNotSysroot):
		return exitNoSysroot
	case errors.Is(err, sysroot.ErrInvalid), errors.Is(err, sysroot.ErrSELinux), errors.Is(err, oscommit.ErrInvalid):
		return exitNotBootable
	case errors.Is(err, kargs.ErrEdit):
		return exitUsage
	case errors.Is(err, etcmerge.ErrConflict):
		return exitConflict
	}
	return exitFailed
}

func hintFor(err error) string {
	var (
		hint   *hintError
		none   *plugin.NoStoreError
		config *plugin.ConfigError
	)
	switch {
	case errors.As(err, &hint):
		return hint.hint
	case errors.As(err, &none):
		return "\"ostree-snapshotter serve\" makes the store when it first starts; --root or --config say where it is"
	case errors.As(err, &config):
		return "\"ostree-snapshotter config default\" prints every key with its default"
	case errors.Is(err, objectstore.ErrLocked):
		return "a pull or another prune holds the repository's lock; try again when it is done"
	case errors.Is(err, objectstore.ErrCorrupt):
		return "\"ostree-snapshotter fsck\" names everything that is damaged"
	case errors.Is(err, fs.ErrPermission) && unix.Geteuid() != 0:
		return "the store belongs to root; try again as root"
	case errors.Is(err, unix.ENOSPC):
		return "\"ostree-snapshotter prune\" frees what no snapshot needs"
	}
	return ""
}

// note writes something that is not an error to stderr.
func (c *cli) note(format string, args ...any) {
	fmt.Fprintf(c.stderr, "ostree-snapshotter: "+format+"\n", args...)
}
