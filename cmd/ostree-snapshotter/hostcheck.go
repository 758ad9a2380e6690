package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
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

// errSkip wraps the reason why something could not be checked.
var errSkip = errors.New("not checked")

// findings runs every check.
func (c *cli) findings(ctx context.Context, cfg *plugin.Config) []finding {
	containerd := &containerdCheck{ctx: ctx, address: c.containerdSocket(cfg)}
	defer containerd.close()
	var list []finding
	for _, check := range []struct {
		name string
		run  func() (detail string, err error)
	}{
		{"kernel", checkKernel},
		{"overlay file system", checkOverlay},
		{"root", func() (string, error) { return checkRoot(cfg.Root) }},
		{"repository", func() (string, error) { return checkRepo(cfg) }},
		{"checkouts", func() (string, error) { return checkCheckouts(cfg) }},
		{"containerd", containerd.connect},
		{"snapshotter plugin", func() (string, error) {
			return containerd.plugin("io.containerd.snapshotter.v1", snapshotterID)
		}},
		{"differ plugin", func() (string, error) { return containerd.plugin("io.containerd.differ.v1", differID) }},
	} {
		detail, err := check.run()
		f := finding{Check: check.name, Result: resultOK, Detail: detail}
		switch {
		case errors.Is(err, errSkip):
			f.Result, f.Detail = resultSkipped, err.Error()
		case err != nil:
			f.Result, f.Detail = resultFailed, err.Error()
		}
		list = append(list, f)
	}
	return list
}

// checkKernel makes sure that the kernel has the newest system call that is used without an alternative.
func checkKernel() (string, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return "", err
	}
	release := unix.ByteSliceToString(uts.Release[:])
	fd, err := unix.Openat2(unix.AT_FDCWD, ".", &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC})
	if err != nil {
		return "", fmt.Errorf("kernel %s has no openat2, which came with 5.6: %w", release, err)
	}
	return release, unix.Close(fd)
}

func checkOverlay() (string, error) {
	b, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 0 && f[len(f)-1] == "overlay" {
			return "known to the kernel", nil
		}
	}
	return "", errors.New("the kernel does not know it: load the module overlay")
}

// checkRoot makes sure that the file system of the root can do what the store needs. It writes to a file that never
// has a name.
func checkRoot(root string) (detail string, err error) {
	dir, err := atfs.Open(root)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%w: %s does not exist yet", errSkip, root)
	}
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	if unix.Geteuid() != 0 {
		return "", fmt.Errorf("%w: only root can", errSkip)
	}
	f, err := dir.TmpFile(0o600)
	if err != nil {
		return "", fmt.Errorf("the file system has no O_TMPFILE: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Setxattr("trusted.overlay.opaque", []byte("y")); err != nil {
		return "", fmt.Errorf("the file system keeps no extended attributes: %w", err)
	}
	src, err := dir.TmpFile(0o600)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	if _, err := src.Write(make([]byte, 4096)); err != nil {
		return "", err
	}
	if err := f.CloneFrom(src); err != nil { // they are an advantage, not a need
		return root + ", without reflinks", nil
	}
	return root + ", with reflinks", nil
}

// checkCheckouts says which checkouts the daemon uses, and why. It mounts, in a new directory of the root's tmp/, which goes
// again.
func checkCheckouts(cfg *plugin.Config) (detail string, err error) {
	if unix.Geteuid() != 0 {
		return "", fmt.Errorf("%w: only root can", errSkip)
	}
	name, err := os.MkdirTemp(filepath.Join(cfg.Root, "tmp"), "probe-check-")
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%w: %s does not exist yet", errSkip, cfg.Root)
	}
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, os.Remove(name)) }()
	dir, err := atfs.Open(name)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	checkout, why, err := cfg.ProbeCheckout(dir)
	return fmt.Sprintf("%s: %s", checkout, why), err
}

// checkRepo makes sure that repositories of one's own choice are there, usable, and on the root's file system.
func checkRepo(cfg *plugin.Config) (string, error) {
	names := append([]string{cfg.RepoPath()}, cfg.DedupRepos...)
	if _, err := os.Stat(cfg.RepoPath()); cfg.Repo == "" && errors.Is(err, fs.ErrNotExist) {
		if names = cfg.DedupRepos; len(names) == 0 {
			return "", fmt.Errorf("%w: %s does not exist yet", errSkip, cfg.RepoPath())
		}
	}
	for _, name := range names {
		if err := openRepo(name); err != nil {
			return "", err
		}
		var root, repo unix.Stat_t
		if err := errors.Join(unix.Stat(cfg.Root, &root), unix.Stat(name, &repo)); err == nil && root.Dev != repo.Dev {
			return "", fmt.Errorf("%s is not on the file system of %s: nothing could be linked", name, cfg.Root)
		}
	}
	return strings.Join(names, ", "), nil
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
		return "", fmt.Errorf("%w: it does not run at %s", errSkip, k.address)
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
		return "", fmt.Errorf("%w: containerd was not asked", errSkip)
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
