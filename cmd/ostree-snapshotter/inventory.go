package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter"
)

// The names under a store's root that snapshots live in; see package snapshotter.
const (
	metadataFile = snapshotter.MetadataFile
	snapshotsDir = snapshotter.SnapshotsDir
	lostDir      = snapshotter.LostDir
	appliedFile  = snapshotter.AppliedFile
)

// lockWait is how long to wait for metadata.db: not at all, which is what the shortest time means to bbolt. A daemon
// that has it open never lets go of it, and other commands share it.
const lockWait = time.Nanosecond

// row is a snapshot as the store's metadata have it.
type row struct {
	key      string // as containerd calls it here: namespace/number/name
	parent   string
	kind     snapshots.Kind
	chain    digest.Digest        // chain ID that a committed snapshot was made for; "" where none is known
	layer    objectstore.Checksum // zero for a snapshot without one
	blob     digest.Digest        // that the layer was unpacked from; "" where that is not known
	checkout string               // below the root; "" for a snapshot without one
	number   string               // of the snapshot, which is its directory's name; "" if only the daemon knows it
}

// name is the part of the key that containerd's client chose.
func (r *row) name() string {
	parts := strings.SplitN(r.key, "/", 3)
	return parts[len(parts)-1]
}

func newRow(info snapshots.Info) (row, error) {
	r := row{
		key: info.Name, parent: info.Parent, kind: info.Kind,
		blob: digest.Digest(info.Labels[snapshotter.LabelBlob]), checkout: info.Labels[snapshotter.LabelCheckout],
	}
	if id, ok := info.Labels[snapshotter.LabelLayer]; ok {
		sum, err := objectstore.ParseChecksum(id)
		if err != nil {
			return r, fmt.Errorf("snapshot %q: label %s: %w", info.Name, snapshotter.LabelLayer, err)
		}
		r.layer = sum
	}
	if info.Kind != snapshots.KindCommitted {
		return r, nil
	}
	// Client-side unpacking sets no label, but calls what it commits after its chain all the same.
	for _, s := range []string{info.Labels[snapshotter.LabelChainID], info.Labels[snapshots.LabelSnapshotRef], r.name()} {
		if d, err := digest.Parse(s); err == nil {
			r.chain = d
			break
		}
	}
	return r, nil
}

// rows lists every snapshot of the store. A store that has never had one has none.
//
// metadata.db is locked by a daemon for as long as it runs, so when it is, the daemon is asked.
func (s *store) rows(ctx context.Context, daemonAddress string) ([]row, error) {
	var rows []row
	add := func(number string, info snapshots.Info) error {
		r, err := newRow(info)
		r.number = number
		rows = append(rows, r)
		return err
	}
	if exists, err := s.root.Exists(metadataFile); err != nil || !exists {
		return nil, errors.Join(err, s.checkNew())
	}
	err := snapshotter.CheckMetadata(s.root)
	if errdefs.IsDataLoss(err) {
		err = withHint(withStatus(exitCorrupt, err), restoreHint)
	}
	if err == nil {
		err = s.walkFile(ctx, add)
	}
	if errors.Is(err, bolterrors.ErrTimeout) {
		rows = nil
		err = s.walkDaemon(ctx, daemonAddress, add)
	}
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	return rows, nil
}

// checkNew returns an error if the store had a metadata.db once: nothing must be taken for garbage then.
func (s *store) checkNew() error {
	lost, err := s.root.Exists(snapshotter.MetadataCopy)
	if err != nil || !lost {
		return err
	}
	return withHint(fmt.Errorf("list snapshots: %s is lost", filepath.Join(s.root.Path(), metadataFile)),
		restoreHint)
}

// restoreHint says what to do about a metadata.db that is lost or damaged.
const restoreHint = "start the daemon: it puts the copy of the file in its place"

// walkFile calls f for every snapshot in metadata.db.
func (s *store) walkFile(ctx context.Context, f func(number string, info snapshots.Info) error) error {
	ms, err := storage.NewMetaStore(filepath.Join(s.root.Path(), metadataFile), func(o *bolt.Options) error {
		o.ReadOnly = true
		o.Timeout = lockWait
		return nil
	})
	if err != nil {
		return err
	}
	called := false
	err = ms.WithTransaction(ctx, false, func(ctx context.Context) error {
		return storage.WalkInfo(ctx, func(ctx context.Context, info snapshots.Info) error {
			called = true
			number, _, _, err := storage.GetInfo(ctx, info.Name)
			if err != nil {
				return err
			}
			return f(number, info)
		})
	})
	if !called && errdefs.IsNotFound(err) { // how storage says that there never was a snapshot
		err = nil
	}
	return errors.Join(err, ms.Close())
}

// walkDaemon calls f for every snapshot of the daemon that has this store open.
func (s *store) walkDaemon(ctx context.Context, address string, f func(number string, info snapshots.Info) error) error {
	return s.askDaemon(address, func(sn snapshots.Snapshotter) error {
		return sn.Walk(ctx, func(_ context.Context, info snapshots.Info) error { return f("", info) })
	})
}

