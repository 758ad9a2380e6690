package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/ostree-snapshotter/ostree-snapshotter/plugin"
	"github.com/ostree-snapshotter/ostree-snapshotter/plugin/containerd"
)

// checkReport is the output of "config check --json".
type checkReport struct {
	Checks []finding `json:"checks"`
}

// finding is the result of a check.
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
func findings(ctx context.Context, cfg *plugin.Config, socket string) []finding {
	daemon := &containerdCheck{ctx: ctx, address: socket}
	defer daemon.close()
	checks := append(plugin.Probe(cfg), plugin.ProbeDaemon(ctx, cfg))
	for _, check := range []struct {
		name string
		run  func() (detail string, err error)
	}{
		{"containerd", daemon.connect},
		{"snapshotter plugin", func() (string, error) {
			return daemon.plugin("io.containerd.snapshotter.v1", containerd.SnapshotterID)
		}},
		{"differ plugin", func() (string, error) {
			return daemon.plugin("io.containerd.differ.v1", containerd.DifferID)
		}},
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

// containerdCheck checks a running containerd.
type containerdCheck struct {
	ctx     context.Context
	address string
	client  *containerd.Client
	up      bool
}

func (k *containerdCheck) close() {
	if k.client != nil {
		_ = k.client.Close()
	}
}

func (k *containerdCheck) connect() (string, error) {
	if _, err := os.Stat(k.address); errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%w: it does not run at %s", plugin.ErrNotChecked, k.address)
	}
	var err error
	if k.client, err = containerd.Dial(k.address); err != nil {
		return "", err
	}
	release, err := k.client.Version(k.ctx)
	if err != nil {
		return "", err
	}
	if v, err := containerd.ParseVersion(release); err == nil { // an own build may have any version
		if err := v.Supported(); err != nil {
			return "", err
		}
	}
	k.up = true
	return release + " at " + k.address, nil
}

// plugin checks that containerd has loaded a proxy plugin.
func (k *containerdCheck) plugin(kind, id string) (string, error) {
	if !k.up {
		return "", fmt.Errorf("%w: containerd was not asked", plugin.ErrNotChecked)
	}
	err := k.client.CheckPlugin(k.ctx, kind, id)
	if absent := new(containerd.NoPluginError); errors.As(err, &absent) {
		err = fmt.Errorf("%w: \"ostree-snapshotter config containerd\" prints the configuration that it needs", err)
	}
	return id, err
}
