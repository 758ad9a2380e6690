package stack

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"text/template"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/process"
)

// BuildkitOptions configure a Buildkit.
type BuildkitOptions struct {
	// Programs is the directory with buildkitd and buildctl.
	Programs string
	// Proxy is the socket of a daemon for BuildKit's OCI worker, which needs no containerd. Without it, the containerd
	// worker runs, with the stack's snapshotter.
	Proxy string
}

// BuildkitNamespace is the namespace of a Buildkit's containerd worker.
const BuildkitNamespace = "buildkit"

// A Buildkit is a running buildkitd. The stack's Stop stops it.
type Buildkit struct {
	stack   *Stack
	opts    BuildkitOptions
	address string
}

var buildkitConfig = template.Must(template.New("buildkitd.toml").Parse(`root = "{{.Dir}}"
[grpc]
  address = ["{{.Address}}"]
[otel]
  socketPath = "{{.Dir}}/otel.sock"
[worker.oci]
  enabled = {{if .Proxy}}true{{else}}false{{end}}
  snapshotter = "{{.Snapshotter}}"
  proxySnapshotterPath = "{{.Proxy}}"
  defaultCgroupParent = "{{.CgroupParent}}"
[worker.containerd]
  enabled = {{if .Proxy}}false{{else}}true{{end}}
  address = "{{.Containerd}}"
  namespace = "{{.Namespace}}"
  snapshotter = "{{.Snapshotter}}"
  defaultCgroupParent = "{{.CgroupParent}}"
  [worker.containerd.runtime]
    name = "io.containerd.runc.v2"
    [worker.containerd.runtime.options]
      BinaryName = "{{.Runc}}"
      Root = "{{.RuncRoot}}"
[registry."{{.Registry}}"]
  http = true
`))

// StartBuildkit starts buildkitd.
func (s *Stack) StartBuildkit(ctx context.Context, opts BuildkitOptions) (*Buildkit, error) {
	dir := s.path("buildkit")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("start buildkitd: %w", err)
	}
	socket := s.path("b.sock")
	b := &Buildkit{stack: s, opts: opts, address: "unix://" + socket}
	var config bytes.Buffer
	err := buildkitConfig.Execute(&config, map[string]any{
		"Dir": dir, "Address": b.address, "Proxy": opts.Proxy, "Snapshotter": s.Snapshotter, "CgroupParent": s.CgroupParent(),
		"Containerd": s.Containerd, "Namespace": BuildkitNamespace, "Registry": s.opts.Registry,
		"Runc": s.opts.Tools.Runc, "RuncRoot": s.path("runc"),
	})
	if err != nil {
		return nil, fmt.Errorf("start buildkitd: %w", err)
	}
	name := s.path("buildkitd.toml")
	if err := os.WriteFile(name, config.Bytes(), 0o600); err != nil {
		return nil, fmt.Errorf("start buildkitd: %w", err)
	}
	if err := s.wrapRunc(); err != nil {
		return nil, fmt.Errorf("start buildkitd: %w", err)
	}
	p, err := process.Start(b.Log(), s.clientEnvironment(), filepath.Join(opts.Programs, "buildkitd"), "--config", name)
	if err != nil {
		return nil, err
	}
	s.others = append(s.others, p)
	return b, p.WaitFor(ctx, func(ctx context.Context) error {
		_, _, err := b.Buildctl(ctx, "debug", "workers")
		return err
	})
}

// Log returns the path of buildkitd's log.
func (b *Buildkit) Log() string { return b.stack.path("buildkitd.log") }

// Buildctl runs buildctl and returns its standard output and the progress that it prints.
func (b *Buildkit) Buildctl(ctx context.Context, args ...string) (stdout, progress string, err error) {
	return b.stack.output(ctx, filepath.Join(b.opts.Programs, "buildctl"), append([]string{"--addr", b.address}, args...)...)
}

// wrapRunc writes a runc for programs that start it without a shim. Its state is below the stack's directory.
func (s *Stack) wrapRunc() error {
	if err := os.MkdirAll(s.path("bin"), 0o700); err != nil {
		return err
	}
	script := fmt.Sprintf("#!/bin/sh\nexec %s --root %s \"$@\"\n", s.opts.Tools.Runc, s.path("runc"))
	return os.WriteFile(s.path("bin/runc"), []byte(script), 0o700)
}

// clientEnvironment is the environment of programs that start runc without a shim.
func (s *Stack) clientEnvironment() []string {
	return append(s.environment(), "PATH="+s.path("bin")+":"+s.searchPath())
}
