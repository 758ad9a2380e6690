package integration

import (
	"context"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/images"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/stack"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/testhost"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/tree"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/process"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// defaultNS is the namespace of tests that need only one.
const defaultNS = "default"

// An env is a running stack whose failures end the test.
type env struct {
	*stack.Stack
	t *testing.T
}

// needsHost skips the test if the host was not prepared, and ends it if a kernel feature is missing.
func needsHost(t *testing.T) {
	t.Helper()
	testenv.SkipShort(t, "needs a real containerd")
	testenv.NeedsRoot(t)
	testenv.NeedsOverlay(t)
}

// start starts a stack for the test. At the end of the test, the repository must pass ostree fsck and nothing of the
// stack may be left.
func start(t *testing.T, change func(*stack.Options)) *env {
	t.Helper()
	needsHost(t)
	opts := stack.Options{
		Tools:       shared.tools,
		Snapshotter: stack.Ostree,
		Registry:    shared.registry.Address,
	}
	if change != nil {
		change(&opts)
	}
	if opts.Snapshotter == stack.Ostree {
		opts.Binary = daemonBinary(t)
		if mode := testenv.Checkout(); mode != "" && !strings.Contains(opts.Config, "checkout = ") {
			opts.Config = fmt.Sprintf("checkout = %q\n%s", mode, opts.Config)
		}
		opts.Config += "[log]\nformat = \"json\"\n" // daemonLog reads it
	}
	s, err := stack.Start(t.Context(), opts)
	if err != nil {
		t.Fatalf("start the stack: %v", err)
	}
	e := &env{Stack: s, t: t}
	t.Cleanup(func() {
		if opts.Snapshotter == stack.Ostree {
			e.fsck()
		}
		if t.Failed() {
			t.Logf("the last of containerd's log:\n%s", process.Tail(s.ContainerdLog(), 25))
			t.Logf("the last of the daemon's log:\n%s", process.Tail(s.DaemonLog(), 40))
		}
		if err := s.Stop(); err != nil {
			t.Errorf("stop the stack: %v", err)
		}
		if _, err := os.Lstat(s.Dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the stack's directory is still there: %v", err)
		}
	})
	return e
}

// processesOf returns process IDs and command lines of all processes but ours whose command line contains a path.
// Processes that end meanwhile are left out.
func processesOf(t *testing.T, path string) (found []string) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil || len(files) == 0 {
		t.Fatalf("list processes: got %d, %v", len(files), err)
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		pid := filepath.Base(filepath.Dir(name))
		if err == nil && strings.Contains(string(b), path) && pid != strconv.Itoa(os.Getpid()) {
			found = append(found, pid+" "+strings.ReplaceAll(strings.TrimRight(string(b), "\x00"), "\x00", " "))
		}
	}
	return found
}

// daemonBinary returns the path of the daemon to test.
func daemonBinary(t *testing.T) string {
	t.Helper()
	binary, err := shared.binary()
	if err != nil {
		t.Fatal(err)
	}
	return binary
}

// fsck checks the repository with ostree, and then everything with our own fsck, down to the diff IDs.
func (e *env) fsck() {
	e.t.Helper()
	repo := filepath.Join(e.Root, "repo")
	if _, err := os.Stat(repo); err != nil {
		e.t.Errorf("check the repository: %v", err)
		return
	}
	// ostree's fsck takes no lock, so the daemon may prune objects meanwhile. Real damage is still there in the next
	// try.
	e.eventually("check the repository", func() string {
		out, err := exec.Command("ostree", "fsck", "--repo="+repo).CombinedOutput()
		if err != nil {
			return fmt.Sprintf("ostree fsck: %v\n%s", err, out)
		}
		return ""
	})
	out, err := e.ourFsck("--deep")
	if err != nil {
		e.t.Errorf("our fsck: %v\n%s", err, out)
	}
}

// A logLine is a line of the daemon's log.
type logLine struct {
	Level  string `json:"level"`
	Msg    string `json:"msg"`
	Layer  string `json:"layer"`
	DiffID string `json:"diffID"`

	Checkout string `json:"checkout"`
}

