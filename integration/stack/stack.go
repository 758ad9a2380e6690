package stack

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"text/template"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/testhost"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/process"
	ours "github.com/ostree-snapshotter/ostree-snapshotter/plugin/containerd"
)

// Snapshotters of stacks.
const (
	Ostree  = "ostree"    // ours, through the daemon
	Overlay = "overlayfs" // containerd's own: the baseline
)

// Options configure a Stack.
type Options struct {
	// Tools are the programs to run.
	Tools *testhost.Tools
	// Snapshotter is Ostree or Overlay. It is the default of CRI, and the snapshotter for Ctr and Nerdctl.
	Snapshotter string
	// Binary is the ostree-snapshotter to run. Ostree needs it.
	Binary string
	// Config is the daemon's configuration, without the line "version = 1".
	Config string
	// Root is the daemon's root. The default is a directory of the stack, which Stop removes.
	Root string
	// ParallelUnpacks is containerd's max_concurrent_unpacks; 0 means 1: layer after layer. If Tools names a release of
	// containerd, it is configured by what "config containerd" prints for it instead.
	ParallelUnpacks int
	// Registry is the address of the registry that holds the images, for containerd's configuration.
	Registry string
	// Verifiers is the directory of the programs that check images for containerd, "" for none.
	Verifiers string
	// SandboxImage is the image CRI uses for a pod's sandbox.
	SandboxImage string
}

// A Stack is a running containerd, with our daemon beside it if the snapshotter is Ostree.
type Stack struct {
	Dir         string
	Snapshotter string
	Root        string // the daemon's
	// Containerd and Daemon are the paths of the two sockets.
	Containerd, Daemon string

	opts       Options
	containerd *process.Process
	daemon     *process.Process
	others     []*process.Process // in the order in which they were started
	made       []string           // empty directories elsewhere that Stop removes
	client     *containerd.Client
}

// newest is the containerd of integration/tools/containerd.
var newest = ours.Version{Major: 2, Minor: 4}

var containerdConfig = template.Must(template.New("config.toml").Parse(`version = {{.Format}}
{{with .Import}}imports = ["{{.}}"]
{{end}}root = "{{.Dir}}/containerd"
state = "{{.Dir}}/state"
disabled_plugins = [
  "io.containerd.nri.v1.nri",
  "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.erofs",
  "io.containerd.snapshotter.v1.native",
  "io.containerd.snapshotter.v1.zfs",
  "io.containerd.tracing.processor.v1.otlp",
]

[grpc]
  address = "{{.Containerd}}"
[ttrpc]
  address = "{{.Containerd}}.ttrpc"
{{with .Verifiers}}
[plugins."io.containerd.image-verifier.v1.bindir"]
  bin_dir = "{{.}}"
  max_verifiers = -1
{{end}}
[plugins."io.containerd.internal.v1.opt"]
  path = "{{.Dir}}/opt"
[plugins."io.containerd.shim.v1.manager"]
  socket_dir = "{{.Dir}}/s"
{{if not .Import}}
{{if eq .Snapshotter "ostree"}}
{{.Proxies}}{{end}}
[plugins."io.containerd.service.v1.diff-service"]
  default = [{{if eq .Snapshotter "ostree"}}"ostree-diff", {{end}}"walking"]
[plugins."io.containerd.transfer.v1.local"]
  max_concurrent_unpacks = {{.Unpacks}}
{{if eq .Snapshotter "ostree"}}
  [[plugins."io.containerd.transfer.v1.local".unpack_config]]
    platform = "linux"
    snapshotter = "ostree"
    differ = "ostree-diff"
    optional = true
{{end}}
  [[plugins."io.containerd.transfer.v1.local".unpack_config]]
    platform = "linux"
    snapshotter = "overlayfs"
    differ = "walking"
{{end}}
{{if eq .Format 2}}
[plugins."io.containerd.grpc.v1.cri"]
  disable_apparmor = true
  restrict_oom_score_adj = true
  sandbox_image = "{{.SandboxImage}}"
  [plugins."io.containerd.grpc.v1.cri".cni]
    conf_dir = "{{.Dir}}/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{{.Snapshotter}}"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      BinaryName = "{{.Runc}}"
      Root = "{{.Dir}}/runc"
      SystemdCgroup = false
{{else}}
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "{{.Snapshotter}}"
{{if .SandboxImage}}
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "{{.SandboxImage}}"
{{end}}
[plugins."io.containerd.cri.v1.runtime"]
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    {{if not .Import}}bin_dirs = ["{{.Dir}}/cni/bin"]{{end}}
    conf_dir = "{{.Dir}}/cni/net.d"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      BinaryName = "{{.Runc}}"
      Root = "{{.Dir}}/runc"
      SystemdCgroup = false
{{end}}`))

