package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/stack"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// fails runs the daemon with arguments that keep it from starting, and returns its one-line error. The exit status must
// be documented in the command's help.
func fails(t *testing.T, change func(*exec.Cmd), args ...string) (line string, status int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, daemonBinary(t), args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if change != nil {
		change(cmd)
	}
	err := cmd.Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() < 1 {
		t.Fatalf("%v: ended with %v, want an exit status\n%s", args, err, &stderr)
	}
	if stdout.Len() > 0 {
		t.Errorf("%v: wrote to standard output: %q", args, stdout.String())
	}
	var problems []string
	for text := range strings.Lines(stderr.String()) {
		if !strings.HasPrefix(text, "ostree-snapshotter: hint: ") {
			problems = append(problems, text)
		}
	}
	if len(problems) != 1 || !strings.HasPrefix(problems[0], "ostree-snapshotter: error: ") {
		t.Errorf("%v: wrote %q to standard error, want one line of error", args, stderr.String())
	}
	if !slices.Contains(documented(t, args[0]), exit.ExitCode()) {
		t.Errorf("%v: exit status %d is not in the help text", args, exit.ExitCode())
	}
	return strings.Join(problems, ""), exit.ExitCode()
}

var statusLine = regexp.MustCompile(`(?m)^ +(\d+)  \S`)

// documented returns the exit statuses in a command's help text.
func documented(t *testing.T, command string) []int {
	t.Helper()
	out, err := exec.Command(daemonBinary(t), command, "--help").Output()
	if err != nil {
		t.Fatalf("%s --help: %v", command, err)
	}
	var codes []int
	for _, m := range statusLine.FindAllSubmatch(out, -1) {
		var code int
		if _, err := fmt.Sscan(string(m[1]), &code); err != nil {
			t.Fatal(err)
		}
		codes = append(codes, code)
	}
	return codes
}

