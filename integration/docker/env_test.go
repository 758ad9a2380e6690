package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/stack"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/tree"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/process"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

const (
	composefs = "composefs"
	hardlink  = "hardlink"
)

// defaultNS is the namespace in which the tests pull what was built.
const defaultNS = "default"

// base is the image that the tests build from.
const base = "layers:1"

// An env is a running stack whose failures end the test.
type env struct {
	*stack.Stack
	t *testing.T
}

func needsHost(t *testing.T) {
	t.Helper()
	testenv.SkipShort(t, "needs a real containerd")
	testenv.NeedsRoot(t)
	testenv.NeedsOverlay(t)
}

// start starts a stack with checkouts of one kind, or with overlayfs if checkout is empty. At the end of the test nothing of
// it may be left.
func start(t *testing.T, checkout string) *env {
	t.Helper()
	needsHost(t)
	opts := stack.Options{Tools: shared.tools, Snapshotter: stack.Overlay, Registry: shared.registry.Address}
	if checkout != "" {
		opts.Snapshotter, opts.Binary, opts.Config = stack.Ostree, shared.binary, checkoutKey(checkout)
	}
	if checkout == composefs {
		testenv.NeedsEROFS(t)
	}
	s, err := stack.Start(t.Context(), opts)
	testenv.Must(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			logs, _ := filepath.Glob(filepath.Join(s.Dir, "*.log"))
			for _, name := range logs {
				t.Logf("the last of %s:\n%s", filepath.Base(name), process.Tail(name, 25))
			}
		}
		if err := s.Stop(); err != nil {
			t.Errorf("stop the stack: %v", err)
		}
		if _, err := os.Lstat(s.Dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the stack's directory is still there: %v", err)
		}
	})
	return &env{Stack: s, t: t}
}

func checkoutKey(checkout string) string { return fmt.Sprintf("checkout = %q\n", checkout) }

// must ends the test if there is an error.
func (e *env) must(err error) {
	e.t.Helper()
	testenv.Must(e.t, err)
}

// eventually calls try until it returns "". After half a minute the test fails with its last result.
func (e *env) eventually(what string, try func() string) {
	e.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		problem := try()
		if problem == "" {
			return
		}
		if time.Now().After(deadline) {
			e.t.Fatalf("%s: %s", what, problem)
		}
	}
}

// pushBase pushes the base image to the registry and returns the name to pull it by.
func pushBase(t *testing.T) string {
	t.Helper()
	full, err := shared.registry.Push(t.Context(), t.Output(), base)
	testenv.Must(t, err)
	return full
}

// A store is what the commands of the program look at.
type store struct{ root, daemon, containerd string }

// store returns the store that containerd uses.
func (e *env) store() store { return store{e.Root, e.Daemon, e.Containerd} }

// command runs a command of the program beside the daemon, and returns its output.
func (e *env) command(s store, name string, flags ...string) string {
	e.t.Helper()
	args := []string{name, "--root", s.root, "--daemon-address", s.daemon}
	if name == "df" || name == "fsck" {
		args = append(args, "--address", s.containerd)
	}
	out, err := e.Run(context.WithoutCancel(e.t.Context()), shared.binary, append(args, flags...)...)
	e.must(err)
	return out
}

// inspect runs every command of the program that looks at a store, and ostree's fsck. It returns the number of layers that
// are made of directories, and of others.
func (e *env) inspect(s store) (directories, others int) {
	e.t.Helper()
	var listed struct {
		Layers []struct {
			DiffID string `json:"diff_id"`
		}
	}
	e.must(json.Unmarshal([]byte(e.command(s, "layers", "--json")), &listed))
	for _, l := range listed.Layers {
		if l.DiffID == "" {
			directories++
		} else {
			others++
		}
	}
	if got := strings.Count(e.command(s, "layers"), "\n"); got < len(listed.Layers) {
		e.t.Errorf("layers printed %d lines for %d layers", got, len(listed.Layers))
	}

	var used struct {
		Images []struct {
			Layers int
		}
	}
	e.must(json.Unmarshal([]byte(e.command(s, "df", "--json")), &used))
	if (len(used.Images) == 0) != (len(listed.Layers) == 0) {
		e.t.Errorf("df lists %d images for %d layers", len(used.Images), len(listed.Layers))
	}
	e.command(s, "df")

	var report struct {
		Layers   int
		Problems []any
		Deep     struct {
			Proved     int `json:"proved_layers"`
			WithoutTar int `json:"without_tar"`
		}
	}
	e.must(json.Unmarshal([]byte(e.command(s, "fsck", "--deep", "--json")), &report))
	if report.Layers != len(listed.Layers) || report.Deep.Proved != others || report.Deep.WithoutTar != directories {
		e.t.Errorf("fsck --deep reports %+v, want %d layers proved, %d without a tar", report, others, directories)
	}
	e.command(s, "fsck")
	if out := e.command(s, "prune", "--dry-run"); out == "" {
		e.t.Error("prune --dry-run printed nothing")
	}
	e.ostreeFsck(s)
	return directories, others
}

// ostreeFsck checks the repository with ostree. ostree takes no lock, so the daemon may remove objects meanwhile; real damage
// is there in the next try.
func (e *env) ostreeFsck(s store) {
	e.t.Helper()
	e.eventually("check the repository", func() string {
		out, err := exec.Command("ostree", "fsck", "--repo="+filepath.Join(s.root, "repo")).CombinedOutput()
		if err != nil {
			return fmt.Sprintf("ostree fsck: %v\n%s", err, out)
		}
		return ""
	})
}

// empty waits until the store is empty, and checks it.
func (e *env) empty(s store) {
	e.t.Helper()
	e.eventually("empty the store", func() string {
		left, err := stack.Leftovers(s.root)
		e.must(err)
		if len(left) == 0 {
			return ""
		}
		return fmt.Sprintf("%d things are left, the first is %s", len(left), left[0])
	})
	e.command(s, "fsck")
	e.ostreeFsck(s)
}

// A built image is what came of a build.
type built struct {
	diffIDs []string
	tree    tree.Tree
}

// pull pulls an image into defaultNS, and reads its layers and files there.
func (e *env) pull(full string) (b built) {
	e.t.Helper()
	ctx := stack.Context(e.t.Context())
	e.must(e.Pull(ctx, defaultNS, full))
	img, err := e.Client().GetImage(ctx, full)
	e.must(err)
	ids, err := img.RootFS(ctx)
	e.must(err)
	for _, id := range ids {
		b.diffIDs = append(b.diffIDs, id.String())
	}
	chain, err := e.ChainID(ctx, defaultNS, full)
	e.must(err)
	b.tree, err = e.ReadView(ctx, defaultNS, chain)
	e.must(err)
	return b
}

// remove removes an image from a namespace and waits for containerd's garbage collection.
func (e *env) remove(namespace, full string) {
	e.t.Helper()
	_, err := e.Ctr(e.t.Context(), namespace, "images", "rm", "--sync", full)
	e.must(err)
}
