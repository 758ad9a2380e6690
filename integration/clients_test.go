package integration

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/stack"
)

// TestClients runs all clients of containerd on one daemon, one after the other.
func TestClients(t *testing.T) {
	pause := ""
	e := start(t, func(o *stack.Options) {
		pause = push(t, "pause:1")
		o.SandboxImage = pause
		o.ParallelUnpacks = 3
	})
	sub := func(name string, test func(e *env)) {
		t.Run(name, func(t *testing.T) { test(&env{Stack: e.Stack, t: t}) })
	}
	sub("ctr", testCtr)
	sub("nerdctl", testNerdctl)
	sub("cri", testCRI)
}

// changeScript changes the root file system in every way a container can, and prints checksums of the result.
const changeScript = `set -e
cd /data
echo changed >> kept
rm gone-with-layer 2>/dev/null || true
rm merged/lower
mv merged renamed
mv opaque/new opaque/moved
mkdir -p made/deep
echo new > made/deep/file
ln made/deep/file made/link
ln -s made made-link
chmod 600 modes/file
rm -r late-opaque
mkdir late-opaque
echo again > late-opaque/file
cat kept made-link/link late-opaque/file renamed/upper-2 | sha256sum
find /data | sort | sha256sum
`

// runChanges runs changeScript in a container of layers:1 and returns its output.
func (e *env) runChanges(namespace, full string) string {
	e.t.Helper()
	return e.run(namespace, full, "/bin/sh", "-c", changeScript)
}

func testCtr(e *env) {
	const ns = "by-ctr"
	full := e.pull(ns, "layers:1")
	e.compare("layers:1", e.view(ns, full))
	first := e.runChanges(ns, full)
	if second := e.runChanges(ns, full); second != first || strings.Count(first, "\n") != 2 {
		e.t.Errorf("two containers of one image saw %q and %q, want the same", first, second)
	}
	e.compare("layers:1", e.view(ns, full))

	id := containerID()
	e.must(e.StartContainer(e.t.Context(), ns, full, id, "/bin/sleep", "1000"))
	e.exec(ns, id, "echo text > /new; mv /new /moved; rm /etc/hostname 2>/dev/null; chmod 700 /data")
	if got := e.exec(ns, id, "cat /moved; ls -ld /data"); !strings.HasPrefix(got, "text\ndrwx------") {
		e.t.Errorf("the container sees %q", got)
	}
	usage := e.ctr(ns, "snapshots", "--snapshotter", e.Snapshotter, "usage", id)
	if strings.Count(usage, "\n") != 2 || strings.Contains(usage, " 0.0 B") {
		e.t.Errorf("the usage of a container's snapshot is %q", usage)
	}
	e.must(e.RemoveContainer(e.t.Context(), ns, id))
	e.ctr(ns, "images", "rm", "--sync", full)
}

func testNerdctl(e *env) {
	const ns = "by-nerdctl"
	nerdctl := func(args ...string) string {
		e.t.Helper()
		out, err := e.Nerdctl(e.t.Context(), ns, args...)
		e.must(err)
		return out
	}
	full := push(e.t, "layers:1")
	nerdctl("pull", "--quiet", full)
	e.compare("layers:1", e.view(ns, full))
	name := containerID()
	parent := "--cgroup-parent=" + e.CgroupParent()
	nerdctl("run", parent, "--net", "none", "--name", name, full, "/bin/sh", "-c", changeScript+"echo kept-by-commit > /committed")
	nerdctl("commit", name, "committed:1")
	if n := len(e.daemonLog("changes written")); n != 1 {
		e.t.Errorf("the daemon has written the changes of %d containers, want those of one", n)
	}
	// Check the exit status, because nerdctl can lose the output of a short container (containerd/nerdctl#3877).
	nerdctl("run", parent, "--rm", "--net", "none", "committed:1", "/bin/sh", "-c",
		`[ "$(cat /committed /data/made-link/link; ls /data/late-opaque)" = "$(printf 'kept-by-commit\nnew\nfile')" ]`)
	nerdctl("rm", name)
	nerdctl("rmi", "committed:1", full)
	if got := nerdctl("images", "--quiet"); strings.TrimSpace(got) != "" {
		e.t.Errorf("images are left: %q", got)
	}
}

