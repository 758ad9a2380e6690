package stack

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/process"
)

// A Store is a store of ours whose daemon has no containerd: for a client that talks to the snapshotter by itself.
type Store struct {
	Root, Address string // Address is the daemon's socket
	// Containerd is a socket on which nobody listens.
	Containerd string
	Log        string // path of the daemon's log
}

// StartStore starts a second daemon. The stack's Stop stops it.
func (s *Stack) StartStore(ctx context.Context, config string) (*Store, error) {
	store := &Store{
		Root: s.path("store"), Address: s.path("p.sock"), Containerd: s.path("none.sock"), Log: s.path("store.log"),
	}
	if err := writeDaemonConfig(s.path("store.toml"), config); err != nil {
		return nil, err
	}
	args := daemonArgs(s.path("store.toml"), store.Root, store.Address, store.Containerd)
	p, err := process.Start(store.Log, s.environment(), s.opts.Binary, args...)
	if err != nil {
		return nil, err
	}
	s.others = append(s.others, p)
	return store, p.WaitFor(ctx, process.Listening(store.Address))
}

// Leftovers returns the files and directories that a store without layers and snapshots does not have.
func Leftovers(root string) (left []string, err error) {
	for _, dir := range []string{"repo/objects", "repo/refs", "layers", "rootfs", "mounts", "snapshots"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() && strings.HasPrefix(dir, "repo/") || path == filepath.Join(root, dir) {
				return err
			}
			left = append(left, path)
			if d.IsDir() {
				return filepath.SkipDir
			}
			return nil
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	return left, nil
}