// daemonLog returns the lines with a message in the daemon's log.
func (e *env) daemonLog(msg string) []logLine {
	e.t.Helper()
	b, err := os.ReadFile(e.DaemonLog())
	e.must(err)
	var lines []logLine
	for text := range strings.Lines(string(b)) {
		var line logLine
		if err := json.Unmarshal([]byte(text), &line); err != nil {
			e.t.Fatalf("the daemon's log has the line %q: %v", text, err)
		}
		if line.Msg == msg {
			lines = append(lines, line)
		}
	}
	return lines
}

// imported counts how often each layer was unpacked.
func (e *env) imported() map[string]int {
	e.t.Helper()
	times := make(map[string]int)
	for _, line := range e.daemonLog("layer imported") {
		times[line.DiffID]++
	}
	return times
}

// importedOnce fails the test unless exactly the layers of the images were unpacked, once each.
func (e *env) importedOnce(refs ...string) {
	e.t.Helper()
	want := make(map[string]int)
	for _, ref := range refs {
		for _, id := range image(e.t, ref).Config.RootFS.DiffIDs {
			want[id.String()] = 1
		}
	}
	if got := e.imported(); !maps.Equal(got, want) {
		e.t.Errorf("layers were unpacked so often: %v, want %v", got, want)
	}
}

// image returns a test image.
func image(t *testing.T, ref string) *images.Image {
	t.Helper()
	dir, err := images.Layout(t.Context(), t.Output(), ref)
	if err != nil {
		t.Fatal(err)
	}
	img, err := images.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// eventually calls try until it returns "". After ten seconds the test fails with its last result.
func (e *env) eventually(what string, try func() string) {
	e.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		problem := try()
		if problem == "" {
			return
		}
		if time.Now().After(deadline) {
			e.t.Fatalf("%s: %s", what, problem)
		}
	}
}

// push pushes a test image to the registry and returns the name to pull it by.
func push(t *testing.T, ref string) string {
	t.Helper()
	full, err := shared.registry.Push(t.Context(), t.Output(), ref)
	if err != nil {
		t.Fatalf("push %s: %v", ref, err)
	}
	return full
}

// must ends the test if there is an error.
func (e *env) must(err error) {
	e.t.Helper()
	if err != nil {
		e.t.Fatal(err)
	}
}

// ctr runs ctr and returns its output.
func (e *env) ctr(namespace string, args ...string) string {
	e.t.Helper()
	out, err := e.Ctr(e.t.Context(), namespace, args...)
	e.must(err)
	return out
}

// pull pushes a test image and pulls it.
func (e *env) pull(namespace, ref string, flags ...string) string {
	e.t.Helper()
	full := push(e.t, ref)
	e.must(e.Pull(e.t.Context(), namespace, full, flags...))
	return full
}

// run runs a command in a new container and returns what it printed.
func (e *env) run(namespace, full string, command ...string) string {
	e.t.Helper()
	out, err := e.RunContainer(e.t.Context(), namespace, full, containerID(), command...)
	e.must(err)
	return out
}

// exec runs a shell script in a running container and returns what it printed.
func (e *env) exec(namespace, id, script string) string {
	e.t.Helper()
	out, err := e.Exec(e.t.Context(), namespace, id, "/bin/sh", "-c", script)
	e.must(err)
	return out
}

var containers atomic.Int64

// containerID returns a unique container name.
func containerID() string {
	return fmt.Sprintf("c%d-%d", os.Getpid(), containers.Add(1))
}

// chainID returns the name of an image's snapshot.
func (e *env) chainID(namespace, full string) string {
	e.t.Helper()
	id, err := e.ChainID(e.t.Context(), namespace, full)
	e.must(err)
	return id
}

// view reads the files that a container of the image would see.
func (e *env) view(namespace, full string) tree.Tree {
	e.t.Helper()
	return e.viewOf(namespace, e.chainID(namespace, full))
}

// viewOf reads the files of a committed snapshot.
func (e *env) viewOf(namespace, name string) tree.Tree {
	e.t.Helper()
	got, err := e.ReadView(e.t.Context(), namespace, name)
	e.must(err)
	return got
}