// Start starts a stack. On error nothing is left of it.
func Start(ctx context.Context, opts Options) (_ *Stack, err error) {
	// The path is short, because that of a unix socket has at most 107 bytes.
	dir, err := os.MkdirTemp("", "osi")
	if err != nil {
		return nil, fmt.Errorf("start stack: %w", err)
	}
	// Processes of other users in containers must be able to reach the mounts of root file systems below.
	if err := os.Chmod(dir, 0o711); err != nil {
		return nil, fmt.Errorf("start stack: %w", err)
	}
	s := &Stack{
		Dir:         dir,
		Snapshotter: opts.Snapshotter,
		Root:        opts.Root,
		Containerd:  filepath.Join(dir, "c.sock"),
		Daemon:      filepath.Join(dir, "o.sock"),
		opts:        opts,
	}
	if s.Root == "" {
		s.Root = filepath.Join(dir, "ostree")
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Stop())
		}
	}()
	if err := s.configureContainerd(); err != nil {
		return nil, fmt.Errorf("start stack: %w", err)
	}
	if s.Snapshotter == Ostree {
		if err := s.WriteConfig(opts.Config); err != nil {
			return nil, err
		}
		// Either may start first; here the daemon needs containerd's socket to read blobs.
		if err := s.startDaemon(ctx); err != nil {
			return nil, err
		}
	}
	if err := s.startContainerd(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// configureContainerd writes containerd's configuration. A release named by the tools gets what the program prints for
// it, in a file of its own.
func (s *Stack) configureContainerd() error {
	proxied := ours.Config{Address: s.Daemon, Root: s.Root, Version: newest}
	imported := "" // path
	if release := s.opts.Tools.Release; release != "" {
		var err error
		if proxied.Version, err = ours.ParseVersion(release); err != nil {
			return err
		}
		imported = s.path("snapshotter.toml")
		if err := os.WriteFile(imported, []byte(proxied.String()), 0o600); err != nil {
			return err
		}
	}
	var config bytes.Buffer
	err := containerdConfig.Execute(&config, map[string]any{
		"Dir": s.Dir, "Root": s.Root, "Containerd": s.Containerd, "Daemon": s.Daemon, "Snapshotter": s.Snapshotter,
		"Format": min(3, proxied.Version.ConfigFormat()), // [grpc] is ignored in format 4
		"Import": imported, "Proxies": ours.Proxies{Address: s.Daemon, Root: s.Root, Version: newest},
		"Unpacks": max(1, s.opts.ParallelUnpacks), "SandboxImage": s.opts.SandboxImage, "Verifiers": s.opts.Verifiers, "Runc": s.opts.Tools.Runc,
	})
	if err != nil {
		return err
	}
	return os.WriteFile(s.path("containerd.toml"), config.Bytes(), 0o600)
}

func (s *Stack) path(name string) string { return filepath.Join(s.Dir, name) }

// WriteConfig sets the daemon's configuration for its next start.
func (s *Stack) WriteConfig(config string) error {
	return writeDaemonConfig(s.path("ostree.toml"), config)
}

func writeDaemonConfig(name, config string) error {
	if err := os.WriteFile(name, []byte("version = 1\n"+config), 0o600); err != nil {
		return fmt.Errorf("write the daemon's configuration: %w", err)
	}
	return nil
}

// environment is the environment of containerd and the clients. They find the shim and runc in PATH.
func (s *Stack) environment() []string {
	return []string{
		"PATH=" + s.searchPath(), "CONTAINERD_ADDRESS=" + s.Containerd, "HOME=" + s.Dir, "TMPDIR=/tmp",
	}
}

func (s *Stack) searchPath() string {
	return strings.Join([]string{
		filepath.Dir(s.opts.Tools.Containerd), filepath.Dir(s.opts.Tools.Runc),
		"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin",
	}, ":")
}

func (s *Stack) startContainerd(ctx context.Context) error {
	var err error
	s.containerd, err = process.Start(s.ContainerdLog(), s.environment(), s.opts.Tools.Containerd, "--config", s.path("containerd.toml"))
	if err != nil {
		return err
	}
	err = s.containerd.WaitFor(ctx, func(ctx context.Context) error {
		dialled, err := ours.Dial(s.Containerd)
		if err != nil {
			return err
		}
		c, err := containerd.NewWithConn(dialled.Conn())
		if err != nil {
			return errors.Join(err, dialled.Close())
		}
		if _, err := c.Version(ctx); err != nil {
			return errors.Join(err, c.Close())
		}
		s.client = c
		return nil
	})
	return err
}

// DaemonArgs returns the arguments that start the daemon of this stack.
func (s *Stack) DaemonArgs() []string {
	return daemonArgs(s.path("ostree.toml"), s.Root, s.Daemon, s.Containerd)
}

func daemonArgs(config, root, address, containerd string) []string {
	return []string{"serve", "--config", config, "--root", root, "--address", address, "--containerd-address", containerd}
}

func (s *Stack) startDaemon(ctx context.Context) error {
	var err error
	s.daemon, err = process.Start(s.DaemonLog(), s.environment(), s.opts.Binary, s.DaemonArgs()...)
	if err != nil {
		return err
	}
	return s.daemon.WaitFor(ctx, process.Listening(s.Daemon))
}

// Registry returns the address of the registry of the options.
func (s *Stack) Registry() string { return s.opts.Registry }

// ContainerdLog returns the path of containerd's log.
func (s *Stack) ContainerdLog() string { return s.path("containerd.log") }

// DaemonLog returns the path of the daemon's log, which grows over restarts.
func (s *Stack) DaemonLog() string { return s.path("ostree.log") }

// DaemonPid returns the daemon's process ID.
func (s *Stack) DaemonPid() int { return s.daemon.Pid }

// Client returns a client of containerd. RestartContainerd replaces it.
func (s *Stack) Client() *containerd.Client { return s.client }

// Context returns a context with the default namespace of the helpers.
func Context(ctx context.Context) context.Context { return namespaces.WithNamespace(ctx, "default") }

// StopDaemon asks the daemon to exit and waits for it. Its exit status must be 0.
func (s *Stack) StopDaemon() error {
	if err := s.daemon.Stop(); err != nil {
		return err
	}
	if s.daemon.Err() != nil {
		return fmt.Errorf("stop the daemon: %w\n%s", s.daemon.Err(), process.Tail(s.DaemonLog(), 20))
	}
	return nil
}

// KillDaemon kills the daemon without warning.
func (s *Stack) KillDaemon() error { return s.daemon.Signal(unix.SIGKILL) }

// StartDaemon starts a stopped or killed daemon again, and waits until containerd has connected to it. Until then, for
// up to three seconds, containerd reports that there is no connection.
func (s *Stack) StartDaemon(ctx context.Context) error {
	if err := s.startDaemon(ctx); err != nil {
		return err
	}
	sn := s.client.SnapshotService(s.Snapshotter)
	return s.daemon.WaitFor(ctx, func(ctx context.Context) error {
		ctx = Context(ctx)
		key := fmt.Sprintf("probe-%d", time.Now().UnixNano())
		if _, err := sn.Prepare(ctx, key, ""); err != nil { // the one call that containerd always forwards
			return err
		}
		err := sn.Remove(ctx, key)
		if errdefs.IsNotFound(err) { // containerd may have collected it, because nothing leases it
			return nil
		}
		return err
	})
}

// RestartContainerd stops containerd in good order and starts it again.
func (s *Stack) RestartContainerd(ctx context.Context) error {
	err := s.client.Close()
	s.client = nil
	if err := errors.Join(err, s.containerd.Stop()); err != nil {
		return err
	}
	return s.startContainerd(ctx)
}

// Reboot kills everything, unmounts everything below the stack's directory, removes containerd's state, and starts
// daemon and containerd again. Files on disk stay as they are.
func (s *Stack) Reboot(ctx context.Context) error {
	errs := []error{s.client.Close(), s.containerd.Signal(unix.SIGKILL)}
	s.client = nil
	if s.daemon != nil {
		errs = append(errs, s.daemon.Signal(unix.SIGKILL))
	}
	errs = append(errs, process.KillShims(s.Containerd), process.UnmountBelow(s.Dir))
	for _, name := range []string{"state", "s", "runc", "fifo"} { // the directories in /run of a real machine
		errs = append(errs, os.RemoveAll(s.path(name)))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("reboot: %w", err)
	}
	if s.daemon != nil {
		if err := s.startDaemon(ctx); err != nil {
			return err
		}
	}
	return s.startContainerd(ctx)
}

// A CommandError is the failure of a client's command.
type CommandError struct {
	Args   []string
	Output string // standard output, then standard error
	Err    error
}

// Error ends in the last lines of the output. The lines before are mostly progress.
func (e *CommandError) Error() string {
	lines := strings.SplitAfter(strings.TrimSpace(e.Output), "\n")
	return fmt.Sprintf("run %s: %v\n%s", strings.Join(e.Args, " "), e.Err, strings.Join(lines[max(0, len(lines)-8):], ""))
}

// Unwrap returns the error of the process.
func (e *CommandError) Unwrap() error { return e.Err }

// Run runs a program in the environment of the stack and returns its standard output.
func (s *Stack) Run(ctx context.Context, name string, args ...string) (string, error) {
	stdout, _, err := s.output(ctx, name, args...)
	return stdout, err
}

func (s *Stack) output(ctx context.Context, name string, args ...string) (stdout, stderr string, err error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), s.environment()...)
	cmd.WaitDelay = 10 * time.Second
	var out, progress bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &progress
	if err = cmd.Run(); err != nil {
		args = append([]string{filepath.Base(name)}, args...)
		err = &CommandError{Args: args, Output: out.String() + progress.String(), Err: err}
	}
	return out.String(), progress.String(), err
}

