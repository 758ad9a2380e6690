package docker

import (
	"cmp"
	"slices"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/images"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/stack"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/tree"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// TestBuildkit builds, pushes, pulls and runs an image with each worker of BuildKit. BuildKit computes layers in one way from
// hard links, in another from composefs: one worker runs with each.
func TestBuildkit(t *testing.T) {
	for _, worker := range []struct {
		name, checkout string
		test           func(e *env, want built, checkout string)
	}{{"containerd", composefs, testContainerdWorker}, {"oci", hardlink, testOCIWorker}} {
		t.Run(worker.name, func(t *testing.T) {
			want := reference(t)
			checkout := cmp.Or(testenv.Checkout(), worker.checkout)
			worker.test(start(t, checkout), want, checkout)
		})
	}
}

// testContainerdWorker runs the worker that unpacks and runs everything by containerd.
func testContainerdWorker(e *env, want built, checkout string) {
	b := e.startBuildkit("")
	full := e.Registry() + "/built:containerd-" + checkout
	b.buildTwice(full)
	e.compare(want, full, checkout)
	b.build(full, "2")
	e.runBuilt(full)
	if directories, others := e.inspect(e.store()); directories == 0 || others == 0 {
		e.t.Errorf("the store has %d layers of directories and %d others, want both", directories, others)
	}

	e.remove(stack.BuildkitNamespace, full)
	e.remove(defaultNS, full)
	b.prune()
	e.empty(e.store())
}

// testOCIWorker runs the worker that has a content store and metadata of its own, and talks to the snapshotter without
// containerd: it needs a daemon of its own.
func testOCIWorker(e *env, want built, checkout string) {
	own, err := e.StartStore(e.t.Context(), checkoutKey(checkout))
	e.must(err)
	s := store{own.Root, own.Address, own.Containerd}
	b := e.startBuildkit(own.Address)
	full := e.Registry() + "/built:oci-" + checkout
	b.buildTwice(full)
	e.compare(want, full, checkout)
	b.build(full, "2")
	e.runBuilt(full)
	if directories, others := e.inspect(s); directories == 0 || others != 0 {
		e.t.Errorf("the store has %d layers of directories and %d others, want directories alone", directories, others)
	}

	b.prune()
	e.empty(s)
	e.remove(defaultNS, full)
	e.empty(e.store())
}

// reference returns the image that BuildKit builds on containerd's overlayfs snapshotter.
func reference(t *testing.T) built {
	t.Helper()
	needsHost(t)
	shared.once.Do(func() {
		e := start(t, "")
		full := e.Registry() + "/built:overlayfs"
		e.startBuildkit("").build(full, "1")
		shared.reference = e.pull(full)
	})
	if shared.reference.tree == nil {
		t.Fatal("there is no image of overlayfs to compare with")
	}
	return shared.reference
}

// compare pulls an image that was built with N=1, and fails the test if it is not the reference. It removes the image.
func (e *env) compare(want built, full, checkout string) {
	e.t.Helper()
	got := e.pull(full)
	if !slices.Equal(got.diffIDs, want.diffIDs) {
		e.t.Errorf("the layers are\n%s, want\n%s", strings.Join(got.diffIDs, "\n"), strings.Join(want.diffIDs, "\n"))
	}
	e.compareTrees(want, got, tree.Options{ExactLinks: checkout == composefs, IgnoreMtime: unsaidTimes(e.t)})
	e.remove(defaultNS, full)
}

func (e *env) compareTrees(want, got built, options tree.Options) {
	e.t.Helper()
	for _, line := range tree.Diff(want.tree, got.tree, options) {
		e.t.Error(line)
	}
}

// unsaidTimes returns the directories whose times no layer of the base image has.
func unsaidTimes(t *testing.T) []string {
	t.Helper()
	dir, err := images.Layout(t.Context(), t.Output(), base)
	testenv.Must(t, err)
	img, err := images.Open(dir)
	testenv.Must(t, err)
	unsaid, err := img.UnsaidTimes()
	testenv.Must(t, err)
	return unsaid
}

// runBuilt pulls the image that was built last, runs a container of it, and leaves the image.
func (e *env) runBuilt(full string) {
	e.t.Helper()
	e.pull(full)
	script := check + `[ "$(cat /log /linked/dir/file)" = "$(printf '1\n2\nlinked')" ]`
	if _, err := e.RunContainer(e.t.Context(), defaultNS, full, "built", "/bin/sh", "-euc", script); err != nil {
		e.t.Errorf("the image is not what was built: %v", err)
	}
}

// A builder is a running BuildKit.
type builder struct {
	*env
	buildkit *stack.Buildkit
}

// startBuildkit starts BuildKit: with the OCI worker if there is a socket of a snapshotter for it.
func (e *env) startBuildkit(proxy string) builder {
	e.t.Helper()
	b, err := e.StartBuildkit(e.t.Context(), stack.BuildkitOptions{Programs: shared.buildkit, Proxy: proxy})
	e.must(err)
	return builder{e, b}
}

// build builds and pushes the image, and returns the progress that was printed.
func (b builder) build(full, n string) (progress string) {
	b.t.Helper()
	dir := buildContext(b.t, dockerfile+more)
	_, progress, err := b.buildkit.Buildctl(
		b.t.Context(), "build", "--progress", "plain", "--frontend", "dockerfile.v0",
		"--local", "context="+dir, "--local", "dockerfile="+dir, "--opt", "build-arg:BASE="+pushBase(b.t), "--opt", "build-arg:N="+n,
		"--opt", "build-arg:SOURCE_DATE_EPOCH="+epoch, "--opt", "force-network-mode=none",
		"--output", "type=image,name="+full+",push=true,rewrite-timestamp=true",
	)
	b.must(err)
	return progress
}

// buildTwice builds the image, and again from the cache alone.
func (b builder) buildTwice(full string) {
	b.t.Helper()
	if progress := b.build(full, "1"); strings.Contains(progress, " CACHED\n") {
		b.t.Errorf("the first build was cached:\n%s", progress)
	}
	if progress := b.build(full, "1"); strings.Count(progress, " CACHED\n") != steps {
		b.t.Errorf("the second build was not cached:\n%s", progress)
	}
}

// prune removes everything that BuildKit keeps.
func (b builder) prune() {
	b.t.Helper()
	for _, args := range [][]string{{"prune-histories"}, {"prune", "--all"}} {
		_, _, err := b.buildkit.Buildctl(b.t.Context(), args...)
		b.must(err)
	}
}
