package stack

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/process"
)

// DockerNamespace is the namespace of a Docker's images.
const DockerNamespace = "moby"

const dockerRun = "/run/docker"

// A Docker is a running dockerd that keeps its images in the stack's containerd. The stack's Stop stops it.
type Docker struct {
	stack    *Stack
	programs string
	host     string
}

// StartDocker starts dockerd. It has no network: neither bridges nor rules of a firewall are made. programs is the directory
// with dockerd, docker and docker-buildx.
func (s *Stack) StartDocker(ctx context.Context, programs string) (*Docker, error) {
	d := &Docker{stack: s, programs: programs, host: "unix://" + s.path("d.sock")}
	config, err := json.Marshal(map[string]any{
		"features":       map[string]bool{"containerd-snapshotter": true},
		"storage-driver": s.Snapshotter,

		"containerd":           s.Containerd,
		"containerd-namespace": DockerNamespace,
		"data-root":            s.path("docker"),
		"exec-root":            s.path("docker-run"),
		"pidfile":              s.path("docker.pid"),
		"hosts":                []string{d.host},
		"cgroup-parent":        s.CgroupParent(),
		"exec-opts":            []string{"native.cgroupdriver=cgroupfs"},
		"bridge":               "none",
		"iptables":             false,
		"ip6tables":            false,
		"ip-forward":           false,
		"ip-masq":              false,
		"userland-proxy":       false,
	})
	if err != nil {
		return nil, fmt.Errorf("start dockerd: %w", err)
	}
	client, err := json.Marshal(map[string]any{"cliPluginsExtraDirs": []string{programs}})
	if err != nil {
		return nil, fmt.Errorf("start dockerd: %w", err)
	}
	if err := os.Mkdir(s.path("docker-client"), 0o700); err != nil {
		return nil, fmt.Errorf("start dockerd: %w", err)
	}
	for name, content := range map[string][]byte{"docker.json": config, "docker-client/config.json": client} {
		if err := os.WriteFile(s.path(name), content, 0o600); err != nil {
			return nil, fmt.Errorf("start dockerd: %w", err)
		}
	}
	if err := s.wrapRunc(); err != nil {
		return nil, fmt.Errorf("start dockerd: %w", err)
	}
	// Docker looks for plugins in a directory that no setting moves.
	if _, err := os.Lstat(dockerRun); errors.Is(err, fs.ErrNotExist) {
		s.made = append(s.made, filepath.Join(dockerRun, "plugins"), dockerRun)
	}
	p, err := process.Start(d.Log(), s.clientEnvironment(), filepath.Join(programs, "dockerd"), "--config-file", s.path("docker.json"))
	if err != nil {
		return nil, err
	}
	s.others = append(s.others, p)
	return d, p.WaitFor(ctx, func(ctx context.Context) error {
		_, err := d.Run(ctx, "version")
		return err
	})
}

// Log returns the path of dockerd's log.
func (d *Docker) Log() string { return d.stack.path("docker.log") }

// Run runs docker.
func (d *Docker) Run(ctx context.Context, args ...string) (string, error) {
	global := []string{"--config", d.stack.path("docker-client"), "--host", d.host}
	return d.stack.Run(ctx, filepath.Join(d.programs, "docker"), append(global, args...)...)
}