// Ctr runs ctr in a namespace.
func (s *Stack) Ctr(ctx context.Context, namespace string, args ...string) (string, error) {
	return s.Run(ctx, s.opts.Tools.Ctr, append([]string{"--address", s.Containerd, "--namespace", namespace}, args...)...)
}

// Pull pulls an image with ctr and unpacks it for the stack's snapshotter.
func (s *Stack) Pull(ctx context.Context, namespace, ref string, flags ...string) error {
	args := append([]string{"images", "pull", "--plain-http", "--snapshotter", s.Snapshotter}, flags...)
	_, err := s.Ctr(ctx, namespace, append(args, ref)...)
	return err
}

// RunContainer runs a command in a new container, removes the container, and returns what the command printed, to stdout
// and to stderr.
func (s *Stack) RunContainer(ctx context.Context, namespace, ref, id string, command ...string) (string, error) {
	return s.RunContainerWith(ctx, namespace, nil, ref, id, command...)
}

// RunContainerWith is RunContainer with more flags of "ctr run".
func (s *Stack) RunContainerWith(ctx context.Context, namespace string, flags []string, ref, id string, command ...string) (string, error) {
	return s.process(ctx, namespace, []string{"run"}, s.runArgs(append([]string{"--rm"}, flags...), ref, id, command))
}

