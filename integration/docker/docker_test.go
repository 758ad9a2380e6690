package docker

import (
	"cmp"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/stack"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/tree"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// TestDocker runs Docker Engine with the containerd image store.
func TestDocker(t *testing.T) {
	needsHost(t)
	checkout := cmp.Or(testenv.Checkout(), composefs)
	e := start(t, checkout)
	started, err := e.StartDocker(t.Context(), shared.docker)
	e.must(err)
	d := engine{e, started}
	if got := d.docker("info", "--format", "{{.Driver}}"); got != stack.Ostree {
		t.Errorf("the storage driver is %q, want %q", got, stack.Ostree)
	}
	// Another namespace has the base first: Docker must get its blobs all the same, to push and save them.
	full := pushBase(t)
	e.pull(full)
	d.docker("pull", "--quiet", full)

	d.commit(full, checkout)
	d.build(checkout)
	d.buildClassic()
	if directories, others := e.inspect(e.store()); directories == 0 || others == 0 {
		t.Errorf("the store has %d layers of directories and %d others, want both", directories, others)
	}

	d.docker("rmi", full)
	d.docker("system", "prune", "--all", "--force")
	d.docker("builder", "prune", "--all", "--force")
	if got := d.docker("images", "--all", "--quiet") + d.docker("ps", "--all", "--quiet"); got != "" {
		t.Errorf("images or containers are left: %q", got)
	}
	e.remove(defaultNS, full)
	e.empty(e.store())
}

// An engine is a running Docker.
type engine struct {
	*env
	started *stack.Docker
}

// docker runs docker and returns its output.
func (d engine) docker(args ...string) string {
	d.t.Helper()
	out, err := d.started.Run(d.t.Context(), args...)
	d.must(err)
	return strings.TrimSpace(out)
}

// runImage runs a shell script, which must succeed, in a container.
func (d engine) runImage(image, script string) {
	d.t.Helper()
	d.docker("run", "--rm", "--network", "none", image, "/bin/sh", "-c", script)
}

// commit commits a changed container, and takes the image by save and load and by the registry.
func (d engine) commit(full, checkout string) {
	const image = "committed:1"
	const changes = `set -e; echo new > /new; rm /data/kept; mv /data/merged /data/renamed; rm -r /data/opaque; mkdir /data/opaque`
	const check = `[ "$(cat /new)" = new ] && [ ! -e /data/kept ] && [ -e /data/renamed/lower ] && [ -z "$(ls /data/opaque)" ]`
	d.docker("run", "--name", "changed", "--network", "none", full, "/bin/sh", "-c", changes)
	changed := strings.Split(d.docker("diff", "changed"), "\n")
	for _, line := range []string{"A /new", "D /data/kept", "D /data/merged", "A /data/renamed/lower"} {
		if !strings.Contains("\n"+strings.Join(changed, "\n")+"\n", "\n"+line+"\n") {
			d.t.Errorf("docker diff has no line %q: %q", line, changed)
		}
	}
	d.docker("commit", "changed", image)
	d.docker("rm", "changed")
	d.runImage(image, check)

	saved := filepath.Join(d.Dir, "saved.tar")
	d.docker("save", "--output", saved, image)
	d.docker("rmi", image)
	d.docker("load", "--quiet", "--input", saved)
	d.runImage(image, check)

	pushed := d.Registry() + "/committed:docker-" + checkout
	d.docker("tag", image, pushed)
	d.docker("push", "--quiet", pushed)
	d.docker("rmi", image, pushed)
	d.docker("pull", "--quiet", pushed)
	d.runImage(pushed, check)
}

// build builds with Docker's BuildKit, and compares the image with that of buildkitd.
func (d engine) build(checkout string) {
	d.t.Helper()
	want := reference(d.t)
	full := d.Registry() + "/built:docker-" + checkout
	build := func(n string) {
		d.docker("build", "--quiet", "--network", "none", "--tag", full, "--build-arg", "BASE="+pushBase(d.t), "--build-arg", "N="+n,
			buildContext(d.t, dockerfile+more))
	}
	layers := func() string { return d.docker("image", "inspect", "--format", "{{.RootFS.Layers}}", full) }
	build("1")
	first := layers()
	build("1")
	if second := layers(); second != first { // a step that ran again has other times
		d.t.Errorf("the second build has the layers %s, want %s from the cache", second, first)
	}
	d.docker("push", "--quiet", full)
	// Docker does not let files have the times of SOURCE_DATE_EPOCH in images that it unpacks.
	d.compareTrees(want, d.pull(full), tree.Options{ExactLinks: checkout == composefs, IgnoreMtime: slices.Collect(maps.Keys(want.tree))})
	d.remove(defaultNS, full)
	build("2")
	d.runImage(full, check+`[ "$(cat /log /linked/dir/file)" = "$(printf '1\n2\nlinked')" ]`)
}

// buildClassic builds with Docker's older builder, which commits a container for each step.
func (d engine) buildClassic() {
	d.t.Helper()
	d.t.Setenv("DOCKER_BUILDKIT", "0")
	d.docker("build", "--quiet", "--network", "none", "--tag", "classic:1", "--build-arg", "BASE="+pushBase(d.t),
		"--build-arg", "N=2", buildContext(d.t, dockerfile))
	d.runImage("classic:1", check)
}
