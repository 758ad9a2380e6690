// Package node starts or connects to the containerd whose snapshotters are measured.
package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/plugins"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/process"
	ours "github.com/ostree-snapshotter/ostree-snapshotter/plugin/containerd"
)

// Ostree is the name of our snapshotter in containerd. OstreeHardlink is our snapshotter with checkouts of hard links,
// on every kernel.
const (
	Ostree         = "ostree"
	OstreeHardlink = "ostree-hardlink"
)

func isOurs(snapshotter string) bool { return snapshotter == Ostree || snapshotter == OstreeHardlink }

// Known returns the snapshotters that a private containerd can be set up with.
func Known() []string { return []string{Ostree, OstreeHardlink, "overlayfs", "erofs", "native"} }

// A Node is a containerd with a snapshotter to measure.
type Node struct {
	Client      *containerd.Client
	Snapshotter string
	Root        string // directory of the snapshotter
	Pids        []int  // of containerd and, if it has one, the daemon of the snapshotter
	RuncRoot    string // state directory of runc; "" for its default
	FIFODir     string // directory for the pipes of containers; "" for the default
	Cgroup      string // parent of the containers' control groups
	NewDisk     bool   // Root is on a file system made for this node

	close func() error
}

// Close ends the processes and removes the files that Start made. It leaves a containerd that was running before as it
// is.
func (n *Node) Close() error {
	if n.close == nil {
		return nil
	}
	err := n.close()
	n.close = nil
	return err
}

// An UnavailableError is the error for a snapshotter that containerd does not have.
type UnavailableError struct {
	Snapshotter string
	Cause       string
}

// Error names the snapshotter.
func (e *UnavailableError) Error() string {
	return fmt.Sprintf("find snapshotter %s: %s", e.Snapshotter, e.Cause)
}

// Private starts private containerds.
type Private struct {
	Dir        string // parent of the temporary files
	FileSystem string // of the disk made for the stores: ext4, xfs or btrfs; "" for that of Dir
	DiskSize   int64  // size of the sparse file in bytes
	Containerd string // path of the program; the shim and runc are found by PATH
	Self       string // path of our program, for the daemon
}

// Start starts a containerd with one snapshotter. The stores are on a new file system, so that removed files of one do
// not slow down the next. The error for a snapshotter that is not available is an [UnavailableError]. On error nothing
// is left.
func (o Private) Start(ctx context.Context, snapshotter string) (_ *Node, err error) {
	p := &private{snapshotter: snapshotter, options: o}
	n := &Node{Snapshotter: snapshotter, NewDisk: o.FileSystem != "", close: p.stop}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.Close())
		}
	}()
	if p.data, err = os.MkdirTemp(o.Dir, "osb"); err != nil {
		return nil, fmt.Errorf("start containerd: %w", err)
	}
	if p.dir, err = os.MkdirTemp(runDir, "osb"); err != nil {
		return nil, fmt.Errorf("start containerd: %w", err)
	}
	n.RuncRoot, n.FIFODir, n.Cgroup = p.path("runc"), p.path("fifo"), "/"+filepath.Base(p.dir)
	if err := p.start(ctx); err != nil {
		return nil, err
	}
	n.Client = p.client
	n.Pids = append(n.Pids, p.containerd.Pid)
	if p.daemon != nil {
		n.Pids = append(n.Pids, p.daemon.Pid)
	}
	n.Root, err = find(ctx, n.Client, snapshotter)
	return n, err
}

// Method describes the containerd and the file system of the runs, in sentences.
func (o Private) Method() []string {
	method := []string{
		"Each run has a new containerd with one snapshotter, in its default configuration except for three layers unpacked at once, where the snapshotter can, and --sort=none for mkfs.erofs.",
	}
	if o.FileSystem != "" {
		method = append(method, fmt.Sprintf("Each run is on a new %s, on a loop device, so that no run pays for files that another one removed.", o.FileSystem))
	}
	return method
}

// runDir is the parent of sockets, logs and state, as for any containerd. Its paths are short; the path of a unix
// socket has at most 107 bytes.
const runDir = "/run"

// private holds what Start has started.
type private struct {
	options     Private
	snapshotter string
	data        string // directory with the disk
	dir         string // below runDir
	containerd  *process.Process
	daemon      *process.Process
	client      *containerd.Client
}

func (p *private) path(name string) string { return filepath.Join(p.dir, name) }

// store returns the mount point of the new file system.
func (p *private) store() string { return filepath.Join(p.data, "store") }

func (p *private) start(ctx context.Context) error {
	// Processes of other users in containers must be able to reach their root file systems.
	if err := errors.Join(os.Chmod(p.dir, 0o711), os.Chmod(p.data, 0o711), os.Mkdir(p.store(), 0o711)); err != nil {
		return fmt.Errorf("start containerd: %w", err)
	}
	if p.options.FileSystem != "" {
		if err := newDisk(ctx, filepath.Join(p.data, "disk"), p.options.FileSystem, p.options.DiskSize, p.store()); err != nil {
			return err
		}
	}
	if err := p.configure(); err != nil {
		return err
	}
	var err error
	if isOurs(p.snapshotter) {
		// The daemon gets the default configuration, whatever this machine has.
		p.daemon, err = process.Start(p.path("ostree.log"), nil, p.options.Self, "serve", "--config", p.path("ostree.toml"),
			"--root", filepath.Join(p.store(), "ostree"), "--address", p.path("o.sock"), "--containerd-address", p.path("c.sock"))
		if err != nil {
			return err
		}
		if err := p.daemon.WaitFor(ctx, process.Listening(p.path("o.sock"))); err != nil {
			return err
		}
	}
	if p.containerd, err = process.Start(p.path("containerd.log"), nil, p.options.Containerd, "--config", p.path("containerd.toml")); err != nil {
		return err
	}
	return p.containerd.WaitFor(ctx, func(ctx context.Context) error {
		p.client, err = connect(ctx, p.path("c.sock"))
		return err
	})
}