// StartContainer starts a command in a new container and leaves it running.
func (s *Stack) StartContainer(ctx context.Context, namespace, ref, id string, command ...string) error {
	return s.StartContainerWith(ctx, namespace, nil, ref, id, command...)
}

// StartContainerWith is StartContainer with more flags of "ctr run".
func (s *Stack) StartContainerWith(ctx context.Context, namespace string, flags []string, ref, id string, command ...string) error {
	args := append([]string{"run", "--detach", "--fifo-dir", s.path("fifo")}, s.runArgs(flags, ref, id, command)...)
	_, err := s.Ctr(ctx, namespace, args...)
	return err
}

// runArgs returns the arguments of "ctr run" for a container.
func (s *Stack) runArgs(flags []string, ref, id string, command []string) []string {
	args := []string{
		"--snapshotter", s.Snapshotter, "--cgroup", s.CgroupParent() + "/" + id,
		"--runc-root", s.path("runc"), "--runc-binary", s.opts.Tools.Runc,
	}
	return slices.Concat(args, flags, []string{ref, id}, command)
}

// process runs a command of ctr that waits for a process in a container, and returns what the process printed. The shim
// writes that to a file: ctr closes its own pipes when the process has ended (Task.Delete of containerd's client), so on a
// busy machine the output can be lost.
func (s *Stack) process(ctx context.Context, namespace string, verb, args []string) (string, error) {
	file := s.path("printed-" + rand.Text())
	_, err := s.Ctr(ctx, namespace, slices.Concat(verb, []string{"--log-uri", "file://" + file}, args)...)
	// Without the file, the process was not started.
	out, rerr := os.ReadFile(file)
	if errors.Is(rerr, fs.ErrNotExist) && err != nil {
		return "", err
	}
	if failed := (*CommandError)(nil); errors.As(err, &failed) {
		failed.Output += string(out)
	}
	return string(out), errors.Join(err, rerr, os.Remove(file))
}

