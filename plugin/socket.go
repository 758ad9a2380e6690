package plugin

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"
)

const socketMode = 0o600

// listen returns the socket that systemd passed to the process, or else a new one at address that only its owner can
// open.
func listen(address string) (net.Listener, error) {
	passed, err := activation.Listeners()
	if err != nil {
		return nil, fmt.Errorf("take socket from systemd: %w", err)
	}
	switch len(passed) {
	case 0:
		return listenUnix(address)
	case 1:
		if l, ok := passed[0].(*net.UnixListener); ok {
			l.SetUnlinkOnClose(false) // it is systemd's
			return l, nil
		}
	}
	for _, l := range passed {
		if l != nil {
			err = errors.Join(err, l.Close())
		}
	}
	return nil, errors.Join(fmt.Errorf("take socket from systemd: want one unix stream socket, got %d sockets", len(passed)), err)
}

// listenUnix creates the socket. It replaces a socket on which no process listens any more.
func listenUnix(address string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(address), rootMode); err != nil {
		return nil, fmt.Errorf("make directory of socket: %w", err)
	}
	if err := removeStale(address); err != nil {
		return nil, err
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		// bind(2) creates the name with the mode of the socket: it is never open to others.
		var err error
		return errors.Join(c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), socketMode) }), err)
	}}
	l, err := lc.Listen(noContext, "unix", address)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	if err := os.Chmod(address, socketMode); err != nil {
		return nil, errors.Join(fmt.Errorf("listen: %w", err), l.Close())
	}
	return l, nil
}

// removeStale removes the socket of a dead process. A socket on which a process listens is an error.
func removeStale(address string) error {
	fi, err := os.Lstat(address)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	if fi.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("listen on %s: file exists and is not a socket", address)
	}
	conn, err := net.DialTimeout("unix", address, time.Second)
	if err == nil {
		return errors.Join(fmt.Errorf("listen on %s: process %s listens there already", address, peer(conn)), conn.Close())
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("listen on %s: %w", address, err)
	}
	if err := os.Remove(address); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	return nil
}

// peer returns the ID of the process at the other end of a unix socket.
func peer(conn net.Conn) string {
	raw, err := conn.(*net.UnixConn).SyscallConn() //nolint:forcetypeassert // DialTimeout("unix") returns no other
	if err != nil {
		return "unknown"
	}
	var cred *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); cerr != nil || err != nil {
		return "unknown"
	}
	return fmt.Sprint(cred.Pid)
}