// stop ends everything and removes the directory.
func (p *private) stop() error {
	var errs []error
	if p.client != nil {
		errs = append(errs, p.client.Close())
	}
	// Stop containerd first, so that it does not clean up after shims while they are killed.
	if p.containerd != nil {
		errs = append(errs, p.containerd.Signal(unix.SIGKILL))
	}
	errs = append(errs, process.KillShims(p.path("c.sock")), p.daemon.Stop())
	for _, dir := range []string{p.dir, p.data} {
		if dir != "" {
			errs = append(errs, process.UnmountBelow(dir), process.RemoveCgroups("/"+filepath.Base(dir)), os.RemoveAll(dir))
		}
	}
	return errors.Join(errs...)
}

func connect(ctx context.Context, address string) (*containerd.Client, error) {
	dialled, err := ours.Dial(address)
	if err != nil {
		return nil, err
	}
	c, err := containerd.NewWithConn(dialled.Conn())
	if err != nil {
		return nil, errors.Join(err, dialled.Close())
	}
	if _, err := c.Version(ctx); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// Existing connects to a running containerd.
type Existing struct {
	Address string // of its socket
	Daemon  string // of our daemon's socket
}

// Start connects to it.
func (e Existing) Start(ctx context.Context, snapshotter string) (_ *Node, err error) {
	address := strings.TrimPrefix(e.Address, "unix://")
	pid, err := serverPid(ctx, address) // first: its error is plainer than gRPC's
	if err != nil {
		return nil, err
	}
	client, err := connect(ctx, address)
	if err != nil {
		return nil, fmt.Errorf("connect to containerd at %s: %w", address, err)
	}
	n := &Node{Client: client, Snapshotter: snapshotter, Cgroup: fmt.Sprintf("/osb%d", os.Getpid())}
	n.close = func() error { return errors.Join(client.Close(), process.RemoveCgroups(n.Cgroup)) }
	defer func() {
		if err != nil {
			err = errors.Join(err, n.Close())
		}
	}()
	if n.Root, err = find(ctx, client, snapshotter); err != nil {
		return nil, err
	}
	if n.Pids = []int{pid}; isOurs(snapshotter) {
		if pid, err = serverPid(ctx, strings.TrimPrefix(e.Daemon, "unix://")); err != nil {
			return nil, err
		}
		n.Pids = append(n.Pids, pid)
	}
	return n, nil
}

// Method describes the containerd of the runs.
func (Existing) Method() []string {
	return []string{"A running containerd was measured as it is configured. The images were removed after each run."}
}

// serverPid returns the ID of the process that listens on a unix socket.
func serverPid(ctx context.Context, address string) (pid int, err error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", address)
	if err != nil {
		return 0, fmt.Errorf("connect to %s: %w", address, err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	raw, err := conn.(*net.UnixConn).SyscallConn() //nolint:forcetypeassert // that is what "unix" dials
	if err != nil {
		return 0, fmt.Errorf("connect to %s: %w", address, err)
	}
	var cred *unix.Ucred
	var cerr error
	if err := errors.Join(raw.Control(func(fd uintptr) {
		cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}), cerr); err != nil {
		return 0, fmt.Errorf("connect to %s: %w", address, err)
	}
	return int(cred.Pid), nil
}

// find checks that containerd has a snapshotter, and a differ for it if it needs one, and returns the snapshotter's
// directory.
func find(ctx context.Context, client *containerd.Client, snapshotter string) (root string, err error) {
	resp, err := client.IntrospectionService().Plugins(ctx)
	if err != nil {
		return "", fmt.Errorf("list the plugins of containerd: %w", err)
	}
	wanted := map[string]string{plugins.SnapshotPlugin.String(): snapshotter}
	switch snapshotter {
	case Ostree, OstreeHardlink:
		wanted[plugins.DiffPlugin.String()] = "ostree-diff"
	case "erofs":
		wanted[plugins.DiffPlugin.String()] = snapshotter
	}
	for _, p := range resp.Plugins {
		if wanted[p.Type] != p.ID {
			continue
		}
		if p.InitErr != nil {
			return "", &UnavailableError{snapshotter, oneLine(p.InitErr.Message)}
		}
		delete(wanted, p.Type)
		if p.Type == plugins.SnapshotPlugin.String() {
			root = p.Exports["root"]
		}
	}
	for kind, id := range wanted {
		return "", &UnavailableError{snapshotter, fmt.Sprintf("containerd has no plugin %s.%s", kind, id)}
	}
	if root == "" {
		return "", &UnavailableError{snapshotter, `containerd does not say where it stores: its configuration lacks "exports"`}
	}
	return root, nil
}

func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }
