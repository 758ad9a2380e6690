package plugin

import (
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestListenUnix(t *testing.T) {
	for _, c := range []struct {
		name    string
		prepare func(t *testing.T, address string)
		want    string // in the error; "" for none
	}{
		{"nothing there", func(*testing.T, string) {}, ""},
		{"stale socket", func(t *testing.T, address string) {
			t.Helper()
			l := listenAt(t, address)
			l.SetUnlinkOnClose(false)
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
		}, ""},
		{"live socket", func(t *testing.T, address string) {
			t.Helper()
			l := listenAt(t, address)
			t.Cleanup(func() { _ = l.Close() })
		}, fmt.Sprintf("process %d listens there", os.Getpid())},
		{"file", func(t *testing.T, address string) {
			t.Helper()
			if err := os.WriteFile(address, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, "not a socket"},
	} {
		t.Run(c.name, func(t *testing.T) {
			address := testConfig(t).Address
			if c.name != "nothing there" {
				if err := os.MkdirAll(filepath.Dir(address), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			c.prepare(t, address)
			l, err := listenUnix(address)
			if c.want != "" {
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("got %v, want an error with %q", err, c.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			fi, err := os.Stat(address)
			if err != nil || fi.Mode().Perm() != socketMode || fi.Mode().Type() != fs.ModeSocket {
				t.Errorf("socket is %v, %v, want mode %o", fi.Mode(), err, socketMode)
			}
			conn, err := net.Dial("unix", address)
			if err != nil {
				t.Fatal(err)
			}
			if err := conn.Close(); err != nil {
				t.Error(err)
			}
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func listenAt(t *testing.T, address string) *net.UnixListener {
	t.Helper()
	l, err := net.Listen("unix", address)
	if err != nil {
		t.Fatal(err)
	}
	return l.(*net.UnixListener)
}

const activationEnv = "OSTREE_SNAPSHOTTER_TEST_ACTIVATION"

// systemd passes sockets as descriptors from 3 on, to the process whose ID is in LISTEN_PID.
func TestSocketActivation(t *testing.T) {
	if want := os.Getenv(activationEnv); want != "" {
		l, err := listen("/nonexistent/socket")
		if err != nil {
			fmt.Println("error:", err)
			return
		}
		fmt.Println("address:", l.Addr())
		_ = l.Close()
		return
	}
	run := func(files ...*os.File) string {
		cmd := exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ exec "$0" -test.run=^TestSocketActivation$`, os.Args[0])
		cmd.Env = append(os.Environ(), activationEnv+"=1", fmt.Sprintf("LISTEN_FDS=%d", len(files)))
		cmd.ExtraFiles = files
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	address := testConfig(t).Address
	if err := os.MkdirAll(filepath.Dir(address), 0o755); err != nil {
		t.Fatal(err)
	}
	l := listenAt(t, address)
	defer l.Close()
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if out := run(f); !strings.Contains(out, "address: "+address) {
		t.Errorf("one socket: %s", out)
	}
	if _, err := os.Stat(address); err != nil {
		t.Errorf("the process removed systemd's socket: %v", err)
	}
	if out := run(f, f); !strings.Contains(out, "want one unix stream socket, got 2") {
		t.Errorf("two sockets: %s", out)
	}
}
