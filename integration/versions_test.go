package integration

import (
	"cmp"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/stack"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/testhost"
)

// releaseVariable names the environment variable with the containerd release of TestRelease.
const releaseVariable = "OSTREE_SNAPSHOTTER_TEST_CONTAINERD"

// startRelease starts a stack with another release of containerd than the other tests have, as "config containerd"
// configures it, and with its own ctr: the oldest that is supported, unless the environment names one.
func startRelease(t *testing.T, config string) *env {
	t.Helper()
	needsHost(t)
	release := cmp.Or(os.Getenv(releaseVariable), testhost.OldContainerd)
	tools, err := shared.tools.WithContainerd(t.Context(), t.Output(), release)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("containerd %s", release)
	return start(t, func(o *stack.Options) {
		o.Tools, o.Config, o.SandboxImage = tools, config, push(t, "pause:1")
	})
}

// TestRelease runs another release of containerd.
func TestRelease(t *testing.T) {
	e := startRelease(t, "")
	for _, tc := range []struct {
		name string
		test func(e *env)
	}{
		{"local", testReleaseLocal},
		{"transfer", testReleaseTransfer},
		{"user namespace", testReleaseUserNamespace},
		{"nerdctl", testReleaseNerdctl},
		{"cri", testReleaseCRI},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := &env{Stack: e.Stack, t: t}
			tc.test(e)
			e.fsck()
			if !t.Failed() {
				e.empty()
			}
		})
	}
	log, err := os.ReadFile(e.ContainerdLog())
	e.must(err)
	for line := range strings.Lines(string(log)) {
		if strings.Contains(line, "unknown key") && !strings.Contains(line, "socket_dir") { // which is not of "config containerd"
			t.Errorf("containerd does not know a key of its configuration: %s", line)
		}
	}
}

// isOld reports whether this is containerd 1.7.
func (e *env) isOld() bool {
	e.t.Helper()
	version, err := e.Client().Version(e.t.Context())
	e.must(err)
	return strings.HasPrefix(version.Version, "1.")
}

// transfer makes containerd pull an image by its transfer service. That of 1.7 talks to registries by TLS alone, so the
// image is imported there.
func (e *env) transfer(namespace, ref string) string {
	e.t.Helper()
	if !e.isOld() {
		return e.pull(namespace, ref, "--local=false")
	}
	full := e.pull("exporting", ref, "--local=true")
	archive := filepath.Join(e.Dir, "image.tar")
	e.ctr("exporting", "images", "export", "--local=true", archive, full)
	e.ctr("exporting", "images", "rm", "--sync", full)
	e.empty()
	e.ctr(namespace, "images", "import", "--local=false", "--snapshotter", e.Snapshotter, archive)
	return full
}

func testReleaseLocal(e *env) {
	e.pullAndRun(func(ns, ref string) string { return e.pull(ns, ref, "--local=true") }, "layers:zstd", "odd:1")
}

func testReleaseTransfer(e *env) { e.pullAndRun(e.transfer, "layers:1") }

// pullAndRun pulls images, runs containers, and removes the images.
func (e *env) pullAndRun(pull func(ns, ref string) string, refs ...string) {
	const ns = "pulled"
	for _, ref := range refs {
		full := pull(ns, ref)
		e.compare(ref, e.view(ns, full))
		if got := e.run(ns, full, "/bin/sh", "-c", "echo $((40+2))"); strings.TrimSpace(got) != "42" {
			e.t.Errorf("the container of %s printed %q, want 42", ref, got)
		}
		e.ctr(ns, "images", "rm", "--sync", full)
	}
}

// testReleaseUserNamespace runs containers with a mapped root user, with and without labels for the mapping.
func testReleaseUserNamespace(e *env) {
	const ns = "mapped"
	full := e.pull(ns, "layers:1", "--local=true")
	before := e.committed(ns)
	e.remapped(ns, full, "--remap-labels")
	if after := e.committed(ns); after != before {
		e.t.Errorf("%d snapshots are committed, want %d as before: the image was copied", after, before)
	}
	e.remapped(ns, full)
	e.compare("layers:1", e.view(ns, full))
	e.ctr(ns, "images", "rm", "--sync", full)
}

// TestReleaseHardLinks runs containers in a user namespace on checkouts of hard links. containerd 1.7 cannot map the owners
// of such a mount, so it is refused.
func TestReleaseHardLinks(t *testing.T) {
	e := startRelease(t, "checkout = \"hardlink\"\n")
	full := e.pull(defaultNS, "layers:1", "--local=true")
	if e.isOld() {
		_, err := e.runRemapped(defaultNS, full, "--remap-labels")
		if err == nil || !strings.Contains(err.Error(), "2.0 or later") {
			t.Errorf("got %v, want an error with the release that is needed", err)
		}
	} else {
		e.remapped(defaultNS, full, "--remap-labels")
	}
	e.ctr(defaultNS, "images", "rm", "--sync", full)
	e.empty()
}

// testReleaseNerdctl commits a changed container, pushes the new image, and pulls it again.
func testReleaseNerdctl(e *env) {
	const ns = "by-nerdctl"
	nerdctl := func(args ...string) {
		e.t.Helper()
		_, err := e.Nerdctl(e.t.Context(), ns, args...)
		e.must(err)
	}
	full := push(e.t, "layers:1")
	nerdctl("pull", "--quiet", full)
	e.compare("layers:1", e.view(ns, full))
	name, parent := containerID(), "--cgroup-parent="+e.CgroupParent()
	nerdctl("run", parent, "--net", "none", "--name", name, full, "/bin/sh", "-c", changeScript+"echo kept-by-commit > /committed")
	pushed := strings.TrimSuffix(full, "layers:1") + "committed:" + filepath.Base(e.Dir)
	nerdctl("commit", name, pushed)
	nerdctl("push", "--quiet", pushed)
	nerdctl("rm", name)
	nerdctl("rmi", pushed, full)
	e.empty()
	nerdctl("pull", "--quiet", pushed)
	nerdctl("run", parent, "--rm", "--net", "none", pushed, "/bin/sh", "-c",
		`[ "$(cat /committed /data/made-link/link; ls /data/late-opaque)" = "$(printf 'kept-by-commit\nnew\nfile')" ]`)
	nerdctl("rmi", pushed)
}

// testReleaseCRI pulls an image and runs a pod by the CRI.
func testReleaseCRI(e *env) {
	full := push(e.t, "layers:1")
	e.crictl("pull", full)
	e.compare("layers:1", e.view("k8s.io", full))
	if out := e.runPod(full, "/bin/cat", "/data/kept"); !strings.HasPrefix(out, "content of data/kept") {
		e.t.Errorf("the pod's container printed %q", out)
	}
	e.crictl("rmi", full)
	e.crictl("rmi", push(e.t, "pause:1"))
}