// composefs reports whether the current daemon runs containers on composefs images.
func (e *env) composefs() bool {
	e.t.Helper()
	lines := e.daemonLog("checkouts chosen")
	return e.Snapshotter == stack.Ostree && len(lines) > 0 && lines[len(lines)-1].Checkout == "composefs"
}

// compare fails the test for each difference between the files of an image and those that overlayfs shows.
func (e *env) compare(ref string, got tree.Tree) {
	e.t.Helper()
	want, options := reference(e.t, ref)
	options.ExactLinks = e.composefs()
	for _, line := range diffTrees(want, got, options) {
		e.t.Errorf("%s: %s", ref, line)
	}
}

// diffTrees is tree.Diff, limited to forty lines.
func diffTrees(want, got tree.Tree, options tree.Options) []string {
	lines := tree.Diff(want, got, options)
	if n := len(lines); n > 40 {
		lines = append(lines[:40], fmt.Sprintf("and %d more differences", n-40))
	}
	return lines
}

// reference returns the files of a test image with containerd's overlayfs snapshotter, and the options to compare with
// them. The tests with other checkouts do not ask containerd again on a machine where they did so before: the tests with the
// default ones always do.
func reference(t *testing.T, ref string) (tree.Tree, tree.Options) {
	t.Helper()
	needsHost(t)
	ref = images.SameContent(ref)
	if testenv.Checkout() == "" {
		return ownReference(t, ref)
	}
	type reference struct {
		Tree    tree.Tree
		Options tree.Options
	}
	const name = "reference"
	dir, err := testhost.Cached(name, referenceKey(t, ref), func(dir string) error {
		var r reference
		r.Tree, r.Options = ownReference(t, ref)
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		return errors.Join(gob.NewEncoder(f).Encode(r), f.Close())
	})
	testenv.Must(t, err)
	f, err := os.Open(filepath.Join(dir, name))
	testenv.Must(t, err)
	defer f.Close()
	var r reference
	testenv.Must(t, gob.NewDecoder(f).Decode(&r))
	return r.Tree, r.Options
}

// referenceKey returns a key of all that can change the reference of an image: the image, containerd, the kernel, and how
// trees are read.
func referenceKey(t *testing.T, ref string) string {
	t.Helper()
	layout, err := images.Layout(t.Context(), t.Output(), ref)
	testenv.Must(t, err)
	var kernel unix.Utsname
	testenv.Must(t, unix.Uname(&kernel))
	reader, err := os.ReadFile("tree/tree.go")
	testenv.Must(t, err)
	return testhost.Key(layout, shared.tools.Containerd, unix.ByteSliceToString(kernel.Release[:]), string(reader))
}

// ownReference is reference with the containerd of this process.
func ownReference(t *testing.T, ref string) (tree.Tree, tree.Options) {
	t.Helper()
	full := push(t, ref)
	return referenceOf(t, ref, image(t, ref), func(e *env) {
		if out := e.run(defaultNS, full, "/bin/sh", "-c", "echo $((40+2))"); strings.TrimSpace(out) != "42" {
			t.Errorf("the container printed %q, want 42", out)
		}
	})
}

// referenceOf is ownReference for any image in the registry. The first call for an image runs check while it is pulled.
func referenceOf(t *testing.T, ref string, img *images.Image, check func(*env)) (tree.Tree, tree.Options) {
	t.Helper()
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if got, ok := shared.trees[ref]; ok {
		return got, shared.options[ref]
	}
	if shared.reference == nil {
		s, err := stack.Start(context.WithoutCancel(t.Context()), stack.Options{Tools: shared.tools, Snapshotter: stack.Overlay})
		if err != nil {
			t.Fatalf("start the reference: %v", err)
		}
		shared.reference = s
	}
	e := &env{Stack: shared.reference, t: t}
	full := shared.registry.Address + "/" + ref
	e.must(e.Pull(t.Context(), defaultNS, full))
	got := e.view(defaultNS, full)
	check(e) // the image stays: another one may have its layers
	unsaid, err := img.UnsaidTimes()
	e.must(err)
	shared.trees[ref], shared.options[ref] = got, tree.Options{IgnoreMtime: unsaid}
	return got, shared.options[ref]
}
