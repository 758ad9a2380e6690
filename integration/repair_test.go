package integration

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/stack"
)

// TestRepair damages the store under a running container and lets fsck --repair make it whole from containerd's blobs,
// while another image is pulled.
func TestRepair(t *testing.T) {
	e := start(t, func(o *stack.Options) { o.ParallelUnpacks = 3 })
	fulls := map[string]string{"layers:1": "", "odd:1": ""}
	for ref := range fulls {
		fulls[ref] = e.pull(defaultNS, ref)
	}
	id := containerID()
	e.must(e.StartContainer(t.Context(), defaultNS, fulls["layers:1"], id, "/bin/sleep", "1000"))

	e.damage()
	if out, err := e.ourFsck(); exitStatus(err) != 12 {
		t.Fatalf("fsck of a damaged store: %v, want exit status 12\n%s", err, out)
	}
	other := push(t, "app:1")
	pulled := make(chan error, 1)
	go func() { pulled <- e.Pull(t.Context(), "other", other) }()
	out, err := e.ourFsck("--repair")
	if err != nil {
		t.Errorf("fsck --repair: %v\n%s", err, out)
	}
	e.must(<-pulled)
	e.fsck()
	for ref, full := range fulls {
		e.compare(ref, e.view(defaultNS, full))
	}
	e.compare("app:1", e.view("other", other))
	if got := e.exec(defaultNS, id, "cat /data/kept"); got != "content of data/kept\n" {
		t.Errorf("the container that ran meanwhile reads %q", got)
	}
}

// ourFsck runs our fsck beside the daemon.
func (e *env) ourFsck(flags ...string) (string, error) {
	args := []string{"fsck", "--root", e.Root, "--daemon-address", e.Daemon, "--address", e.Containerd}
	return e.Run(context.WithoutCancel(e.t.Context()), daemonBinary(e.t), append(args, flags...)...)
}

// exitStatus returns the exit status a program ended with, 0 if it succeeded and -1 if it did not end by itself.
func exitStatus(err error) int {
	if err == nil {
		return 0
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return -1
}

// damage flips a byte in every twentieth object, as a failing disk does, and removes the object after it.
func (e *env) damage() {
	e.t.Helper()
	var objects []string
	err := filepath.WalkDir(filepath.Join(e.Root, "repo/objects"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && strings.HasSuffix(path, ".file") {
			objects = append(objects, path)
		}
		return err
	})
	e.must(err)
	slices.Sort(objects)
	if len(objects) < 400 {
		e.t.Fatalf("the repository has %d objects, want 400 or more to damage", len(objects))
	}
	for i := 0; i+1 < len(objects); i += 20 {
		e.must(flip(objects[i]))
		e.must(os.Remove(objects[i+1]))
	}
}

// flip changes a byte in the middle of a file and leaves its modification time as it was.
func flip(name string) error {
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	st, err := os.Stat(name)
	if err != nil {
		return err
	}
	b[len(b)/2] ^= 0x10
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b[len(b)/2:len(b)/2+1], int64(len(b)/2))
	return errors.Join(err, f.Close(), os.Chtimes(name, st.ModTime(), st.ModTime()))
}
