package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc"

	"github.com/ostree-snapshotter/ostree-snapshotter/plugin"
)

// finding is one element of the output of "config check --json".
type finding struct {
	Check  string `json:"check"`
	Result string `json:"result"` // ok, failed or skipped
	Detail string `json:"detail"`
}

const (
	resultOK      = "ok"
	resultFailed  = "failed"
	resultSkipped = "skipped"
)

// findings runs every check.
func (c *cli) findings(ctx context.Context, cfg *plugin.Config) []finding {
	containerd := &containerdCheck{ctx: ctx, address: c.containerdSocket(cfg)}
	defer containerd.close()
	checks := plugin.Probe(cfg)
	for _, check := range []struct {
		name string
		run  func() (detail string, err error)
	}{
		{"containerd", containerd.connect},
		{"snapshotter plugin", func() (string, error) {
			return containerd.plugin("io.containerd.snapshotter.v1", snapshotterID)
		}},
		{"differ plugin", func() (string, error) { return containerd.plugin("io.containerd.differ.v1", differID) }},
	} {
		detail, err := check.run()
		checks = append(checks, plugin.Finding{Check: check.name, Detail: detail, Err: err})
	}
	list := make([]finding, len(checks))
	for i, k := range checks {
		list[i] = finding{Check: k.Check, Result: resultOK, Detail: k.Detail}
		switch {
		case errors.Is(k.Err, plugin.ErrNotChecked):
			list[i].Result, list[i].Detail = resultSkipped, k.Err.Error()
		case k.Err != nil:
			list[i].Result, list[i].Detail = resultFailed, k.Err.Error()
		}
	}
	return list
}

// containerdCheck asks a running containerd what it knows.
type containerdCheck struct {
	ctx     context.Context
	address string
	conn    *grpc.ClientConn
	up      bool
}

func (k *containerdCheck) close() {
	if k.conn != nil {
		_ = k.conn.Close()
	}
}

func (k *containerdCheck) connect() (string, error) {
	if _, err := os.Stat(k.address); errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%w: it does not run at %s", plugin.ErrNotChecked, k.address)
	}
	var err error
	if k.conn, err = grpcClient(k.address, dialUnix); err != nil {
		return "", err
	}
	release, err := containerdRelease(k.ctx, k.conn)
	if err != nil {
		return "", err
	}
	k.up = true
	return release + " at " + k.address, nil
}

// plugin makes sure that containerd has loaded one of its proxy plugins.
func (k *containerdCheck) plugin(kind, id string) (string, error) {
	if !k.up {
		return "", fmt.Errorf("%w: containerd was not asked", plugin.ErrNotChecked)
	}
	resp, err := introspectionapi.NewIntrospectionClient(k.conn).Plugins(k.ctx, &introspectionapi.PluginsRequest{
		Filters: []string{"type==" + kind + ",id==" + id},
	})
	if err != nil {
		return "", fmt.Errorf("ask containerd for its plugins: %w", errgrpc.ToNative(err))
	}
	if len(resp.Plugins) == 0 {
		return "", fmt.Errorf("containerd has no plugin %s: \"ostree-snapshotter config containerd\" prints what its configuration needs", id)
	}
	if failure := resp.Plugins[0].InitErr; failure != nil {
		return "", fmt.Errorf("containerd could not load %s: %s", id, failure.Message)
	}
	return id, nil
}
