package plugin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/inspect"
)

// daemonTimeout bounds the time for an answer of a daemon that accepts a connection.
const daemonTimeout = 2 * time.Second

// ProbeDaemon checks the daemon: it has the root open, and answers at the configuration's address. Without a daemon the
// error is an ErrNotChecked.
func ProbeDaemon(ctx context.Context, c *Config) Finding {
	detail, err := probeDaemon(ctx, c)
	return Finding{Check: "daemon", Detail: detail, Err: err}
}

func probeDaemon(ctx context.Context, c *Config) (detail string, err error) {
	root, err := atfs.Open(c.Root)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%w: it does not run: %s does not exist yet", ErrNotChecked, c.Root)
	} else if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	if unix.Geteuid() != 0 {
		return "", fmt.Errorf("%w: only root can", ErrNotChecked)
	}
	holder, err := rootHolder(root)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, daemonTimeout)
	defer cancel()
	version, err := inspect.DaemonVersion(ctx, c.Address, root)
	switch {
	case err == nil:
		return fmt.Sprintf("version %s at %s", cmp.Or(version, "unknown"), c.Address), nil
	case holder != "":
		return "", fmt.Errorf("process %s has %s open, and does not answer at %s: %w", holder, c.Root, c.Address, err)
	case errdefs.IsUnavailable(err):
		return "", fmt.Errorf("%w: it does not run at %s", ErrNotChecked, c.Address)
	}
	return "", fmt.Errorf("ask the daemon at %s: %w", c.Address, err)
}
