package pull

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/bench/pull/probe"
)

// A tree holds the files that a container of an image must see, by path, except the root. It is built from the layers'
// tars by the rules of the OCI image specification, without a snapshotter.
type tree map[string]leaf

type leaf struct {
	probe.Entry
	layer int
}

const (
	whiteout = ".wh."
	opaque   = ".wh..wh..opq"
)

// readTree reads the layers of an image, lowest first.
func readTree(ctx context.Context, provider content.Provider, layers []ocispec.Descriptor) (tree, error) {
	t := make(tree)
	for i, desc := range layers {
		if err := t.addLayer(ctx, provider, desc, i); err != nil {
			return nil, fmt.Errorf("read layer %s: %w", desc.Digest, err)
		}
	}
	return t, nil
}

func (t tree) addLayer(ctx context.Context, provider content.Provider, desc ocispec.Descriptor, layer int) (err error) {
	blob, err := provider.ReaderAt(ctx, desc)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, blob.Close()) }()
	r, err := compression.DecompressStream(content.NewReader(blob))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := t.add(h, tr, layer); err != nil {
			return fmt.Errorf("%q: %w", h.Name, err)
		}
	}
}

// add adds one entry of a tar.
func (t tree) add(h *tar.Header, r io.Reader, layer int) error {
	name := t.resolve(h.Name)
	dir, base := path.Split(name)
	switch {
	case name == "/":
		return nil
	case base == opaque:
		t.removeBelow(path.Clean(dir), layer)
		return nil
	case strings.HasPrefix(base, whiteout):
		name = dir + strings.TrimPrefix(base, whiteout)
		if t[name].layer < layer {
			delete(t, name)
		}
		t.removeBelow(name, layer)
		return nil
	}
	if h.Typeflag == tar.TypeLink {
		target, ok := t[t.resolve(h.Linkname)]
		if !ok {
			return fmt.Errorf("link to %q, which is not there", h.Linkname)
		}
		t.put(name, leaf{target.Entry, layer})
		return nil
	}
	e, err := entry(h, r)
	if err != nil {
		return err
	}
	t.put(name, leaf{e, layer})
	return nil
}

// put sets an entry, and removes everything below an entry that is no longer a directory.
func (t tree) put(name string, l leaf) {
	if l.Mode&unix.S_IFMT != unix.S_IFDIR && t[name].Mode&unix.S_IFMT == unix.S_IFDIR {
		t.removeBelow(name, l.layer+1)
	}
	t[name] = l
	for dir := path.Dir(name); dir != "/"; dir = path.Dir(dir) {
		if _, ok := t[dir]; ok {
			break
		}
		t[dir] = leaf{probe.Entry{Mode: unix.S_IFDIR | 0o755}, l.layer} // not in the tar; with containerd's defaults
	}
}

// removeBelow removes files of lower layers below a directory.
func (t tree) removeBelow(dir string, layer int) {
	prefix := strings.TrimSuffix(dir, "/") + "/"
	for name, l := range t {
		if l.layer < layer && strings.HasPrefix(name, prefix) {
			delete(t, name)
		}
	}
}

// maxLinks bounds the symbolic links followed in a path, like the kernel's limit.
const maxLinks = 40

// resolve returns the path of an entry after following symbolic links to directories, except in the last part.
func (t tree) resolve(name string) string {
	rest := strings.Split(strings.Trim(path.Clean("/"+name), "/"), "/")
	done := "/"
	for links := 0; len(rest) > 1 && links < maxLinks; {
		next := path.Join(done, rest[0])
		rest = rest[1:]
		if l := t[next]; l.Mode&unix.S_IFMT == unix.S_IFLNK {
			links++
			if path.IsAbs(l.Target) {
				done = "/"
			}
			target := strings.FieldsFunc(l.Target, func(r rune) bool { return r == '/' })
			rest = append(target, rest...)
			continue
		}
		done = next
	}
	return path.Join(append([]string{done}, rest...)...)
}

// types maps file types of tars to those of st_mode.
var types = map[byte]uint32{
	tar.TypeReg: unix.S_IFREG, tar.TypeDir: unix.S_IFDIR, tar.TypeSymlink: unix.S_IFLNK,
	tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK, tar.TypeFifo: unix.S_IFIFO,
}

func entry(h *tar.Header, r io.Reader) (probe.Entry, error) {
	kind, ok := types[h.Typeflag]
	if !ok {
		return probe.Entry{}, fmt.Errorf("entry of type %q", h.Typeflag)
	}
	e := probe.Entry{Mode: kind | uint32(h.Mode)&0o7777, UID: uint32(h.Uid), GID: uint32(h.Gid)}
	switch kind {
	case unix.S_IFREG:
		hash := sha256.New()
		n, err := io.Copy(hash, r)
		if err != nil {
			return e, err
		}
		e.Size, e.Digest = n, fmt.Sprintf("%x", hash.Sum(nil))
		e.Capability = h.PAXRecords["SCHILY.xattr.security.capability"]
	case unix.S_IFLNK:
		e.Target, e.Mode = h.Linkname, unix.S_IFLNK|0o777
	case unix.S_IFCHR, unix.S_IFBLK:
		e.Device = unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
	}
	return e, nil
}

// compare reads the output of "probe list" in a container, and returns an error that names the first difference.
func (t tree) compare(list io.Reader) error {
	seen := make(map[string]bool, len(t))
	lines := bufio.NewScanner(list)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		quoted, err := strconv.QuotedPrefix(lines.Text())
		if err != nil {
			return fmt.Errorf("compare container with image: the container printed %q", lines.Text())
		}
		name, err := strconv.Unquote(quoted)
		if err != nil {
			return err
		}
		l, ok := t[name]
		got := strings.TrimPrefix(lines.Text()[len(quoted):], " ")
		switch {
		case !ok:
			return fmt.Errorf("compare container with image: the image has no %s", quoted)
		case got != l.Line():
			return fmt.Errorf("compare container with image: %s is %s, in the image %s", quoted, got, l.Line())
		}
		seen[name] = true
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("compare container with image: %w", err)
	}
	for _, name := range sortedNames(t) {
		if !seen[name] && !probe.Mounted(name) {
			return fmt.Errorf("compare container with image: the container has no %q", name)
		}
	}
	return nil
}

// size returns the number of files, and the bytes in regular files.
func (t tree) size() (files int, bytes int64) {
	for _, l := range t {
		files, bytes = files+1, bytes+l.Size
	}
	return files, bytes
}

func sortedNames(t tree) []string { return slices.Sorted(maps.Keys(t)) }