// cleanup has the daemon that has this store open remove what removed snapshots left.
func (s *store) cleanup(ctx context.Context, address string) error {
	return s.askDaemon(address, func(sn snapshots.Snapshotter) error {
		c, ok := sn.(snapshots.Cleaner)
		if !ok {
			return errdefs.ErrNotImplemented
		}
		return c.Cleanup(ctx)
	})
}

// askDaemon calls f with the snapshotter of the daemon that listens at address, "" for the configured one, and has this
// store open.
func (s *store) askDaemon(address string, f func(snapshots.Snapshotter) error) error {
	if address == "" {
		address = s.cfg.Address
	}
	conn, err := grpcClient(address, s.dialDaemon)
	if err != nil {
		return err
	}
	err = errors.Join(f(proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "ostree")), conn.Close())
	if err != nil {
		return withHint(withStatus(exitLocked, fmt.Errorf("%s is locked, and the daemon at %s does not answer for it: %w",
			filepath.Join(s.root.Path(), metadataFile), address, err)),
			"--daemon-address says where the daemon that uses this root listens")
	}
	return nil
}

// dialDaemon connects to a daemon's socket and makes sure that it is the daemon of this store: what another one has
// in its snapshots says nothing about which of our layers are needed.
func (s *store) dialDaemon(ctx context.Context, address string) (_ net.Conn, err error) {
	conn, err := dialUnix(ctx, address)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, conn.Close())
		}
	}()
	pids, err := listeners(address)
	if err != nil {
		return nil, err
	}
	st, err := s.root.Lstat(metadataFile)
	if err != nil {
		return nil, err
	}
	for _, pid := range pids {
		if hasOpen(pid, st) {
			return conn, nil
		}
	}
	return nil, errors.New("it has another store open")
}

// listeners returns the processes that have the socket at address open to listen on it: the daemon, and systemd if
// that made it.
func listeners(address string) ([]int, error) {
	want, err := filepath.Abs(strings.TrimPrefix(address, "unix://"))
	if err == nil {
		want, err = filepath.EvalSymlinks(want)
	}
	if err != nil {
		return nil, err
	}
	table, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		return nil, err
	}
	sockets := make(map[string]bool)
	for line := range strings.Lines(string(table)) {
		// Num RefCount Protocol Flags Type St Inode Path, see proc_net_unix(5); __SO_ACCEPTCON is the flag of a
		// listening socket.
		f := strings.Fields(line)
		if len(f) != 8 || f[3] != "00010000" {
			continue
		}
		if name, err := filepath.EvalSymlinks(f[7]); err == nil && name == want {
			sockets["socket:["+f[6]+"]"] = true
		}
	}
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, p := range procs {
		pid, err := strconv.Atoi(p.Name())
		if err != nil {
			continue
		}
		if anyOpen(pid, func(fd string) bool {
			target, err := os.Readlink(fd)
			return err == nil && sockets[target]
		}) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// hasOpen reports whether a process has a file open.
func hasOpen(pid int, file unix.Stat_t) bool {
	return anyOpen(pid, func(fd string) bool {
		var st unix.Stat_t
		return unix.Stat(fd, &st) == nil && st.Dev == file.Dev && st.Ino == file.Ino
	})
}

// anyOpen reports whether f is true of the path of an open file of a process. A process that is gone has none.
func anyOpen(pid int, f func(fd string) bool) bool {
	dir := filepath.Join("/proc", strconv.Itoa(pid), "fd")
	fds, err := os.ReadDir(dir)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(fds, func(fd os.DirEntry) bool { return f(filepath.Join(dir, fd.Name())) })
}

// staged returns the layers that active snapshots have been given and that no row names yet, by the number of the
// snapshot.
func (s *store) staged() (map[string]objectstore.Checksum, error) {
	dir, err := s.root.OpenDir(snapshotsDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.ReadNames()
	if err != nil {
		return nil, err
	}
	staged := make(map[string]objectstore.Checksum)
	for _, name := range names {
		b, err := dir.ReadFile(filepath.Join(name, appliedFile), 256)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		sum, err := objectstore.ParseChecksum(strings.TrimSuffix(string(b), "\n"))
		if err != nil {
			return nil, fmt.Errorf("read layer of snapshot directory %s: %w", name, err)
		}
		staged[name] = sum
	}
	return staged, nil
}

// live returns what tells a prune which layers are needed, when the snapshot directories of the numbers in orphans are
// not.
//
// Staged layers are read before the rows, always: to commit a snapshot moves its layer from the file to the row, so
// that what the first look misses the second one sees.
func (s *store) live(daemonAddress string, orphans ...string) layer.Live {
	return func(ctx context.Context) (map[objectstore.Checksum]struct{}, error) {
		staged, err := s.staged()
		if err != nil {
			return nil, err
		}
		rows, err := s.rows(ctx, daemonAddress)
		if err != nil {
			return nil, err
		}
		live := make(map[objectstore.Checksum]struct{})
		for name, id := range staged {
			if !slices.Contains(orphans, name) {
				live[id] = struct{}{}
			}
		}
		for _, r := range rows {
			if !r.layer.IsZero() {
				live[r.layer] = struct{}{}
			}
		}
		return live, nil
	}
}
