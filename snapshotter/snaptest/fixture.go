package snaptest

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter"
)

// TarFile is a file of a layer: a directory if its name ends in a slash, else a regular file unless it is a link.
type TarFile struct {
	Name    string
	Content string
	Mtime   int64
	Link    string // target of a hard link, if not ""
	Target  string // of a symbolic link, if not ""
}

// KiB returns n KiB of content that differs for two values of seed.
func KiB(seed string, n int) string {
	return strings.Repeat(fmt.Sprintf("%-63s\n", seed), n<<10/64)
}

// MakeTar returns a tar of files, each with an entry for its topmost directory before it.
func MakeTar(files []TarFile) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	dirs := make(map[string]bool)
	for _, f := range files {
		if dir, _, ok := strings.Cut(f.Name, "/"); ok && !dirs[dir] {
			dirs[dir] = true
			h := &tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755, ModTime: time.Unix(1, 0)}
			if err := w.WriteHeader(h); err != nil {
				return nil, err
			}
		}
		h := &tar.Header{Name: f.Name, Mode: 0o644, Size: int64(len(f.Content)), ModTime: time.Unix(f.Mtime, 0)}
		switch {
		case strings.HasSuffix(f.Name, "/"):
			continue // made above
		case f.Target != "":
			h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, f.Target, 0o777
		case f.Link != "":
			h = &tar.Header{Typeflag: tar.TypeLink, Name: f.Name, Linkname: f.Link, Mode: 0o644, ModTime: time.Unix(f.Mtime, 0)}
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write([]byte(f.Content)); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), w.Close()
}

// Layers of the images of a [Fixture]. "lib/common" is one file in both upper layers; "lib/sh" has the content of the
// base's "bin/sh" and another mtime, so that a checkout needs a copy of it.
var (
	BaseFiles = []TarFile{
		{Name: "bin/sh", Content: KiB("shell", 96), Mtime: 1000},
		{Name: "bin/ash", Link: "bin/sh", Mtime: 1000},
		{Name: "etc/empty", Mtime: 1000},
	}
	AFiles = []TarFile{
		{Name: "app/a", Content: KiB("a", 48), Mtime: 2000},
		{Name: "lib/common", Content: KiB("common", 200), Mtime: 3000},
	}
	BFiles = []TarFile{
		{Name: "app/b", Content: KiB("b", 32), Mtime: 2000},
		{Name: "lib/common", Content: KiB("common", 200), Mtime: 3000},
		{Name: "lib/sh", Content: KiB("shell", 96), Mtime: 5000},
	}
)

// OSFiles is the layer that turns BaseFiles into an operating system.
var OSFiles = []TarFile{
	{Name: "boot/"},
	{Name: "dev/"},
	{Name: "proc/"},
	{Name: "run/"},
	{Name: "sys/"},
	{Name: "sysroot/"},
	{Name: "tmp/"},
	{Name: "var/"},
	{Name: "ostree", Target: "sysroot/ostree"},
	{Name: "dev/null", Content: "not seen", Mtime: 1000},
	{Name: "usr/lib/os-release", Content: "ID=test\n", Mtime: 1000},
	{Name: "usr/lib/modules/6.1.0/vmlinuz", Content: KiB("kernel", 100), Mtime: 1000},
	{Name: "usr/lib/modules/6.1.0/initramfs.img", Content: KiB("initramfs", 200), Mtime: 1000},
}

// A Fixture is a store with hard-link checkouts and two images, each of a base and a layer of its own. A container runs
// on image A.
type Fixture struct {
	*Env
	Base, A, B            objectstore.Checksum // layers
	Chain, ChainA, ChainB digest.Digest        // of the base, and of the images
}

// MakeFixture makes one in an empty directory. Its snapshotter is open, so that metadata.db is locked as by a daemon.
func MakeFixture(ctx context.Context, dir string) (_ *Fixture, err error) {
	f, err := OpenFixture(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	if f.Base, f.Chain, err = f.Unpack(ctx, "", BaseFiles); err != nil {
		return nil, err
	}
	if f.A, f.ChainA, err = f.Unpack(ctx, f.Chain, AFiles); err != nil {
		return nil, err
	}
	if f.B, f.ChainB, err = f.Unpack(ctx, f.Chain, BFiles); err != nil {
		return nil, err
	}
	return f, f.Run(ctx, "container", f.ChainA, "written by a container\n")
}

// OpenFixture opens the store in a directory as a daemon does, and creates missing parts. It uses hard links unless the
// options choose otherwise.
func OpenFixture(ctx context.Context, dir string, opts ...snapshotter.Option) (*Fixture, error) {
	unix.Umask(0) // as the daemon does
	e, err := OpenBare(ctx, dir, opts...)
	if err != nil {
		return nil, err
	}
	return &Fixture{Env: e}, nil
}

// SnapshotName returns the key that containerd makes of a client's name for a snapshot.
func SnapshotName(name string) string { return "default/1/" + name }

// Unpack unpacks one layer, as containerd and the differ do.
func (f *Fixture) Unpack(ctx context.Context, parent digest.Digest, files []TarFile) (id objectstore.Checksum, chain digest.Digest, err error) {
	data, err := MakeTar(files)
	if err != nil {
		return id, "", err
	}
	chain = digest.FromBytes(data)
	parentName := ""
	if parent != "" {
		chain = digest.FromString(parent.String() + " " + chain.String())
		parentName = SnapshotName(parent.String())
	}
	labels := snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotRef: chain.String()})
	key := SnapshotName("extract-1 " + chain.String())
	mounts, err := f.Prepare(ctx, key, parentName, labels)
	if err != nil {
		return id, "", err
	}
	held, err := f.Store.Import(ctx, bytes.NewReader(data), layer.ImportOptions{Blob: digest.FromBytes(data)})
	if err != nil {
		return id, "", err
	}
	defer func() { err = errors.Join(err, held.Release()) }()
	number, _, err := f.Locate(ctx, mounts)
	if err == nil {
		err = f.AddLayer(ctx, number, held, false)
	}
	if err == nil {
		err = f.Commit(ctx, SnapshotName(chain.String()), key, labels)
	}
	return held.ID, chain, err
}

// Run makes the snapshot of a container and writes to it.
func (f *Fixture) Run(ctx context.Context, key string, chain digest.Digest, content string) error {
	mounts, err := f.Prepare(ctx, SnapshotName(key), SnapshotName(chain.String()))
	if err != nil {
		return err
	}
	for _, o := range mounts[0].Options {
		if upper, ok := strings.CutPrefix(o, "upperdir="); ok {
			dir, err := atfs.Open(upper)
			if err != nil {
				return err
			}
			return errors.Join(dir.WriteFile("data", []byte(content), 0o600, false), dir.Close())
		}
	}
	return fmt.Errorf("mounts %v have no upper directory", mounts)
}
