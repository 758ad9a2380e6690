package compat

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/stack"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/process"
)

// A machine is a directory with a store and a sysroot, and the program that works on them.
type machine struct {
	dir    string // short, since sockets are in it
	binary string

	containerd string // containerd's socket, "" if none runs
	daemon     string // the daemon's socket
}

// newMachine makes a temporary directory for a machine. Call remove when done.
func newMachine(binary string) (*machine, error) {
	dir, err := os.MkdirTemp("", "osc")
	if err != nil {
		return nil, err
	}
	m := &machine{dir: dir, binary: binary, daemon: filepath.Join(dir, "o.sock"), containerd: filepath.Join(dir, "none.sock")}
	return m, nil
}

func (m *machine) store() string   { return filepath.Join(m.dir, "store") }
func (m *machine) sysroot() string { return filepath.Join(m.dir, "sysroot") }

// remove unmounts everything below the directory and removes it. Deployments are immutable, which os.RemoveAll fails on.
func (m *machine) remove() error {
	if err := process.UnmountBelow(m.dir); err != nil {
		return err
	}
	parent, err := atfs.Open(filepath.Dir(m.dir))
	if err != nil {
		return err
	}
	return errors.Join(parent.RemoveAll(filepath.Base(m.dir)), parent.Close())
}

// run runs a command of the program on the store and returns its standard output.
func (m *machine) run(ctx context.Context, args ...string) (string, error) {
	return command(ctx, m.binary, append(args, "--root", m.store())...)
}

// system runs a command of the program on the sysroot.
func (m *machine) system(ctx context.Context, args ...string) (string, error) {
	return m.run(ctx, append(args, "--sysroot", m.sysroot())...)
}

// deploy deploys an image of containerd.
func (m *machine) deploy(ctx context.Context, image string, args ...string) error {
	args = append([]string{"deploy", image, "--address", m.containerd, "--daemon-address", m.daemon}, args...)
	_, err := m.system(ctx, args...)
	return err
}

func command(ctx context.Context, name string, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "OSTREE_SYSROOT_OPTS=skip-sync", "INVOCATION_ID=test")
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s %s: %w\n%s%s", filepath.Base(name), strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return stdout.String(), nil
}

// serve starts the daemon without a containerd. The function that it returns stops the daemon.
func (m *machine) serve(ctx context.Context, checkout string) (stop func() error, err error) {
	config := filepath.Join(m.dir, "ostree.toml")
	if err := os.WriteFile(config, fmt.Appendf(nil, "version = 1\ncheckout = %q\n", checkout), 0o600); err != nil {
		return nil, err
	}
	log := filepath.Join(m.dir, "ostree.log")
	p, err := process.Start(log, nil, m.binary,
		"serve", "--config", config, "--root", m.store(), "--address", m.daemon, "--containerd-address", m.containerd)
	if err != nil {
		return nil, err
	}
	if err := p.WaitFor(ctx, process.Listening(m.daemon)); err != nil {
		return nil, errors.Join(err, p.Signal(unix.SIGKILL))
	}
	return func() error {
		if err := errors.Join(p.Stop(), p.Err()); err != nil {
			return fmt.Errorf("stop the daemon: %w\n%s", err, process.Tail(log, 20))
		}
		return nil
	}, nil
}

// snapshotter connects to the daemon, as containerd does.
func (m *machine) snapshotter() (sn snapshots.Snapshotter, closeConn func() error, err error) {
	conn, err := grpc.NewClient("unix://"+m.daemon, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, nil, err
	}
	return proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), stack.Ostree), conn.Close, nil
}

// snapshots lists the daemon's snapshots.
func (m *machine) snapshots(ctx context.Context) (_ map[string]snapshot, err error) {
	sn, closeConn, err := m.snapshotter()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, closeConn()) }()
	return listSnapshots(namespaces.WithNamespace(ctx, namespaces.Default), sn)
}

// unpack imports an image into containerd and unpacks it.
func unpack(ctx context.Context, client *containerd.Client, name string) error {
	b, err := imageArchive(name)
	if err != nil {
		return err
	}
	imported, err := client.Import(ctx, bytes.NewReader(b))
	if err != nil {
		return fmt.Errorf("import %s: %w", name, err)
	}
	for _, img := range imported {
		if err := containerd.NewImage(client, img).Unpack(ctx, stack.Ostree); err != nil {
			return fmt.Errorf("unpack %s: %w", name, err)
		}
	}
	return nil
}
