package integration

import (
	"strings"
	"testing"

	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/stack"
)

// TestClients lets all of containerd's clients work with one daemon, one after the other.
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

// changeScript changes the root file system in every way a container can, and prints what it then sees.
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

// runChanges runs changeScript in a container of layers:1 and returns what it printed.
func (e *env) runChanges(namespace, full string) string {
	e.t.Helper()
	return e.printed(namespace, full, "/bin/sh", "-c", changeScript)
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
	// The exit status tells: nerdctl at times loses what a short container prints (containerd/nerdctl#3877).
	nerdctl("run", parent, "--rm", "--net", "none", "committed:1", "/bin/sh", "-c",
		`[ "$(cat /committed /data/made-link/link; ls /data/late-opaque)" = "$(printf 'kept-by-commit\nnew\nfile')" ]`)
	nerdctl("rm", name)
	nerdctl("rmi", "committed:1", full)
	if got := nerdctl("images", "--quiet"); strings.TrimSpace(got) != "" {
		e.t.Errorf("images are left: %q", got)
	}
}

func testCRI(e *env) {
	conn, err := e.CRI()
	e.must(err)
	defer conn.Close()
	imageService, ctx := cri.NewImageServiceClient(conn), e.t.Context()
	full := push(e.t, "app:1")
	pulled, err := imageService.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: full}})
	e.must(err)
	e.compare("app:1", e.view("k8s.io", full))
	fsInfo, err := imageService.ImageFsInfo(ctx, &cri.ImageFsInfoRequest{})
	e.must(err)
	if got := fsInfo.GetImageFilesystems(); len(got) != 1 || got[0].GetFsId().GetMountpoint() != e.Root {
		e.t.Errorf("the image file system is %v, want the daemon's root %s", got, e.Root)
	}
	out := e.runPod(conn, pulled.GetImageRef())
	if want := `{"sum": 45, "name": "second"}` + "\n"; out != want {
		e.t.Errorf("the pod's container printed %q, want %q", out, want)
	}
	_, err = imageService.RemoveImage(ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: full}})
	e.must(err)
}

// runPod runs the image's python program in a pod on the host's network and returns what it printed.
func (e *env) runPod(conn *grpc.ClientConn, imageRef string) string {
	e.t.Helper()
	runtimeService, ctx := cri.NewRuntimeServiceClient(conn), e.t.Context()
	name := containerID()
	linux := &cri.LinuxSandboxSecurityContext{
		NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE},
	}
	sandboxConfig := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: name, Uid: name, Namespace: "test"},
		LogDirectory: e.Dir,
		Linux:        &cri.LinuxPodSandboxConfig{CgroupParent: e.CgroupParent(), SecurityContext: linux},
	}
	sandbox, err := runtimeService.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: sandboxConfig})
	e.must(err)
	container, err := runtimeService.CreateContainer(ctx, &cri.CreateContainerRequest{
		PodSandboxId:  sandbox.GetPodSandboxId(),
		SandboxConfig: sandboxConfig,
		Config: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: name},
			Image:    &cri.ImageSpec{Image: imageRef},
			Command:  []string{"/bin/sleep", "1000"},
			Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{
				NamespaceOptions: linux.GetNamespaceOptions(),
			}},
		},
	})
	e.must(err)
	_, err = runtimeService.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: container.GetContainerId()})
	e.must(err)
	out, err := runtimeService.ExecSync(ctx, &cri.ExecSyncRequest{
		ContainerId: container.GetContainerId(),
		Cmd:         []string{"/usr/bin/python3", "/srv/app/main.py"},
		Timeout:     60,
	})
	e.must(err)
	if out.GetExitCode() != 0 {
		e.t.Errorf("the pod's container exited with %d: %s", out.GetExitCode(), out.GetStderr())
	}
	_, err = runtimeService.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: sandbox.GetPodSandboxId()})
	e.must(err)
	_, err = runtimeService.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: sandbox.GetPodSandboxId()})
	e.must(err)
	return string(out.GetStdout())
}
