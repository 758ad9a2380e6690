package compat

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/image-spec/identity"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/stack"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/testhost"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/process"
)

// expected is what the revision that made an archive shows of it.
type expected struct {
	Snapshots map[string]snapshot `json:"snapshots"`
	Status    json.RawMessage     `json:"status"` // of "status --json"
	Layers    json.RawMessage     `json:"layers"` // of "layers --json"
}

// The files of an archive.
const (
	storeDir     = "store"
	sysrootDir   = "sysroot"
	expectedFile = "expected.json"
)

// Make makes an archive with a program of the revision that the archive is of. It needs root, and a kernel that can mount
// composefs images.
//
// An application is unpacked and a container's snapshot written to, first with checkouts of hard links and then with
// composefs images. Two versions of an operating system are unpacked and deployed; the first is pinned. Then the daemon is
// killed, so that the journal still names the layers that came last.
func Make(ctx context.Context, tools *testhost.Tools, binary, archive string) (err error) {
	m, err := newMachine(binary)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.remove()) }()
	for _, dir := range []string{m.store(), m.sysroot()} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	want, err := m.fill(ctx, tools)
	if err != nil {
		return err
	}
	if err := process.UnmountBelow(m.dir); err != nil {
		return err
	}
	journal, err := os.ReadDir(filepath.Join(m.store(), "journal"))
	if err != nil {
		return err
	}
	if len(journal) == 0 {
		return errors.New("the journal is empty: everything was on the disk before the daemon was killed")
	}
	b, err := json.MarshalIndent(want, "", " ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(m.dir, expectedFile), b, 0o644); err != nil {
		return err
	}
	_, err = command(ctx, "tar", "--create", "--gzip", "--file", archive, "--directory", m.dir, "--xattrs", "--xattrs-include=*",
		"--numeric-owner", "--sparse", "--sort=name", storeDir, sysrootDir, expectedFile)
	return err
}

// fill does what Make says, up to the archive.
func (m *machine) fill(ctx context.Context, tools *testhost.Tools) (_ *expected, err error) {
	const hardlink, composefs = "checkout = \"hardlink\"\n", "checkout = \"composefs\"\n"
	s, err := stack.Start(ctx, stack.Options{
		Tools: tools, Snapshotter: stack.Ostree, Binary: m.binary, Config: hardlink, Root: m.store(),
	})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.Stop()) }()
	m.containerd, m.daemon = s.Containerd, s.Daemon
	client := s.Client()
	ctx = stack.Context(ctx)
	// Nothing may be collected as garbage.
	lease, err := client.LeasesService().Create(ctx, leases.WithRandomID())
	if err != nil {
		return nil, err
	}
	ctx = leases.WithLease(ctx, lease.ID)
	if err := unpack(ctx, client, appImage); err != nil {
		return nil, err
	}
	sn := client.SnapshotService(stack.Ostree)
	if err := container(ctx, sn, "container-on-hardlinks"); err != nil {
		return nil, err
	}
	if err := errors.Join(s.StopDaemon(), s.WriteConfig(composefs), s.StartDaemon(ctx)); err != nil {
		return nil, err
	}
	if err := container(ctx, sn, "container-on-composefs"); err != nil {
		return nil, err
	}
	for _, image := range []string{os1Image, os2Image} {
		if err := unpack(ctx, client, image); err != nil {
			return nil, err
		}
	}
	want := new(expected)
	if want.Snapshots, err = m.snapshots(ctx); err != nil {
		return nil, err
	}
	if err := s.KillDaemon(); err != nil { // before the layers are on the disk
		return nil, err
	}
	if err := m.deploy(ctx, os1Image, "--init", "--stateroot", "compat", "--karg", "root=LABEL=compat", "--karg", "rw"); err != nil {
		return nil, err
	}
	first, err := filepath.Glob(filepath.Join(m.sysroot(), "ostree/deploy/compat/deploy/*.0"))
	if err != nil || len(first) != 1 {
		return nil, fmt.Errorf("find the deployment: got %q, %w", first, err)
	}
	if err := os.WriteFile(filepath.Join(first[0], "etc/local.conf"), []byte("of the administrator\n"), 0o640); err != nil {
		return nil, err
	}
	if err := m.deploy(ctx, os2Image, "--karg-append", "nosmt"); err != nil {
		return nil, err
	}
	if _, err := m.system(ctx, "pin", "1"); err != nil {
		return nil, err
	}
	status, err := m.system(ctx, "status", "--json")
	if err != nil {
		return nil, err
	}
	layers, err := m.run(ctx, "layers", "--json")
	if err != nil {
		return nil, err
	}
	want.Status, want.Layers = json.RawMessage(status), json.RawMessage(layers)
	return want, nil
}

// container prepares a snapshot on the application and writes to it, as a container does.
func container(ctx context.Context, sn snapshots.Snapshotter, key string) error {
	chain, err := appChain()
	if err != nil {
		return err
	}
	mounts, err := sn.Prepare(ctx, key, chain)
	if err != nil {
		return err
	}
	return mount.WithTempMount(ctx, mounts, func(root string) error {
		in := func(name string) string { return filepath.Join(root, name) }
		return errors.Join(
			os.WriteFile(in("etc/passwd"), []byte("written by "+key+"\n"), 0o600),
			os.Remove(in("odd/owned")),
			os.Mkdir(in("odd/made"), 0o750),
			os.WriteFile(in("odd/made/file"), []byte("new\n"), 0o644),
			os.RemoveAll(in("odd/opaque")),
			os.Mkdir(in("odd/opaque"), 0o700),
			os.Link(in("odd/made/file"), in("odd/opaque/link")),
			os.Chmod(in("odd/setuid"), 0o700),
		)
	})
}

// appChain returns the chain ID of the application's layers.
func appChain() (string, error) {
	ids, err := diffIDs(appImage)
	return identity.ChainID(ids).String(), err
}