func testCRI(e *env) {
	full := push(e.t, "app:1")
	pulled := e.crictl("pull", full)
	_, ref, ok := strings.Cut(pulled, " is up to date for ")
	if !ok {
		e.t.Fatalf("crictl pull printed %q", pulled)
	}
	e.compare("app:1", e.view("k8s.io", full))
	if got := e.imageFilesystem().FsID.Mountpoint; got != e.Root {
		e.t.Errorf("the image file system is at %s, want the daemon's root %s", got, e.Root)
	}
	out := e.runPod(strings.TrimSpace(ref), "/usr/bin/python3", "/srv/app/main.py")
	// crictl prints stdout and stderr, and a newline after each.
	if want := `{"sum": 45, "name": "second"}` + "\n\n\n"; out != want {
		e.t.Errorf("the pod's container printed %q, want %q", out, want)
	}
	e.crictl("rmi", full)
}

// An imageFilesystem is what CRI reports of the file system of a snapshotter.
type imageFilesystem struct {
	FsID      struct{ Mountpoint string }
	UsedBytes struct {
		Value int64 `json:",string"`
	}
}

// imageFilesystem returns what CRI reports to the kubelet.
func (e *env) imageFilesystem() imageFilesystem {
	e.t.Helper()
	var info struct {
		Status struct{ ImageFilesystems []imageFilesystem }
	}
	out := e.crictl("imagefsinfo", "--output", "json")
	e.must(json.Unmarshal([]byte(out), &info))
	if len(info.Status.ImageFilesystems) != 1 {
		e.t.Fatalf("the image file systems are %s, want one", out)
	}
	return info.Status.ImageFilesystems[0]
}

// crictl runs crictl and returns its output.
func (e *env) crictl(args ...string) string {
	e.t.Helper()
	out, err := e.Crictl(e.t.Context(), args...)
	e.must(err)
	return out
}

// runPod runs a command in a container of a pod on the host's network and returns its output.
func (e *env) runPod(image string, command ...string) string {
	e.t.Helper()
	p := e.startPod()
	out := p.exec(p.start(image), command...)
	p.remove()
	return out
}

// A pod is a running pod on the host's network.
type pod struct {
	*env
	id, config string
	linux      map[string]any // of its containers
}

// startPod starts a pod without containers.
func (e *env) startPod() *pod {
	e.t.Helper()
	const hostNetwork = 2 // NamespaceMode_NODE of the CRI
	name := containerID()
	security := map[string]any{"namespace_options": map[string]any{"network": hostNetwork}}
	config := e.config("pod.json", map[string]any{
		"metadata":      map[string]any{"name": name, "uid": name, "namespace": "test"},
		"log_directory": e.Dir,
		"linux":         map[string]any{"cgroup_parent": e.CgroupParent(), "security_context": security},
	})
	return &pod{e, strings.TrimSpace(e.crictl("runp", config)), config, map[string]any{"security_context": security}}
}

// start starts a container that sleeps, and returns its ID.
func (p *pod) start(image string, mounts ...any) (id string) {
	p.t.Helper()
	container := p.env.config("container.json", map[string]any{
		"metadata": map[string]any{"name": containerID()},
		"image":    map[string]any{"image": image},
		"command":  []string{"/bin/sleep", "1000"},
		"mounts":   mounts,
		"linux":    p.linux,
	})
	id = strings.TrimSpace(p.crictl("create", p.id, container, p.config))
	p.crictl("start", id)
	return id
}

// exec runs a command in a container of the pod and returns its output.
func (p *pod) exec(id string, command ...string) string {
	p.t.Helper()
	return p.crictl(append([]string{"exec", "--sync", "--timeout", "60", id}, command...)...)
}

func (p *pod) remove() {
	p.t.Helper()
	p.crictl("stopp", p.id)
	p.crictl("rmp", p.id)
}

// config writes a configuration file for crictl into the stack's directory and returns its path.
func (e *env) config(name string, v any) string {
	e.t.Helper()
	b, err := json.Marshal(v)
	e.must(err)
	path := filepath.Join(e.Dir, name)
	e.must(os.WriteFile(path, b, 0o600))
	return path
}