// TestStartErrors starts the daemon where it cannot run.
func TestStartErrors(t *testing.T) {
	e := start(t, nil)
	elsewhere := []string{"--root", filepath.Join(e.Dir, "other"), "--address", filepath.Join(e.Dir, "other.sock")}
	bad := filepath.Join(e.Dir, "bad.toml")
	if err := os.WriteFile(bad, []byte("version = 1\nskip_downlod = true\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name   string
		args   []string
		change func(*exec.Cmd)
		want   string
		status int
	}{
		{"wrong key", append([]string{"serve", "--config", bad}, elsewhere...), nil, `line 2: unknown key "skip_downlod"`, 1},
		{"no such configuration", append([]string{"serve", "--config", "/no/such/file"}, elsewhere...), nil, "/no/such/file", 1},
		{"root in use", append(e.DaemonArgs(), "--address", filepath.Join(e.Dir, "other.sock")), nil, fmt.Sprintf("in use by process %d", e.DaemonPid()), 1},
		{"socket in use", append(e.DaemonArgs(), "--root", filepath.Join(e.Dir, "other")), nil, fmt.Sprintf("process %d listens there", e.DaemonPid()), 1},
		{"not root", append([]string{"serve"}, elsewhere...), func(cmd *exec.Cmd) {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		}, "root", 1},
		{"unknown flag", []string{"serve", "--no-such-flag"}, nil, "--no-such-flag", 2},
		{"argument", []string{"serve", "extra"}, nil, `"extra"`, 2},
		{"root below a file", []string{"serve", "--root", "/etc/hostname/x", "--address", filepath.Join(e.Dir, "other.sock")}, nil, "/etc/hostname", 1},
		{"no store", []string{"fsck", "--root", filepath.Join(e.Dir, "none")}, nil, "none", 10},
	} {
		t.Run(tc.name, func(t *testing.T) {
			line, status := fails(t, tc.change, tc.args...)
			if !strings.Contains(line, tc.want) {
				t.Errorf("the error is %q, want %q in it", line, tc.want)
			}
			if status != tc.status {
				t.Errorf("the exit status is %d, want %d (%s)", status, tc.status, strings.TrimSpace(line))
			}
		})
	}
	// The running daemon was not disturbed.
	e.run(defaultNS, e.pull(defaultNS, "tiny:1"), "/bin/true")
}

// TestFullDisk fills the disk while an image is unpacked. The pull fails with a plain error, the store stays intact,
// and after space was freed the pull succeeds.
func TestFullDisk(t *testing.T) {
	needsHost(t)
	root := testenv.NewDisk(t, "ext4", 900<<20, "-q", "-m", "0").Dir
	ballast := filepath.Join(root, "ballast")
	out, err := exec.Command("fallocate", "--length", fmt.Sprint(640<<20), ballast).CombinedOutput()
	if err != nil {
		t.Fatalf("fallocate: %v\n%s", err, out)
	}
	e := start(t, func(o *stack.Options) { o.Root = filepath.Join(root, "ostree") })
	full := push(t, "base:1")
	err = e.Pull(t.Context(), defaultNS, full)
	if err == nil || !strings.Contains(err.Error(), "no space left on device") {
		t.Fatalf("pull onto a full disk: got %v, want no space left on device", err)
	}
	e.fsck()
	tiny := push(t, "tiny:1")
	if err := e.Pull(t.Context(), defaultNS, tiny); err != nil {
		t.Logf("a small image beside it: %v", err)
	}
	e.must(os.Remove(ballast))
	e.must(e.Pull(t.Context(), defaultNS, full))
	e.compare("base:1", e.view(defaultNS, full))
	e.run(defaultNS, full, "/usr/bin/python3", "-c", "import numpy")
	e.ctr(defaultNS, "images", "rm", "--sync", full)
	e.must(e.Pull(t.Context(), defaultNS, tiny))
	e.ctr(defaultNS, "images", "rm", "--sync", tiny)
	e.empty()
}

// TestForeignLayer pulls images whose layer is of a type that nobody can unpack, or of another type than it says. The
// error names the blob and, if that is what is wrong, the type, whoever unpacks.
func TestForeignLayer(t *testing.T) {
	e := start(t, nil)
	push(t, "tiny:1")
	blob := image(t, "tiny:1").Manifest.Layers[0].Digest.String()
	for _, tc := range []struct{ name, mediaType, want string }{
		{"encrypted", "application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "application/vnd.oci.image.layer.v1.tar+gzip+encrypted"},
		{"unknown", "application/vnd.oci.image.layer.v1.tar+lz4", "application/vnd.oci.image.layer.v1.tar+lz4"},
		{"not a tar", "application/vnd.oci.image.layer.v1.tar", "tar"},
	} {
		full := retype(t, "tiny:1", strings.ReplaceAll(tc.name, " ", "-"), tc.mediaType)
		for _, flag := range []string{"--local=false", "--local=true"} {
			t.Run(tc.name+"/"+flag[2:], func(t *testing.T) {
				err := e.Pull(t.Context(), defaultNS, full, flag)
				if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), blob) {
					t.Errorf("got %v, want an error with %s and %s", err, tc.want, blob)
				}
			})
		}
	}
}

// retype pushes the manifest of a pushed image under another tag, with another media type of the layers, and returns the
// name to pull it by.
func retype(t *testing.T, ref, tag, mediaType string) string {
	t.Helper()
	m := image(t, ref).Manifest
	m.Layers = slices.Clone(m.Layers)
	for i := range m.Layers {
		m.Layers[i].MediaType = mediaType
	}
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	name, _, _ := strings.Cut(ref, ":")
	address := "http://" + shared.registry.Address + "/v2/" + name + "/manifests/" + tag
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, address, bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", m.MediaType)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		t.Fatalf("push manifest: %s", resp.Status)
	}
	return shared.registry.Address + "/" + name + ":" + tag
}