// CgroupParent returns the control group of the stack's containers. Stop removes it.
func (s *Stack) CgroupParent() string { return "/" + filepath.Base(s.Dir) }

// Exec runs a command in a running container and returns what it printed, to stdout and to stderr.
func (s *Stack) Exec(ctx context.Context, namespace, id string, command ...string) (string, error) {
	exec := fmt.Sprintf("exec-%d", time.Now().UnixNano())
	return s.process(ctx, namespace, []string{"tasks", "exec"}, append([]string{"--exec-id", exec, id}, command...))
}

// RemoveContainer kills a container's task and removes the container with its snapshot.
func (s *Stack) RemoveContainer(ctx context.Context, namespace, id string) error {
	if _, err := s.Ctr(ctx, namespace, "tasks", "rm", "--force", id); err != nil {
		return err
	}
	_, err := s.Ctr(ctx, namespace, "containers", "rm", id)
	return err
}

// Nerdctl runs nerdctl in a namespace.
func (s *Stack) Nerdctl(ctx context.Context, namespace string, args ...string) (string, error) {
	global := []string{
		"--address", s.Containerd, "--namespace", namespace, "--snapshotter", s.Snapshotter, "--data-root", s.path("nerdctl"),
		"--cgroup-manager", "cgroupfs", "--hosts-dir", s.path("certs.d"), "--insecure-registry",
		"--cni-path", s.path("cni/bin"), "--cni-netconfpath", s.path("cni/net.d"),
	}
	return s.Run(ctx, s.opts.Tools.Nerdctl, append(global, args...)...)
}

// Crictl runs crictl, Kubernetes' client of container runtimes, on containerd's CRI services.
func (s *Stack) Crictl(ctx context.Context, args ...string) (string, error) {
	endpoint := "unix://" + s.Containerd
	global := []string{
		"--runtime-endpoint", endpoint, "--image-endpoint", endpoint, "--timeout", "2m",
	}
	return s.Run(ctx, s.opts.Tools.Crictl, append(global, args...)...)
}

// Stop stops everything and removes the stack's directory. It may be called twice.
func (s *Stack) Stop() error {
	var errs []error
	if s.client != nil {
		errs = append(errs, s.client.Close())
		s.client = nil
	}
	for _, p := range slices.Backward(s.others) {
		errs = append(errs, p.Stop())
	}
	// Stop containerd before shims, so that it does not clean up after shims while they are killed.
	if s.containerd != nil {
		errs = append(errs, s.containerd.Signal(unix.SIGKILL))
	}
	errs = append(errs, process.KillShims(s.Containerd))
	if s.daemon != nil {
		errs = append(errs, s.daemon.Stop())
	}
	for _, dir := range s.made {
		if err := os.Remove(dir); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	errs = append(errs, process.UnmountBelow(s.Dir), process.RemoveCgroups(s.CgroupParent()), os.RemoveAll(s.Dir))
	return errors.Join(errs...)
}
